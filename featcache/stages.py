"""The stages of an extraction, which overlap.

Threads decode the next part, this thread runs the model, threads bring what it gave into its stored form, another
thread writes the part before. At most three parts are in memory, whatever the size of the corpus.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from featcache.commit import Stored, StreamWriter, store
from featcache.errors import FeatcacheError, StreamError
from featcache.files import listed
from featcache.manifest import Manifest
from featcache.plan import Input, Item, Plan, stream_input
from featcache.sharing import Share, Sharing
from featcache.staging import StagedExtractor
from featcache.stream import Extractor, Features, Stream, StreamSpec

if TYPE_CHECKING:
    from featcache.extract import Options, Summary

_SHOWN_FAILURES = 10
_MOST_STORING = 8  # threads
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")  # the CPU, CUDA, its libraries

logger = logging.getLogger(__name__)

_Read = tuple[Item, Input]


@dataclass
class Stages:
    """The stages of one extraction.

    Attributes:
        plan: what to compute.
        manifest: the utterances wanted.
        stream: the stream wanted.
        spec: what decides its numbers.
        options: how to compute and store.
        extractor: its loaded model.
        writer: where parts are committed.
        summary: what was done is added to it.
        on_done: see :func:`featcache.extract.extract`.
        on_elsewhere: likewise.
    """

    plan: Plan
    manifest: Manifest
    stream: Stream
    spec: StreamSpec
    options: "Options"
    extractor: Extractor
    writer: StreamWriter
    summary: "Summary"
    on_done: Callable[[int, float], None]
    on_elsewhere: Callable[[int, float], None]
    num_failed: int = 0

    def run(self, on_message: Callable[[str], None]) -> None:
        """Compute and commit every part of the plan; an interruption loses the part in hand, and no other.

        Args:
            on_message: called with lines of progress.
        """
        with ExitStack() as stack:
            shares = stack.enter_context(closing(self._sharing()))
            if type(self.extractor).prepare is not Extractor.prepare:
                shares.all_at_once()
                if shares.items:
                    # What cannot be read is left for the parts to name.
                    read = (self._read(item) for item in shares.items)
                    self.extractor.prepare((one.value for one in read if isinstance(one, Input)), on_message)
            writers = stack.enter_context(ThreadPoolExecutor(1, "write"))
            storers = stack.enter_context(ThreadPoolExecutor(min(_MOST_STORING, len(os.sched_getaffinity(0))), "store"))
            pending: Future[None] | None = None
            for share, inputs in self._decoded(shares):
                # Those of the plan go with its first part, whoever computes that.
                failures = self._unrecorded(shares) if share.number == 0 else {}
                stored = self._compute(share.items, inputs, failures, storers)
                if pending is not None:
                    pending.result()
                pending = writers.submit(self._commit, stored, failures, share)
            if pending is not None:
                pending.result()
            shares.look()
            left = self._unrecorded(shares)
            if left:
                self.writer.commit([], left, self.plan.generations)

    def _sharing(self) -> Sharing:
        def elsewhere(item: Item, failure: str | None) -> None:
            if failure is None:
                self.summary.elsewhere.append(item.utterance.id)
            else:
                self.summary.failures[item.utterance.id] = failure
            self.on_elsewhere(1, self._audio_s([item]))

        return Sharing(
            self.plan, self.writer.folder, self.writer.tier, self._read, elsewhere, lambda: self.on_done(0, 0.0)
        )

    def _unrecorded(self, shares: Sharing) -> dict[str, str]:
        """Return the failures of the plan that no index tells yet."""
        told = {**self.plan.recorded, **{name: reason for name, (_, reason) in shares.failures.items()}}
        return {name: reason for name, reason in self.plan.failures.items() if told.get(name) != reason}

    def _decoded(self, shares: Sharing) -> Iterator[tuple[Share, list[Input | FeatcacheError]]]:
        """Yield each part with its inputs, reading the next one meanwhile."""
        with ThreadPoolExecutor(2, "decode") as readers:

            def begin(share: Share | None) -> tuple[Share, list[Future[Input | FeatcacheError]]] | None:
                return None if share is None else (share, [readers.submit(self._read, item) for item in share.items])

            try:
                ahead = begin(shares.next())
                while ahead is not None:
                    share, futures = ahead
                    inputs = [future.result() for future in futures]
                    ahead = begin(shares.next(wait=False))
                    yield share, inputs
                    ahead = ahead or begin(shares.next())
            finally:
                readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, item: Item) -> Input | FeatcacheError:
        try:
            return stream_input(self.stream, self.manifest, item.utterance)
        except FeatcacheError as error:
            return error
        except MemoryError as error:
            return _memory_ran_out(error)

    def _compute(
        self,
        part: Sequence[Item],
        inputs: Sequence[Input | FeatcacheError],
        failures: dict[str, str],
        storers: Executor,
    ) -> list[Stored]:
        """Run one part through the model, batch by batch; what fails goes to `failures`."""
        good: list[_Read] = []
        for item, read in zip(part, inputs, strict=True):
            if isinstance(read, FeatcacheError):
                self._fail(item, str(read), failures)
                self.on_done(1, self._audio_s([item]))
            else:
                good.append((item, read))
        stored: dict[str, Stored] = {}

        def finish(chosen: Sequence[_Read], results: Callable[[], Sequence[Features | Exception]]) -> None:
            pairs = zip(chosen, self._wait(chosen, results), strict=True)
            for (item, _), one in zip(chosen, storers.map(self._store, pairs), strict=True):
                if isinstance(one, Stored):
                    stored[one.id] = one
                else:
                    self._fail(item, str(one), failures)
            self.on_done(len(chosen), self._audio_s([item for item, _ in chosen]))

        before: tuple[list[_Read], Callable[[], Sequence[Features | Exception]]] | None = None
        for batch in self.stream.batches([len(read.value) for _, read in good], self.options.batch_size):
            chosen = [good[index] for index in batch]
            values = [read.value for _, read in chosen]
            results = self._start(values)
            if before is not None:  # which a GPU computed while this one was made ready
                finish(*before)
            before = None if results is None else (chosen, results)
            if results is None:
                finish(chosen, partial(self.extractor.extract, values))
        if before is not None:
            finish(*before)
        return [stored[item.utterance.id] for item in part if item.utterance.id in stored]

    def _start(self, values: Sequence[Any]) -> Callable[[], Sequence[Features | Exception]] | None:
        """Start a batch where the extractor can, and return what waits for it; otherwise None."""
        if isinstance(self.extractor, StagedExtractor):
            # What fails is tried again when nothing else runs, and fails then.
            with suppress(Exception):
                return self.extractor.start(values)
        return None

    def _wait(
        self, chosen: Sequence[_Read], results: Callable[[], Sequence[Features | Exception]]
    ) -> Sequence[Features | Exception]:
        """Wait for a batch; when it fails, run it one at a time, so that only what is at fault fails."""
        try:
            return results()
        except FeatcacheError as error:
            if len(chosen) == 1:
                return [error]
        except Exception as error:
            if not _is_out_of_memory(error):
                names = listed(item.utterance.id for item, _ in chosen)
                error.add_note(f"while stream {self.spec.name} computed a batch of {len(chosen)} utterances: {names}")
                raise
            if len(chosen) == 1:
                return [_memory_ran_out(error)]
        # Outside the except blocks, whose error would keep the failed batch's tensors alive.
        return [
            result for one in chosen for result in self._wait([one], partial(self.extractor.extract, [one[1].value]))
        ]

    def _store(self, pair: tuple[_Read, Features | Exception]) -> Stored | Exception:
        """Check one utterance's features and bring them into their stored form; called in threads."""
        (item, read), features = pair
        if isinstance(features, Exception):
            return features
        try:
            self._check_length(read, features)
            return store(item.utterance.id, read.digest, item.generation, features, self.spec, self.writer.tier)
        except FeatcacheError as error:
            return error
        except MemoryError as error:
            return _memory_ran_out(error)

    def _check_length(self, read: Input, features: Features) -> None:
        """Refuse frames that disagree with the audio they are of."""
        expected = None if self.stream.input == "text" else self.stream.num_frames(len(read.value))
        if expected is not None and features.frames.shape[1] != expected:
            raise StreamError(
                f"it got {features.frames.shape[1]} frames where {len(read.value)} samples give {expected}. "
                f"This is a fault of the stream {self.spec.kind!r}, not of the recording; please report it."
            )

    def _fail(self, item: Item, reason: str, failures: dict[str, str]) -> None:
        name = item.utterance.id
        self.summary.failures[name] = reason
        self.num_failed += 1
        if self.num_failed <= _SHOWN_FAILURES:
            logger.warning("%s: %r failed: %s", self.spec.kind, name, reason)
        elif self.num_failed == _SHOWN_FAILURES + 1:
            logger.warning("%s: further failures are not shown here; the cache keeps them", self.spec.kind)
        if self.plan.recorded.get(name) != reason:
            failures[name] = reason

    def _audio_s(self, items: Sequence[Item]) -> float:
        return 0.0 if self.stream.input == "text" else sum(item.length for item in items) / self.stream.sample_rate_hz

    def _commit(self, stored: Sequence[Stored], failures: Mapping[str, str], share: Share) -> None:
        with closing(share):
            if not stored and not failures:
                return
            generations = {item.utterance.id: item.generation for item in share.items}
            self.writer.commit(stored, failures, self.plan.generations | generations)
        self.summary.computed += [item.id for item in stored]
        for item in stored:
            arrays = [*item.frame_arrays.values(), *item.utterance_arrays.values()]
            self.summary.num_bytes += sum(array.nbytes for array in arrays)
            self.summary.num_bytes += 0 if item.frames is None else item.frames.nbytes


def _is_out_of_memory(error: Exception) -> bool:
    """Say whether memory ran out; outside its own allocator, torch says so in a bare RuntimeError."""
    import torch

    if isinstance(error, RuntimeError):
        return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError)


def _memory_ran_out(error: Exception) -> StreamError:
    said = str(error).rstrip(".") or type(error).__name__
    return StreamError(f"memory ran out: {said}. Leave it out, cut it, or compute it on a larger device.")
