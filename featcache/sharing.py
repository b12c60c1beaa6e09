"""Several extractions at once into one cache, in processes that know nothing of each other.

Each claims a part before it reads it, and goes on with the next one where another has claimed it. It comes back to
that at the end: by then the part was committed, or who had claimed it died, and the part is computed after all. What
others committed since the plan was made is compared with the inputs as they are, as a plan does it, in threads of its
own while the model runs. Failures that the cache told before are tried again by one of them.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from pathlib import Path

from featcache import claims
from featcache.claims import Claim
from featcache.errors import FeatcacheError
from featcache.files import canonical_json
from featcache.index import Entry, Index
from featcache.plan import Input, Item, Plan

_AGAIN_S = 0.2


@dataclass(frozen=True)
class Share:
    """A part for this process to compute.

    Attributes:
        number: its place in the plan.
        items: what of it nobody committed meanwhile.
        claim: that no other process computes it; ends with :meth:`close`, when it is committed.
        again: whether failures that the cache told before are among them.
    """

    number: int
    items: list[Item]
    claim: Claim
    again: bool

    def close(self) -> None:
        """Release the claim."""
        self.claim.release(tried=self.again)


class Sharing:
    """Hands out the parts of a plan that no other process computes. Close it: claims end with it.

    Args:
        plan: what is to be computed.
        folder: the stream's folder in the cache.
        tier: ``"frames"`` or ``"stats"``.
        read: reads what is fed to the stream for an utterance; called in threads.
        on_elsewhere: called with what other processes computed since, and why where it failed.
        on_wait: called several times a second while others hold all that is left, or it is still compared.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        tier: str,
        read: Callable[[Item], Input | FeatcacheError],
        on_elsewhere: Callable[[Item, str | None], None],
        on_wait: Callable[[], None],
    ) -> None:
        self._aside = folder.parent / claims.ASIDE
        self._folder = folder
        self._left = deque(enumerate(plan.parts))
        self._wanted = {item.utterance.id: item for item in plan.items}
        self._recorded = plan.recorded
        self._tried = plan.tried
        self._tier = tier
        self._seen = set(plan.seen)
        self._read = read
        self._on_elsewhere = on_elsewhere
        self._on_wait = on_wait
        self._claims: list[Claim] = []
        self._entries: dict[str, Entry] = {}
        self._readers = ThreadPoolExecutor(2, "compare")
        self._same: dict[Entry, Future[bool]] = {}
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
                claim = self._take(self._name(part))
                if claim is None:
                    self._left.append((number, part))
                    continue
                self.look()
                if self._comparing(part):
                    self._left.append((number, part))
                elif items := self._missing(part):
                    for item in part:  # what this process commits is not compared
                        del self._wanted[item.utterance.id]
                    return Share(number, items, claim, any(item.utterance.id in self._recorded for item in items))
                claim.release()
            if not self._left or not wait:
                return None
            self._pause()

    def all_at_once(self) -> None:
        """Claim everything, for streams that compute the whole corpus at once, and drop what is there by then."""
        # By no utterance: what is left when another process begins is no longer what was left for the first.
        while self._take(self._name([])) is None:
            self._pause()
        self.look()
        while self._comparing(self.items):
            self._pause()
        self._left = deque((number, items) for number, part in self._left if (items := self._missing(part)))

    @property
    def items(self) -> list[Item]:
        """Every utterance of parts that were not handed out."""
        return [item for _, part in self._left for item in part]

    def close(self) -> None:
        """Release every claim."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        for claim in self._claims:
            claim.release()

    def look(self) -> None:
        """Read what was committed since the last look, and begin to compare it."""
        for name in sorted(set(_index_names(self._folder)) - self._seen):
            index = Index.read(self._folder / f"{name}.json")
            self._seen.add(name)
            for entry in index.entries if index.tier in ("frames", self._tier) else ():
                if entry.id not in self._entries or entry.generation > self._entries[entry.id].generation:
                    self._entries[entry.id] = entry
                    if entry.id in self._wanted:
                        self._same[entry] = self._readers.submit(self._same_input, self._wanted[entry.id], entry)
            for one, reason in index.failures.items():
                self.failures[one] = max(
                    self.failures.get(one, (0, "")), (index.failed_generations.get(one, 0), reason)
                )

    def _pause(self) -> None:
        """Wait a little, for others or for comparisons under way."""
        self._on_wait()
        comparing = [one for one in self._same.values() if not one.done()]
        if comparing:
            wait_for(comparing, _AGAIN_S)
        else:
            time.sleep(_AGAIN_S)
        self.look()

    def _name(self, part: Sequence[Item]) -> str:
        what = [self._folder.name, self._tier, [(item.utterance.id, item.generation) for item in part]]
        return hashlib.sha256(canonical_json(what)).hexdigest()[:16]

    def _take(self, name: str) -> Claim | None:
        claim = claims.take(self._aside, name)
        if claim is not None:
            self._claims.append(claim)
        return claim

    def _comparing(self, part: Sequence[Item]) -> bool:
        """Say whether any of a part was committed meanwhile and is not compared yet."""
        entries = (self._entries.get(item.utterance.id) for item in part)
        return any(entry is not None and not self._same[entry].done() for entry in entries)

    def _missing(self, part: Sequence[Item]) -> list[Item]:
        """Return what of a part nobody did since the plan was made."""
        tried = self._name(part) in claims.tried(self._aside) - self._tried
        missing = []
        for item in part:
            name = item.utterance.id
            entry = self._entries.get(name)
            generation, reason = self.failures.get(name, (-1, ""))
            if entry is not None and entry.generation >= item.generation and entry.generation >= generation:
                if self._same[entry].result():
                    self._on_elsewhere(item, None)
                    continue
                item = replace(item, generation=entry.generation + 1)
            elif generation >= item.generation:
                self._on_elsewhere(item, reason)
                continue
            elif tried and name in self._recorded:
                self._on_elsewhere(item, self._recorded[name])
                continue
            missing.append(item)
        return missing

    def _same_input(self, item: Item, entry: Entry) -> bool:
        read = self._read(item)
        return isinstance(read, Input) and read.digest == entry.input  # computing it names what is wrong


def _index_names(folder: Path) -> list[str]:
    names = os.listdir(folder) if folder.is_dir() else []
    return [name[:-5] for name in names if name.startswith("part-") and name.endswith(".json")]
