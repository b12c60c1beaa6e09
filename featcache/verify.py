"""Checking a cache: what its indices promise against what its parts hold; and what it holds of a manifest."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featcache.cache import DESCRIPTION, Cache, CachedStream, read_spec
from featcache.catalogue import damaged_view, renew_catalogue
from featcache.claims import workplace
from featcache.commit import StreamWriter
from featcache.errors import CacheError, FeatcacheError
from featcache.files import sync
from featcache.index import Index
from featcache.integrity import part_problems
from featcache.manifest import Manifest, Utterance
from featcache.plan import changed_input, read_input
from featcache.sources import changed_sources
from featcache.stream import StreamSpec

_DROPPED = "what was computed of it was damaged and dropped; run the same extract again"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: ``stream`` or ``stream/part``.
        what: a sentence, naming the utterance where it concerns one.
        file: what holds the promise that is broken: an index, a stream's description, or a view for other programs.
    """

    where: str
    what: str
    file: Path


def verify(
    cache: str | Path, full: bool = True, on_part: Callable[[int, int], None] = lambda *_: None
) -> tuple[int, list[Problem]]:
    """Check every stream of a cache.

    Args:
        cache: the cache's folder.
        full: compare the checksum of every utterance with its bytes, and find numbers that are not finite; otherwise
            counts, shapes, types, offsets and ids.
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
    parts: list[tuple[Path, Index, StreamSpec]] = []
    for folder in _streams(cache):
        indices, bad = _read_indices(folder)
        problems += bad
        try:
            spec = read_spec(folder)
        except CacheError as error:
            problems.append(Problem(folder.name, f"{error} Its parts cannot be checked before.", folder / DESCRIPTION))
        else:
            parts += [(folder, index, spec) for index in indices if index.entries]
            if full and not bad and (view := damaged_view(CachedStream(folder, spec))):
                what = "it is not the view of the parts that it says it is. Delete it: the next extract writes it anew."
                problems.append(Problem(f"{folder.name}/{view.name}", what, view))
    for number, (folder, index, spec) in enumerate(parts, start=1):
        found = list(part_problems(folder, index, spec, full))
        remedy = f"Delete {index.name}.json and run the same extract again: only that part is computed again."
        where, file = f"{folder.name}/{index.name}", folder / f"{index.name}.json"
        problems += [Problem(where, f"{what}. {remedy}", file) for what in found]
        on_part(number, len(parts))
    return sum(len(index.entries) for _, index, _ in parts), problems


def repair(cache: str | Path, problems: Sequence[Problem]) -> list[str]:
    """Drop what :func:`verify` found broken, so that the same extract computes it again, and that alone.

    Nothing that is whole is touched. Where an earlier part holds an utterance for an input that it no longer has, the
    utterance becomes a failure, so that the earlier features are not taken for the present ones meanwhile.

    Args:
        cache: the cache's folder.
        problems: what was found.

    Returns:
        A sentence for each file that was dropped.

    Raises:
        CacheError: the cache cannot be written to.
    """
    cache = Path(cache)
    dropped = []
    for file in dict.fromkeys(problem.file for problem in problems):
        try:
            dropped.append(_drop(cache, file))
        except OSError as error:
            raise CacheError(f"{str(file)!r} cannot be dropped: {error.strerror or error}.") from error
    for folder in dict.fromkeys(problem.file.parent for problem in problems):
        if (folder / DESCRIPTION).exists():
            with suppress(OSError, ValueError, CacheError):  # views of what is left; the next extract renews them too
                renew_catalogue(cache, folder.name, partial(workplace, cache))
    return dropped


def _drop(cache: Path, file: Path) -> str:
    """Take back a promise, then remove what it was about."""
    folder = file.parent
    if file.name == DESCRIPTION:
        file.unlink(missing_ok=True)
        return f"{folder.name}/{DESCRIPTION}: the same extract writes it anew, and computes nothing."
    if not file.name.endswith(".json"):
        file.unlink(missing_ok=True)
        return f"{folder.name}/{file.name}: it is written anew from the parts."
    try:
        index: Index | None = Index.read(file)
    except (CacheError, OSError):
        index = None
    if index is not None:
        _mark_superseded(cache, folder, index)
    file.unlink(missing_ok=True)
    sync(folder, below=False)
    for path in folder.glob(f"{file.stem}*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.stem == file.stem:
            path.unlink()
    told = "its utterances" if index is None else f"{len(index.entries)} utterances"
    return f"{folder.name}/{file.stem}: {told}; the same extract computes them again."


def _mark_superseded(cache: Path, folder: Path, index: Index) -> None:
    """Record as failures the utterances of a part whose earlier input another part still holds."""
    generations = {entry.id: entry.generation for entry in index.entries if entry.generation}
    earlier = {
        entry.id
        for other in _read_indices(folder)[0]
        for entry in other.entries
        if other.name != index.name and entry.id in generations
    }
    if not earlier:
        return
    with StreamWriter(cache, read_spec(folder), index.backend, index.tier) as writer:
        writer.commit([], dict.fromkeys(sorted(earlier), _DROPPED), generations)


def _streams(cache: Path) -> list[Path]:
    """Return the folders of streams, those that lost their description among them."""
    return sorted({path.parent for pattern in (DESCRIPTION, "part-*.json") for path in cache.glob(f"*/{pattern}")})


def _read_indices(folder: Path) -> tuple[list[Index], list[Problem]]:
    """Return the indices that can be read, and a problem for each other one."""
    indices, problems = [], []
    for path in sorted(folder.glob("part-*.json")):
        try:
            indices.append(Index.read(path))
        except (CacheError, OSError) as error:
            problems.append(Problem(f"{folder.name}/{path.stem}", str(error), path))
    return indices, problems


@dataclass(frozen=True)
class Coverage:
    """What one stream holds of a manifest.

    Attributes:
        stream: full name.
        present: ids held.
        changed: id to reason, of those held for another input than the manifest's now, or one that is unusable now.
        failed: id to reason.
        missing: ids never computed.
    """

    stream: str
    present: Sequence[str]
    changed: dict[str, str]
    failed: dict[str, str]
    missing: Sequence[str]


def coverage(
    cache: Cache, manifest: Manifest, inputs: bool = True, on_checked: Callable[[int], None] = lambda _: None
) -> list[Coverage]:
    """Return, for each stream, which utterances of a manifest it holds.

    Args:
        cache: the cache.
        manifest: the utterances.
        inputs: read every recording and text, and compare it with what the features were computed from.
        on_checked: called with 1 for each input compared.
    """
    result = []
    for name in cache:
        stream = cache[name]
        failures = stream.failures
        held = [item for item in manifest.ids if item in stream]
        reads_cache = stream.spec.input == "cache"
        changed = changed_inputs(stream, manifest.select(held), on_checked) if inputs and not reads_cache else {}
        changed = changed_sources(cache, stream, held) | changed
        changed = {item: reason for item, reason in changed.items() if item not in failures}
        present = [item for item in held if item not in changed and item not in failures]
        failed = {item: failures[item] for item in manifest.ids if item in failures}
        missing = [item for item in manifest.ids if item not in stream and item not in failed]
        result.append(Coverage(name, present, changed, failed, missing))
    return result


def changed_inputs(
    stream: CachedStream, manifest: Manifest, on_checked: Callable[[int], None] = lambda _: None
) -> dict[str, str]:
    """Return id to reason, of utterances whose audio or text is no longer what their features were computed from."""

    def compare(utterance: Utterance) -> str | None:
        try:
            read = read_input(stream.spec.input, stream.spec.sample_rate_hz, manifest, utterance)
        except FeatcacheError as error:
            return str(error)
        before = stream.locate(utterance.id).entry.input.partition("+")[0]  # an attachment is not the manifest's
        return None if read.digest == before else changed_input(stream.spec.input, before, read.digest, read.resampler)

    changed: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        for utterance, reason in zip(manifest, pool.map(compare, manifest), strict=True):
            on_checked(1)
            if reason is not None:
                changed[utterance.id] = reason
    return changed
