"""Manifest x stream -> parts.

Three stages overlap: threads decode the next part, this thread runs the model, another thread writes the part
before. At most three parts are in memory, whatever the size of the corpus. An utterance that cannot be computed
fails alone; its reason is kept in the index and a later run tries it again.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from featcache import dtypes
from featcache.backend import load_backend
from featcache.cache import Cache, CachedStream, read_spec
from featcache.catalogue import renew_catalogue
from featcache.checkpoints import COMPUTE_DTYPES
from featcache.commit import Stored, StreamWriter, remove_abandoned, store, workplace
from featcache.errors import CacheError, ConfigError, FeatcacheError, StreamError
from featcache.manifest import Manifest
from featcache.plan import Input, Item, Plan, make_plan, stream_input
from featcache.stream import EXACT_DTYPES, Context, Extractor, Features, Stream, StreamSpec

TIERS = ("frames", "stats")
_SPARE_BYTES = 64 * 2**20
_SHOWN_FAILURES = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to compute and store; none of it but the two dtypes decides a number.

    Attributes:
        backend: plug-in that writes parts.
        dtype: type that frames are stored in.
        compute_dtype: type that models compute in.
        tier: ``"frames"``, or ``"stats"`` to keep only mean and standard deviation.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``.
        batch_size: most utterances in a batch.
        compress: smaller parts, which cannot be mapped into memory.
        workers: processes for streams that use several, such as aligners; 0 is one for each core.
    """

    backend: str = "zarr"
    dtype: str = "float16"
    compute_dtype: str = "float32"
    tier: str = "frames"
    device: str = "auto"
    batch_size: int = 8
    compress: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise ConfigError(f"There is no tier {self.tier!r}. Choose one of: {', '.join(TIERS)}.")
        if self.batch_size < 1:
            raise ConfigError(f"The batch size must be at least 1, got {self.batch_size}.")
        if self.workers < 0:
            raise ConfigError(f"The number of workers must be 0 (one for each core) or more, got {self.workers}.")
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ConfigError(
                f"Models cannot compute in {self.compute_dtype!r}. Use one of: {', '.join(COMPUTE_DTYPES)}."
            )
        dtypes.check(self.dtype)


@dataclass
class Summary:
    """What an extraction did.

    Attributes:
        stream: full name of the stream.
        computed: ids computed now.
        present: ids that were there already.
        changed: id to why it was computed again.
        others: streams of the same kind that the cache holds, with what makes this one another.
        failures: id to reason.
        num_bytes: bytes of feature arrays written.
    """

    stream: str
    computed: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0


def resolve_device(device: str) -> str:
    """Return the device to use: ``"auto"`` is a GPU where there is one.

    Raises:
        ConfigError: no such device on this machine.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"There is no device {device!r}. Use auto, cpu, cuda or cuda:N.") from None
    if kind.type not in ("cpu", "cuda"):
        raise ConfigError(f"The device {device!r} is not supported. Use auto, cpu, cuda or cuda:N.")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"There is no device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device


def context(manifest: Manifest, cache: Path, options: Options, made: Mapping[str, str] | None = None) -> Context:
    """Return where a stream works; `made` is kind to full name, of streams that the same command made before."""
    return Context(cache, manifest, options.workers or len(os.sched_getaffinity(0)), made or {})


def plan_stream(
    manifest: Manifest,
    cache: Path,
    stream: Stream,
    options: Options,
    on_checked: Callable[[int], None] = lambda _: None,
    made: Mapping[str, str] | None = None,
) -> tuple[Stream, StreamSpec, CachedStream | None, Plan]:
    """Return the stream bound to its place, its spec, what the cache holds of it, and what is to be computed."""
    load_backend(options.backend)
    if cache.exists() and not cache.is_dir():
        raise CacheError(f"{str(cache)!r} is a file. Give --cache a folder.")
    stream = stream.bind(context(manifest, cache, options, made))
    spec = stream.spec(options.dtype, options.compute_dtype)
    folder = cache.absolute() / spec.name
    # By its own spec rather than the one in the folder: that file may be lost, and the parts are none the worse.
    cached = CachedStream(folder, spec) if any(folder.glob("part-*.json")) else None
    return stream, spec, cached, make_plan(manifest, stream, spec, cached, _tier(spec, options), on_checked)


def _tier(spec: StreamSpec, options: Options) -> str:
    """Return the tier to keep: ids and times have no stats, so they are kept whole."""
    return "frames" if spec.dtype in EXACT_DTYPES else options.tier


def different_streams(cache: Path, spec: StreamSpec) -> dict[str, list[str]]:
    """Return the streams of a spec's kind that a cache holds, each with the lines that make the spec another."""
    names = [name for name in Cache(cache) if name.rpartition("-")[0] == spec.kind and name != spec.name]
    return {name: spec.differences(read_spec(cache / name)) for name in names}


def extract(
    manifest: Manifest,
    cache: str | Path,
    stream: Stream,
    options: Options = Options(),
    on_planned: Callable[[Plan], None] = lambda _: None,
    on_done: Callable[[int, float], None] = lambda *_: None,
    on_checked: Callable[[int], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
    made: Mapping[str, str] | None = None,
) -> Summary:
    """Compute what a cache lacks of a stream, and commit it part by part.

    Args:
        manifest: the utterances wanted.
        cache: the cache's folder; made when missing.
        stream: the stream wanted.
        options: how to compute and store.
        on_planned: called once with the plan, before a model loads.
        on_done: called with a number of utterances and their audio in seconds, as they are computed.
        on_checked: called with 1 for each utterance whose input was compared with the cache.
        on_message: called with lines of progress of streams that work on the whole corpus at once.
        made: kind to full name, of streams that the same command made before; what is made of them finds them so.

    Raises:
        CacheError: the cache cannot be written, or the disk has no room for the plan.
        CheckpointError: the model cannot be loaded.
    """
    cache = Path(cache)
    stream, spec, cached, plan = plan_stream(manifest, cache, stream, options, on_checked, made)
    on_planned(plan)
    summary = Summary(spec.name, present=plan.present, changed=plan.changed, failures=dict(plan.failures))
    if cached is None:
        summary.others = different_streams(Path(cache), spec)
    recorded = cached.failures if cached is not None else {}
    unrecorded = any(recorded.get(name) != reason for name, reason in plan.failures.items())
    spec_is_lost = cached is not None and not (cached.path / "stream.json").exists()
    if plan.parts:
        _check_room(cache, plan)
        extractor = stream.load(resolve_device(options.device), options.compute_dtype)
    if plan.parts or unrecorded or spec_is_lost:
        with StreamWriter(cache, spec, options.backend, _tier(spec, options), options.compress) as writer:
            if spec_is_lost:
                writer.write_spec()
            try:
                if plan.parts:
                    with closing(extractor):
                        run = _Run(manifest, stream, spec, options, extractor, writer, recorded, summary, on_done)
                        run.prepare(plan, on_message)
                        run.run(plan)
                elif unrecorded:
                    writer.commit([], plan.failures, plan.generations)
            finally:
                _renew_catalogue(cache, spec)
    else:
        remove_abandoned(cache)
        _renew_catalogue(cache, spec)
    summary.changed = {name: why for name, why in plan.changed.items() if name not in summary.failures}
    return summary


@dataclass
class _Run:
    """The three overlapping stages of one extraction."""

    manifest: Manifest
    stream: Stream
    spec: StreamSpec
    options: Options
    extractor: Extractor
    writer: StreamWriter
    recorded: Mapping[str, str]
    summary: Summary
    on_done: Callable[[int, float], None]
    num_failed: int = 0

    def prepare(self, plan: Plan, on_message: Callable[[str], None]) -> None:
        """Let the extractor see everything at once; what cannot be read is left for :meth:`run` to name."""
        read = (self._read(item) for item in plan.items)
        self.extractor.prepare((one.value for one in read if isinstance(one, Input)), on_message)

    def run(self, plan: Plan) -> None:
        """Compute and commit every part of the plan; an interruption loses the part in hand, and no other."""
        new = {name: why for name, why in plan.failures.items() if self.recorded.get(name) != why}
        generations = plan.generations | {item.utterance.id: item.generation for item in plan.items}
        with ExitStack() as stack:
            writers = stack.enter_context(ThreadPoolExecutor(1, "write"))
            pending: Future[None] | None = None
            for part, inputs in self._decoded(plan.parts):
                failures, new = new, {}
                stored = self._compute(part, inputs, failures)
                if pending is not None:
                    pending.result()
                pending = writers.submit(self._commit, stored, failures, generations)
            if pending is not None:
                pending.result()

    def _decoded(
        self, parts: Sequence[Sequence[Item]]
    ) -> Iterator[tuple[Sequence[Item], list[Input | FeatcacheError]]]:
        """Yield each part with its inputs, reading the next one meanwhile."""
        with ThreadPoolExecutor(2, "decode") as readers:

            def submit(part: Sequence[Item]) -> list[Future[Input | FeatcacheError]]:
                return [readers.submit(self._read, item) for item in part]

            try:
                ahead = submit(parts[0])
                for number, part in enumerate(parts):
                    inputs = [future.result() for future in ahead]
                    ahead = submit(parts[number + 1]) if number + 1 < len(parts) else []
                    yield part, inputs
            finally:
                readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, item: Item) -> Input | FeatcacheError:
        try:
            return stream_input(self.stream, self.manifest, item.utterance)
        except FeatcacheError as error:
            return error

    def _compute(
        self, part: Sequence[Item], inputs: Sequence[Input | FeatcacheError], failures: dict[str, str]
    ) -> list[Stored]:
        """Run one part through the model, batch by batch; what fails goes to `failures`."""
        good: list[tuple[Item, Input]] = []
        for item, read in zip(part, inputs, strict=True):
            if isinstance(read, FeatcacheError):
                self._fail(item, str(read), failures)
                self.on_done(1, self._audio_s([item]))
            else:
                good.append((item, read))
        stored: dict[str, Stored] = {}
        for batch in self.stream.batches([len(read.value) for _, read in good], self.options.batch_size):
            chosen = [good[index] for index in batch]
            for (item, read), features in zip(chosen, self._extract([read for _, read in chosen]), strict=True):
                if isinstance(features, Exception):
                    self._fail(item, str(features), failures)
                    continue
                try:
                    self._check_length(read, features)
                    stored[item.utterance.id] = store(
                        item.utterance.id, read.digest, item.generation, features, self.spec, self.writer.tier
                    )
                except FeatcacheError as error:
                    self._fail(item, str(error), failures)
            self.on_done(len(chosen), self._audio_s([item for item, _ in chosen]))
        return [stored[item.utterance.id] for item in part if item.utterance.id in stored]

    def _extract(self, inputs: Sequence[Input]) -> Sequence[Features | Exception]:
        """Run one batch; when it fails, one at a time, so that only what is at fault fails."""
        try:
            return self.extractor.extract([read.value for read in inputs])
        except FeatcacheError as error:
            if len(inputs) == 1:
                return [error]
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                error.add_note(f"while stream {self.spec.name} computed a batch of {len(inputs)} utterances")
                raise
            if len(inputs) == 1:
                return [
                    StreamError(f"memory ran out: {error}. Leave it out, cut it, or compute it on a larger device.")
                ]
        # Outside the except blocks, whose error would keep the failed batch's tensors alive.
        return [result for read in inputs for result in self._extract([read])]

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
        if self.recorded.get(name) != reason:
            failures[name] = reason

    def _audio_s(self, items: Sequence[Item]) -> float:
        return 0.0 if self.stream.input == "text" else sum(item.length for item in items) / self.stream.sample_rate_hz

    def _commit(self, stored: Sequence[Stored], failures: Mapping[str, str], generations: Mapping[str, int]) -> None:
        if not stored and not failures:
            return
        self.writer.commit(stored, failures, generations)
        self.summary.computed += [item.id for item in stored]
        for item in stored:
            arrays = [*item.frame_arrays.values(), *item.utterance_arrays.values()]
            self.summary.num_bytes += sum(array.nbytes for array in arrays)
            self.summary.num_bytes += 0 if item.frames is None else item.frames.nbytes


def _is_out_of_memory(error: Exception) -> bool:
    """Say whether memory ran out, on a GPU or, where torch raises a bare RuntimeError, on the CPU."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _renew_catalogue(cache: Path, spec: StreamSpec) -> None:
    """Renew the views for other readers; where that fails, the features themselves are whole all the same."""
    if not (cache / spec.name / "stream.json").exists():
        return
    try:
        renew_catalogue(cache, spec.name, partial(workplace, cache))
    except (OSError, ValueError) as error:  # the disk, or a damaged part, which is for `verify` to name
        logger.warning("%s: the views for other programs could not be written: %s", spec.name, error)


def _check_room(cache: Path, plan: Plan) -> None:
    place = cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < plan.num_bytes + _SPARE_BYTES:
        raise CacheError(
            f"The extraction needs about {plan.num_bytes / 1e9:.2f} GB; {str(place)!r} has {free / 1e9:.2f} GB free. "
            "Make room, use another --cache, or keep less with --tier stats or --dtype int8. Nothing was computed."
        )
