"""Checking a cache: what its indices promise against what its parts hold; and what it holds of a manifest."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.backend import load_backend
from featcache.cache import Cache, CachedStream
from featcache.errors import CacheError
from featcache.index import Index, checksum
from featcache.manifest import Manifest


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: ``stream`` or ``stream/part``.
        what: a sentence, naming the utterance where it concerns one.
    """

    where: str
    what: str


def verify(
    cache: str | Path, full: bool = True, on_part: Callable[[int, int], None] = lambda *_: None
) -> tuple[int, list[Problem]]:
    """Check every stream of a cache.

    Args:
        cache: the cache's folder.
        full: compare the checksum of every utterance with its bytes; otherwise only shapes and types.
        on_part: called with the number of parts checked so far and of all parts.

    Returns:
        How many utterances were checked, and every problem found.

    Raises:
        CacheError: there is no such cache.
    """
    cache = Path(cache)
    if not cache.is_dir():
        raise CacheError(f"There is no cache {str(cache)!r}.")
    problems: list[Problem] = []
    parts: list[tuple[CachedStream, Index]] = []
    for name in Cache(cache):
        indices, bad = _read_indices(cache / name)
        problems += bad
        if indices is not None:
            parts += [(indices, index) for index in indices.indices.values() if index.entries]
    for number, (stream, index) in enumerate(parts, start=1):
        problems += [Problem(f"{stream.name}/{index.name}", what) for what in _check_part(stream, index, full)]
        on_part(number, len(parts))
    return sum(len(index.entries) for _, index in parts), problems


def _read_indices(folder: Path) -> tuple[CachedStream | None, list[Problem]]:
    try:
        return CachedStream(folder), []
    except CacheError as error:
        return None, [Problem(folder.name, str(error))]


def _check_part(stream: CachedStream, index: Index, full: bool) -> Iterator[str]:
    """Yield what is wrong with a part."""
    backend = load_backend(index.backend)
    path = stream.path / (index.name + backend.suffix)
    remedy = f"Delete {index.name}.json and run the same extract again."
    try:
        part = backend.open(path)
    except (OSError, ValueError, KeyError) as error:
        yield f"it cannot be opened: {error}. {remedy}"
        return
    try:
        arrays = {name: part.array(name) for name in sorted(index.arrays) if name != "frames"}
        for name, values in arrays.items():
            declared = index.arrays[name]
            if [str(values.dtype), list(values.shape)] != [declared["dtype"], declared["shape"]]:
                yield (
                    f"array {name!r} is {values.dtype} {values.shape}, the index says {declared['dtype']} "
                    f"{tuple(declared['shape'])}. {remedy}"
                )
                return
        for position, entry in enumerate(index.entries):
            frames = None
            if index.tier == "frames":
                stop = entry.start + entry.num_frames
                frames = part.frames(entry.start, stop if full else min(stop, entry.start + 1))
            if not full:
                continue
            if frames is not None and frames.shape[1] != entry.num_frames:
                yield f"{entry.id!r} has {frames.shape[1]} frames, the index says {entry.num_frames}. {remedy}"
            elif checksum(frames, _rows(stream, arrays, index, position)) != entry.checksum:
                yield f"the bytes of {entry.id!r} changed since they were written. {remedy}"
    except (OSError, ValueError, KeyError) as error:
        yield f"it cannot be read: {error}. {remedy}"
    finally:
        part.close()


def _rows(stream: CachedStream, arrays: dict[str, np.ndarray], index: Index, position: int) -> list[np.ndarray]:
    """Return one utterance's rows of every array, sorted by name, as its checksum was taken over them."""
    entry = index.entries[position]
    frames = slice(entry.start, entry.start + entry.num_frames)
    return [
        values[frames] if name in stream.spec.frame_arrays else values[position : position + 1]
        for name, values in arrays.items()
        if name != "offsets"
    ]


@dataclass(frozen=True)
class Coverage:
    """What one stream holds of a manifest.

    Attributes:
        stream: full name.
        present: ids held.
        failed: id to reason.
        missing: ids never computed.
    """

    stream: str
    present: Sequence[str]
    failed: dict[str, str]
    missing: Sequence[str]


def coverage(cache: Cache, manifest: Manifest) -> list[Coverage]:
    """Return, for each stream, which utterances of a manifest it holds."""
    result = []
    for name in cache:
        stream = cache[name]
        failures = stream.failures
        present = [item for item in manifest.ids if item in stream]
        failed = {item: failures[item] for item in manifest.ids if item in failures}
        missing = [item for item in manifest.ids if item not in stream and item not in failed]
        result.append(Coverage(name, present, failed, missing))
    return result
