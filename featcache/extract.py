"""Manifest x stream -> parts.

Decoding, computing and writing overlap, see :mod:`featcache.stages`. An utterance that cannot be computed fails alone;
its reason is kept in the index and a later run tries it again. Several processes may extract into one cache: each
computes what no other does, see :mod:`featcache.sharing`.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from featcache import dtypes
from featcache.backend import load_backend
from featcache.cache import Cache, CachedStream, read_spec
from featcache.catalogue import renew_catalogue
from featcache.checkpoints import COMPUTE_DTYPES, resolve, short_digests
from featcache.claims import remove_abandoned, workplace
from featcache.commit import StreamWriter
from featcache.errors import CacheError, CheckpointError, ConfigError
from featcache.files import listed
from featcache.manifest import Manifest
from featcache.plan import Plan, make_plan
from featcache.stages import Stages
from featcache.stream import EXACT_DTYPES, Context, Stream, StreamSpec
from featcache.tuned import RECORD, SHA256, Tuned

TIERS = ("frames", "stats")
_SPARE_BYTES = 64 * 2**20

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
        computed: ids computed now, by this process.
        elsewhere: ids that other processes computed meanwhile.
        present: ids that were there already.
        changed: id to why it was computed again.
        others: streams of the same kind that the cache holds, with what makes this one another; as
            :func:`different_streams` returns them.
        failures: id to reason.
        num_bytes: bytes of feature arrays written.
    """

    stream: str
    computed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
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
    """Return the streams of a spec's kind that a cache holds, each with the lines that make the spec another.

    For a fine-tuned encoder's stream, those of the run's other folds and of encoders that were not fine-tuned are left
    out: they are meant to be others. Those of encoders that other runs fine-tuned are told together. Digests are cut.
    """
    names = [name for name in Cache(cache) if name.rpartition("-")[0] == spec.kind and name != spec.name]
    others = {name: read_spec(cache / name) for name in names}
    run, fold = ((spec.checkpoint or {}).get(key) for key in ("tuned", "fold"))
    told = {name: other.checkpoint or {} for name, other in others.items()}
    own = {name for name, one in told.items() if one.get("tuned") in (None, run) and one.get("fold") != fold}
    lines = {name: spec.differences(other) for name, other in others.items() if not (run and name in own)}
    found = {name: [short_digests(line) for line in of_one] for name, of_one in lines.items()}
    elsewhere = [name for name in found if told[name].get("tuned") not in (None, run)]
    if len(elsewhere) < 2:
        return found
    runs = sorted({told[name]["tuned"] for name in elsewhere})
    together = f"the {len(elsewhere)} streams of fine-tuned encoders ({listed(runs)})"
    apart = {name: of_one for name, of_one in found.items() if name not in elsewhere}
    return {**apart, together: ["other checkpoints"]}


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
    on_elsewhere: Callable[[int, float], None] = lambda *_: None,
) -> Summary:
    """Compute what a cache lacks of a stream, and commit it part by part.

    Other processes may do the same at the same time: each part is computed by one of them, and all return when all is
    there. One that is killed loses the parts in its hands to the others.

    Args:
        manifest: the utterances wanted.
        cache: the cache's folder; made when missing.
        stream: the stream wanted.
        options: how to compute and store.
        on_planned: called once with the plan, before a model loads.
        on_done: called with a number of utterances and their audio in seconds, as they are computed; and with zeros
            when the model is loaded, and while other processes have all that is left.
        on_checked: called with 1 for each utterance whose input was compared with the cache.
        on_message: called with lines of progress of streams that work on the whole corpus at once.
        made: kind to full name, of streams that the same command made before; what is made of them finds them so.
        on_elsewhere: called as `on_done` is, for what other processes computed meanwhile.

    Raises:
        CacheError: the cache cannot be written, or the disk has no room for the plan.
        CheckpointError: the model cannot be loaded.
    """
    cache = Path(cache)
    stream, spec, _, plan = plan_stream(manifest, cache, stream, options, on_checked, made)
    on_planned(plan)
    return carry_out(plan, manifest, cache, stream, spec, options, on_done, on_message, on_elsewhere)


def carry_out(
    plan: Plan,
    manifest: Manifest,
    cache: Path,
    stream: Stream,
    spec: StreamSpec,
    options: Options,
    on_done: Callable[[int, float], None] = lambda *_: None,
    on_message: Callable[[str], None] = lambda _: None,
    on_elsewhere: Callable[[int, float], None] = lambda *_: None,
) -> Summary:
    """Do what is planned: :func:`extract` from there on, with the stream bound to its place.

    Several processes may carry out one plan, and compare the inputs with the cache only once for all of them.
    """
    summary = Summary(spec.name, present=plan.present, changed=plan.changed, failures=dict(plan.failures))
    if not plan.seen:
        summary.others = different_streams(cache, spec)
    unrecorded = any(plan.recorded.get(name) != reason for name, reason in plan.failures.items())
    tuned = provenance(stream, spec)
    folder = cache / spec.name
    spec_is_lost = bool(plan.seen) and not (folder / "stream.json").exists()
    spec_is_lost |= bool(plan.seen) and tuned is not None and not (folder / RECORD).exists()
    if plan.parts:
        _check_room(cache, plan)
        device = resolve_device(options.device)
    if plan.parts or unrecorded or spec_is_lost:
        with StreamWriter(cache, spec, options.backend, _tier(spec, options), options.compress, tuned) as writer:
            if spec_is_lost:
                writer.write_spec()
            try:
                if plan.parts:
                    with closing(stream.load(device, options.compute_dtype)) as extractor:
                        on_done(0, 0.0)
                        stages = Stages(
                            plan, manifest, stream, spec, options, extractor, writer, summary, on_done, on_elsewhere
                        )
                        stages.run(on_message)
                elif unrecorded:
                    writer.commit([], plan.failures, plan.generations)
            finally:
                _renew_catalogue(cache, spec)
    else:
        remove_abandoned(cache)
        _renew_catalogue(cache, spec)
    summary.changed = {name: why for name, why in plan.changed.items() if name not in summary.failures}
    return summary


def provenance(stream: Stream, spec: StreamSpec) -> Tuned | None:
    """Return what the encoder behind a stream has learnt from; None where none was fine-tuned by this project.

    Raises:
        CheckpointError: the checkpoint was fine-tuned, and is another one by now.
    """
    wanted = (spec.checkpoint or {}).get(SHA256)
    if wanted is None:
        return None
    tuned = resolve(getattr(stream, "checkpoint"), getattr(stream, "revision", None)).tuned  # noqa: B009
    if tuned is None or tuned.sha256 != wanted:
        raise CheckpointError(f"The checkpoint of {spec.name} was changed while it was read. Run the command again.")
    return tuned


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
