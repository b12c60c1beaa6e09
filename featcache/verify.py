"""Checking a cache: what its indices promise against what its parts hold; and what it holds of a manifest."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featcache.cache import Cache, CachedStream
from featcache.errors import CacheError, FeatcacheError
from featcache.index import Index
from featcache.integrity import part_problems
from featcache.manifest import Manifest, Utterance
from featcache.plan import changed_input, read_input
from featcache.sources import changed_sources


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
        full: compare the checksum of every utterance with its bytes; otherwise shapes, types, offsets and ids.
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
        remedy = f"Delete {index.name}.json and run the same extract again: only that part is computed again."
        found = part_problems(stream.path, index, stream.spec.frame_arrays, full)
        problems += [Problem(f"{stream.name}/{index.name}", f"{what}. {remedy}") for what in found]
        on_part(number, len(parts))
    return sum(len(index.entries) for _, index in parts), problems


def _read_indices(folder: Path) -> tuple[CachedStream | None, list[Problem]]:
    try:
        return CachedStream(folder), []
    except CacheError as error:
        return None, [Problem(folder.name, str(error))]


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
            digest = read_input(stream.spec.input, stream.spec.sample_rate_hz, manifest, utterance).digest
        except FeatcacheError as error:
            return str(error)
        before = stream.locate(utterance.id).entry.input.partition("+")[0]  # an attachment is not the manifest's
        return None if digest == before else changed_input(stream.spec.input, before, digest)

    changed: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        for utterance, reason in zip(manifest, pool.map(compare, manifest), strict=True):
            on_checked(1)
            if reason is not None:
                changed[utterance.id] = reason
    return changed
