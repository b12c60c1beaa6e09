"""Extract streams into a cache: resolve every stream first, show the plan, then compute with a progress bar."""

import logging
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from featcache import registry
from featcache.cache import Cache
from featcache.errors import ProtocolError
from featcache.extract import Summary, context, different_streams, extract, plan_stream, resolve_device
from featcache.files import listed
from featcache.manifest import Manifest
from featcache.plan import Plan
from featcache.settings import build
from featcache.stream import Stream, StreamSpec
from featcache.tuned import PROVENANCE, fold_checkpoints
from heads.fold_files import read_folds
from pipelines import devices
from pipelines.config import ExtractConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """One stream of a dry run.

    Attributes:
        spec: what decides its numbers.
        plan: what would be computed.
        seconds: rough time to compute it; None where unknown.
        others: streams of the same kind that the cache holds, with what makes this one another.
    """

    spec: StreamSpec
    plan: Plan
    seconds: float | None
    others: dict[str, list[str]]


def load_streams(config: ExtractConfig, manifest: Manifest, cache: Path) -> list[Stream]:
    """Return the streams of a configuration, with their settings checked and their checkpoints found.

    A stream that is made of another one comes after it; it is checked when its turn comes. Where a checkpoint is a
    folder of fine-tuned ones, such as ``RUN/encoders``, there is a stream for each of its folds.

    Raises:
        UnknownNameError: no such stream.
        ConfigError: settings that do not fit.
        CheckpointError: a checkpoint that cannot be found.
    """
    streams = []
    specs: dict[str, StreamSpec] = {}
    for name, settings in config.streams.items():
        plugin = registry.load("featcache.streams", name, Stream)
        for each in by_fold(settings):
            stream = build(plugin, each, f"stream {name}")
            if stream.source is None:
                specs[stream.kind()] = _spec(stream, config, manifest, cache)
            streams.append(stream)
    for stream in streams:
        if stream.source in specs:
            stream.check_source(specs[stream.source])
    return sorted(streams, key=lambda stream: stream.source is not None)


def by_fold(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return settings as they are; or one for each fold, where the checkpoint is a folder of fine-tuned ones.

    Raises:
        CheckpointError: what one of them has learnt from is damaged.
    """
    checkpoint = settings.get("checkpoint")
    folder = Path(checkpoint).expanduser() if isinstance(checkpoint, str) else None
    found = fold_checkpoints(folder) if folder is not None and folder.is_dir() else {}
    lost = _lost_folds(folder, found) if folder is not None and found else []
    if lost:
        logger.warning(
            "%s has no encoder of the folds %s, which its run has: these are not extracted, and no head can be trained "
            "on them. The same finetune command saves what is missing.", folder, listed(lost),
        )  # fmt: skip
    return [{**settings, "checkpoint": str(path)} for path in found.values()] or [settings]


def _lost_folds(folder: Path, found: Mapping[str, Path]) -> list[str]:
    """Return the folds of a run that have no checkpoint; none where the checkpoints lie without their run."""
    for path in (folder / "folds.json", folder.absolute().parent / "folds.json"):
        with suppress(ProtocolError):  # there is none, or it is of something else
            return [fold.name for fold in read_folds(path) if fold.name not in found]
    return []


def _spec(stream: Stream, config: ExtractConfig, manifest: Manifest, cache: Path) -> StreamSpec:
    return stream.bind(context(manifest, cache, config)).spec(config.dtype, config.compute_dtype)


def dry_run(config: ExtractConfig, manifest: Manifest, cache: Path) -> tuple[list[Planned], list[str]]:
    """Return what :func:`run` would do, and the streams that wait for another one; loads no model, writes nothing."""
    planned = []
    waiting: list[str] = []
    unfinished: set[str] = set()
    names = _device_names(config)
    device = resolve_device(names[0])
    made: dict[str, str] = {}
    for stream in load_streams(config, manifest, cache):
        source = made.get(stream.source or "")
        if source is not None and (source not in Cache(cache) or source in unfinished):
            waiting.append(f"{stream.kind()} is made of {source}, which is to be computed first; that takes seconds.")
            continue
        stream, spec, cached, plan = plan_stream(manifest, cache, stream, config, made=made)
        made[spec.kind] = spec.name
        unfinished |= {spec.name} if plan.items else set()
        cost = stream.seconds_per_second(device, config.compute_dtype)
        amount = len(plan.items) if stream.input == "text" else plan.audio_s
        others = {} if cached is not None else different_streams(cache, spec)
        planned.append(Planned(spec, plan, None if cost is None else cost * amount / len(names), others))
    return planned, waiting


def _device_names(config: ExtractConfig) -> list[str]:
    return [name.strip() for name in config.device.split(",")]


def free_bytes(cache: Path) -> int:
    """Return the free space where a cache lies or would lie."""
    place = cache.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def run(
    config: ExtractConfig,
    manifest: Manifest,
    cache: Path,
    on_summary: Callable[[Summary], None] = lambda _: None,
) -> list[Summary]:
    """Extract every stream of a configuration, one after the other.

    Args:
        config: what to extract.
        manifest: the utterances wanted.
        cache: the cache's folder; made when missing.
        on_summary: called after each stream.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM was received; what was whole is committed.
    """
    summaries: list[Summary] = []
    made: dict[str, str] = {}
    names = _device_names(config)
    extraction = extract if len(names) == 1 else partial(devices.extract_on, names)
    for stream in load_streams(config, manifest, cache):
        with _Bar(stream) as bar, _Interrupts() as interrupts:

            def checked(count: int, bar: _Bar = bar, interrupts: _Interrupts = interrupts) -> None:
                bar.checked(count)
                interrupts.check()

            def done(count: int, audio_s: float, bar: _Bar = bar, interrupts: _Interrupts = interrupts) -> None:
                interrupts.at_once = len(names) > 1  # from now on a model runs, here or in other processes
                bar.done(count, audio_s)
                interrupts.check()

            def elsewhere(count: int, audio_s: float, bar: _Bar = bar, interrupts: _Interrupts = interrupts) -> None:
                bar.elsewhere(count, audio_s)
                interrupts.check()

            def told(text: str, bar: _Bar = bar, interrupts: _Interrupts = interrupts) -> None:
                bar.told(text)
                interrupts.check()

            summary = extraction(
                manifest, cache, stream, config, on_planned=bar.planned, on_done=done, on_checked=checked,
                on_message=told, made=made, on_elsewhere=elsewhere,
            )  # fmt: skip
        made[stream.kind()] = summary.stream
        on_summary(summary)
        summaries.append(summary)
        interrupts.check()  # a signal after the last batch stops before the next stream
    return summaries


def interval_s() -> float:
    """Return how often a bar is drawn: on a terminal smoothly, in a log file twice a minute."""
    return 0.1 if sys.stderr.isatty() else 30.0


def _title(stream: Stream) -> str:
    """Return what a bar calls a stream: its kind, and the fold of a fine-tuned checkpoint."""
    checkpoint = getattr(stream, "checkpoint", None)
    fine_tuned = isinstance(checkpoint, str) and (Path(checkpoint) / PROVENANCE).is_file()
    return f"{stream.kind()} of {Path(str(checkpoint)).name}" if fine_tuned else stream.kind()


class _Interrupts:
    """Holds Ctrl-C and SIGTERM back until the batch in hand is done; a second one interrupts at once.

    An exception raised in the middle of a model may vanish in its C code: openSMILE's callback swallows it, and the
    utterance would be taken for a bad one.

    Attributes:
        at_once: the first one interrupts at once; so it is until a model runs.
    """

    def __init__(self) -> None:
        self.at_once = True
        self._received = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._receive) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _receive(self, *_: object) -> None:
        if self._received or self.at_once:
            self._received = True  # should the exception vanish
            raise KeyboardInterrupt
        self._received = True
        tqdm.write("Stopping after this batch; once more stops at once.", file=sys.stderr)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal was received."""
        if self._received:
            raise KeyboardInterrupt


class _Bar:
    """A progress bar: utterances, hours of audio, speed against real time, time left."""

    def __init__(self, stream: Stream) -> None:
        self._name = _title(stream)
        self._bar: tqdm | None = None
        self._checking = tqdm(
            desc=f"{self._name}: comparing inputs", unit=" utt", file=sys.stderr, leave=False, delay=2
        )
        self._audio_s = 0.0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._checking.close()
        if self._bar is not None:
            self._bar.close()

    def checked(self, count: int) -> None:
        self._checking.update(count)

    def planned(self, plan: Plan) -> None:
        self._checking.close()
        if plan.parts:
            # By audio, since that is what takes the time; by utterances where there is none.
            self._by_audio = plan.audio_s > 0
            self._total = plan.audio_s / 3600 if self._by_audio else len(plan.items)
            form = "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(
                total=self._total, desc=self._name, file=sys.stderr, unit="h" if self._by_audio else " utt",
                bar_format=form if self._by_audio else None, mininterval=interval_s(),
            )  # fmt: skip
            self._count, self._all, self._amount = 0, len(plan.items), 0.0

    def told(self, text: str) -> None:
        """Show a line of progress of a program that works on the whole corpus at once."""
        if self._bar is not None:
            self._bar.set_postfix_str(text[:60])

    def done(self, count: int, audio_s: float) -> None:
        self._audio_s += audio_s
        self.elsewhere(count, audio_s)

    def elsewhere(self, count: int, audio_s: float) -> None:
        """Count what is done, by whom ever; what another process did has no part in the speed."""
        if self._bar is None:
            return
        self._count += count
        self._amount += audio_s / 3600 if self._by_audio else count
        elapsed = max(self._bar.format_dict["elapsed"], 1e-9)
        speed = f", {self._audio_s / elapsed:.1f} x real time" if self._by_audio else ""
        self._bar.set_postfix_str(f"{min(self._count, self._all)}/{self._all} utterances{speed}", refresh=False)
        # Sums of hours are rounded, and what a process did that ended early may be counted twice for a while.
        now = self._total if self._count >= self._all else min(self._amount, self._total)
        self._bar.update(now - self._bar.n)
