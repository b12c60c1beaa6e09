"""Several extractions at once into one cache, in processes that know nothing of each other.

Each claims a part before it reads it, and goes on with the next one where another has claimed it. It comes back to
that at the end: by then the part was committed, or who had claimed it died, and the part is computed after all. What
others committed since the plan was made is compared with the inputs as they are, as a plan does it.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featcache import claims
from featcache.claims import Claim
from featcache.errors import FeatcacheError
from featcache.files import canonical_json
from featcache.index import Entry, Index
from featcache.manifest import Manifest
from featcache.plan import Item, stream_input
from featcache.stream import Stream

_AGAIN_S = 0.2


@dataclass(frozen=True)
class Share:
    """A part for this process to compute.

    Attributes:
        number: its place in the plan.
        items: what of it nobody committed meanwhile.
        claim: that no other process computes it; ends with :meth:`close`, when it is committed.
    """

    number: int
    items: list[Item]
    claim: Claim

    def close(self) -> None:
        """Release the claim."""
        self.claim.release()


class Sharing:
    """Hands out the parts of a plan that no other process computes. Close it: claims end with it.

    Args:
        cache: the cache's folder.
        folder: the stream's folder in it.
        parts: utterances of each part.
        manifest: where they are from.
        stream: what is computed.
        tier: ``"frames"`` or ``"stats"``.
        seen: names of the parts that the plan was made from.
        on_elsewhere: called with what other processes computed since, and why where it failed.
        on_wait: called several times a second while others hold all that is left.
    """

    def __init__(
        self,
        cache: Path,
        folder: Path,
        parts: Sequence[list[Item]],
        manifest: Manifest,
        stream: Stream,
        tier: str,
        seen: Iterable[str],
        on_elsewhere: Callable[[Item, str | None], None],
        on_wait: Callable[[], None],
    ) -> None:
        self._aside = cache / ".tmp"
        self._folder = folder
        self._left = deque(enumerate(parts))
        self._manifest = manifest
        self._stream = stream
        self._tier = tier
        self._seen = set(seen)
        self._on_elsewhere = on_elsewhere
        self._on_wait = on_wait
        self._claims: list[Claim] = []
        self._entries: dict[str, Entry] = {}
        self.failures: dict[str, tuple[int, str]] = {}
        """Id to generation and reason, of utterances that failed elsewhere."""

    def next(self, wait: bool = True) -> Share | None:
        """Return the next part to compute; None when none is left.

        Args:
            wait: wait for parts that others have claimed; otherwise None where there are no other ones.
        """
        while True:
            for _ in range(len(self._left)):
                number, part = self._left.popleft()
                claim = self._take(part)
                if claim is None:
                    self._left.append((number, part))
                    continue
                items = self._missing(part)
                if items:
                    return Share(number, items, claim)
                claim.release()
            if not self._left or not wait:
                return None
            self._on_wait()
            time.sleep(_AGAIN_S)

    def all_at_once(self) -> None:
        """Claim everything, for streams that compute the whole corpus at once, and drop what is there by then."""
        everything = [item for _, part in self._left for item in part]
        while self._take(everything, "all") is None:
            self._on_wait()
            time.sleep(_AGAIN_S)
        missing = {item.utterance.id: item for item in self._missing(everything)}
        narrowed = (
            (number, [missing[item.utterance.id] for item in part if item.utterance.id in missing])
            for number, part in self._left
        )
        self._left = deque((number, part) for number, part in narrowed if part)

    @property
    def items(self) -> list[Item]:
        """Every utterance of parts that were not handed out."""
        return [item for _, part in self._left for item in part]

    def close(self) -> None:
        """Release every claim."""
        for claim in self._claims:
            claim.release()

    def look(self) -> None:
        """Read what was committed since the last look."""
        for name in sorted(set(_index_names(self._folder)) - self._seen):
            index = Index.read(self._folder / f"{name}.json")
            self._seen.add(name)
            for entry in index.entries if index.tier in ("frames", self._tier) else ():
                if entry.id not in self._entries or entry.generation > self._entries[entry.id].generation:
                    self._entries[entry.id] = entry
            for one, reason in index.failures.items():
                self.failures[one] = max(
                    self.failures.get(one, (0, "")), (index.failed_generations.get(one, 0), reason)
                )

    def _take(self, part: Sequence[Item], kind: str = "part") -> Claim | None:
        # All at once may be a single part, which is then claimed again by itself.
        what = [kind, self._folder.name, self._tier, [(item.utterance.id, item.generation) for item in part]]
        claim = claims.take(self._aside, hashlib.sha256(canonical_json(what)).hexdigest()[:16])
        if claim is not None:
            self._claims.append(claim)
        return claim

    def _missing(self, part: Sequence[Item]) -> list[Item]:
        """Return what of a part nobody committed since the plan was made."""
        self.look()
        missing = []
        for item in part:
            entry = self._entries.get(item.utterance.id)
            generation, reason = self.failures.get(item.utterance.id, (-1, ""))
            if entry is not None and entry.generation >= item.generation and entry.generation >= generation:
                if self._same_input(item, entry):
                    self._on_elsewhere(item, None)
                    continue
                item = replace(item, generation=entry.generation + 1)
            elif generation >= item.generation:
                self._on_elsewhere(item, reason)
                continue
            missing.append(item)
        return missing

    def _same_input(self, item: Item, entry: Entry) -> bool:
        try:
            return stream_input(self._stream, self._manifest, item.utterance).digest == entry.input
        except FeatcacheError:
            return False  # computing it names what is wrong


def _index_names(folder: Path) -> list[str]:
    names = os.listdir(folder) if folder.is_dir() else []
    return [name[:-5] for name in names if name.startswith("part-") and name.endswith(".json")]
