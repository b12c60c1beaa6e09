"""What a stream that is made of other streams was made of: digests of what these hold, and whether that changed."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from featcache.alignment import content_digest, read
from featcache.cache import Cache, CachedStream
from featcache.files import canonical_json
from featcache.index import Entry
from featcache.stream import StreamSpec


def sources_digest(entries: Iterable[tuple[str, Entry]]) -> str:
    """Return what identifies what some streams hold of one utterance.

    Args:
        entries: kind of each stream, and its entry.
    """
    known = sorted([kind, entry.input, entry.checksum] for kind, entry in entries)
    return blake2b(canonical_json(known), digest_size=16).hexdigest()


def changed_sources(cache: Cache, stream: CachedStream, ids: Sequence[str]) -> dict[str, str]:
    """Return id to reason, of utterances of which the cache no longer holds what a stream was made of.

    Args:
        cache: the cache.
        stream: a stream of it.
        ids: utterances that the stream holds.
    """
    settings = stream.spec.settings
    if isinstance(settings.get("alignment"), Mapping):
        return _changed_alignment(cache, stream, StreamSpec.from_json(settings["alignment"]).name, ids)
    if stream.spec.input == "cache":
        names = {kind: StreamSpec.from_json(spec).name for kind, spec in settings["sources"].items()}
        return _changed_entries(cache, stream, names, ids)
    return {}


def _changed_alignment(cache: Cache, stream: CachedStream, name: str, ids: Sequence[str]) -> dict[str, str]:
    if name not in cache:
        return {}
    source = cache[name]
    failures = source.failures
    changed = {}
    for item in ids:
        digest = stream.locate(item).entry.input.partition("+")[2]
        if item in failures or item not in source:
            changed[item] = "its alignment has failed since"
        elif content_digest(read(source, item)) != digest:
            changed[item] = "its alignment changed"
    return changed


def _changed_entries(
    cache: Cache, stream: CachedStream, names: Mapping[str, str], ids: Sequence[str]
) -> dict[str, str]:
    if any(name not in cache for name in names.values()):
        return {}  # what was made stays good where what it was made of was deleted
    sources = {kind: cache[name] for kind, name in names.items()}
    changed = {}
    for item in ids:
        entries = [(kind, source.locate(item).entry) for kind, source in sources.items() if item in source]
        if sources_digest(entries) != stream.locate(item).entry.input.partition("+")[0]:
            changed[item] = f"what it was made of ({', '.join(sorted(names.values()))}) changed"
    return changed
