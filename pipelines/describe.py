"""What a head is made of: its blocks, what each gives, how many parameters it trains, and what it reads.

With a preset, the module is the one that a training by it has: the head takes its shapes from the specs of the streams
that the preset states, as from those of a cache. Nothing is downloaded. The sizes of a checkpoint that is not on this
machine are not known, which is said in place of the blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featcache import demo_checkpoints, registry
from featcache.cache import CachedStream
from featcache.errors import ConfigError, FeatcacheError
from featcache.inventory import arpabet128
from featcache.settings import build
from featcache.stream import Stream, StreamSpec
from heads.head import GradientHead, Head
from heads.pooling import PoolingHead
from heads.task import Task
from pipelines.config import read_preset, train_config
from pipelines.paper import paper_names, read_paper
from pipelines.show import table
from pipelines.train_heads import load_head

_STREAMS = "featcache.streams"
_DEPTH = 2  # blocks of blocks, no further
_LAYERS, _DIM = 25, 1024  # of wav2vec2-large
_NUM_FRAMES = 100  # of an utterance, as GradientHead.example has
_ENCODED_SHIFT_S = 0.02  # between the states of any speech encoder that reads waveforms
_IN_WHEELS = ("minilm", "resemblyzer")
_RAW_LENGTHS = {"tokens": _NUM_FRAMES, "waveform": 4000}
"""Frames shown of what an encoder reads: few enough for its positions, and a quarter of a second of samples."""


def run(
    name: str | None,
    preset: Mapping[str, Any],
    overrides: Sequence[str],
    layers: int | None,
    dim: int | None,
    classes: int,
) -> str:
    """Describe a head.

    Args:
        name: the head; None is the preset's.
        preset: what :func:`pipelines.config.read_preset` returned.
        overrides: settings of the head, as ``KEY=VALUE`` texts.
        layers: layers of the stream it reads; None is those of the preset's stream, or 25 where none is named.
        dim: size of a frame; None likewise, or 1024. Both stand in for those of streams whose sizes are unknown.
        classes: number of classes.

    Raises:
        UnknownNameError: no such head.
        ConfigError: settings that it does not have, or streams or sizes that it cannot take.
    """
    if name is None and not (preset.get("train") or {}).get("head"):
        raise ConfigError("Say which head, or give a preset that names one.")
    config = train_config(preset, {"head": name}, [f"settings.{text}" for text in overrides])
    head = load_head(config)
    values = ", ".join(f"{field.name}={getattr(head, field.name)}" for field in fields(head))  # type: ignore[arg-type]
    lines = [f"{head.kind()}: {head.title}", f"settings: {values or 'none'}", f"reads: {reads(head)}"]
    if not isinstance(head, GradientHead):
        lines.append("It trains no blocks by gradients; its parameters follow from the data.")
    elif config.streams:
        found = {one: _look_up(one, preset) for one in config.streams}
        lines += ["", *_of_streams(head, found, layers, dim, classes)]
    else:
        shapes = {"num_layers": layers or _LAYERS, "dim": dim or _DIM, "num_classes": classes}
        sizes = f"{shapes['num_layers']} x {shapes['dim']}, {classes} classes"
        lines += ["", f"sizes: {sizes}, by --layers, --dim and --classes", _blocks(head, shapes, sizes)]
    return "\n".join(lines)


def reads(head: Head) -> str:
    """Return what a head needs of a cache, in words."""
    what = "frames" if head.tier == "frames" else "the stats tier (mean and std over time)"
    further = head.further_streams()
    several = ", or of several with fusion=early or late" if isinstance(head, PoolingHead) else ""
    return f"{what} of one stream{several}" + (f", and the streams {', '.join(further)}" if further else "")


@dataclass(frozen=True)
class _Found:
    """What is known of a stream that a preset names, without a cache.

    Attributes:
        stream: it, with its checkpoint where that lies on this machine; None where it is one of a cache.
        spec: its sizes; None where they are unknown.
        why: a sentence that says why they are.
    """

    stream: Stream | None = None
    spec: StreamSpec | None = None
    why: str = ""

    @property
    def sayable(self) -> bool:
        """Whether layers and the size of a frame are all that a head asks of it."""
        return hasattr(self.stream, "checkpoint")


class _Stated(CachedStream):
    """A stream of which there is a spec and no cache; every utterance has 100 frames."""

    def __init__(self, name: str, spec: StreamSpec) -> None:
        self.path, self.spec, self.indices = Path(name), spec, {}

    def num_frames(self, name: str) -> int:
        """Return the number of frames in :meth:`heads.head.GradientHead.example`."""
        return _NUM_FRAMES


def _of_streams(
    head: GradientHead, found: Mapping[str, _Found], layers: int | None, dim: int | None, classes: int
) -> list[str]:
    """Return the lines on sizes and blocks of a head that reads these streams."""
    encoding, why = _with_encoder(head, found)
    specs = {name: one.spec or _stand_in(one, layers, dim, encoding) for name, one in found.items()}
    known = {name: spec for name, spec in specs.items() if spec is not None}
    unknown = [found[name] for name in specs if name not in known]
    if why or unknown:
        whys = dict.fromkeys(filter(None, [why, *(one.why for one in unknown)]))
        sayable = not _trains_encoder(head) and all(one.sayable for one in unknown)
        remedy = ["Or say what they are with --layers and --dim."] if sayable else []
        return [f"sizes: {_sizes(specs, classes)}", *whys, *remedy]
    task = _task(known, classes)
    if (layers or dim) and all(one.spec for one in found.values()):
        first = encoding.source(task)
        task = _task(known | {first.name: _resized(first.spec, layers, dim)}, classes)
    source = encoding.source(task)
    sizes = _sizes({name: stream.spec for name, stream in task.streams.items()}, classes)
    trained = _trains_encoder(head)  # which takes no others
    others = "" if trained else f"; --layers and --dim say others{f' of {source.name}' if len(known) > 1 else ''}"
    length = _RAW_LENGTHS.get(source.spec.kind) if trained else None
    blocks = _blocks(encoding, encoding.shapes(task), sizes, length)
    return [f"sizes: {sizes}{others}", blocks]


def _task(specs: Mapping[str, StreamSpec], classes: int) -> Task:
    """Return a task of one utterance, of which a head can ask for its shapes and nothing else."""
    streams = {name: _Stated(name, spec) for name, spec in specs.items()}
    return Task(streams, ("example",), np.zeros(1, np.int64), tuple(map(str, range(classes))), ())


def _sizes(specs: Mapping[str, StreamSpec | None], classes: int) -> str:
    told = [f"{f'{len(spec.layers)} x {spec.dim}' if spec else 'unknown'} of {name}" for name, spec in specs.items()]
    return f"{', '.join(told)}, {classes} classes"


def _look_up(name: str, preset: Mapping[str, Any]) -> _Found:
    """Return what is known of a stream of a preset.

    Raises:
        ConfigError: it does not have the settings that are stated.
    """
    kind, _, family = name.partition("@")
    if kind not in registry.names(_STREAMS):
        return _Found(why=f"The sizes of {name} are unknown: it is a stream of some cache.")
    stated = (preset.get("extract") or {}).get("streams") or {}
    settings = {**_tuned_settings(family, preset), **(stated.get(name) or stated.get(kind) or {})}
    stream: Any = build(registry.load(_STREAMS, kind, Stream), settings, f"stream {name}")
    checkpoint = getattr(stream, "checkpoint", None)
    if checkpoint is not None:
        if family and "checkpoint" not in settings:
            why = f"The sizes of {name} are unknown: they are those of the encoder that {family!r} fine-tunes."
            return _Found(stream, None, why)
        place = _place(checkpoint, stream.revision) if hasattr(stream, "revision") else checkpoint
        if place is None:
            return _Found(stream, None, _until_here(checkpoint))
        if place != checkpoint:
            stream = replace(stream, checkpoint=place, revision=None)
    try:
        return _Found(stream, _phones(stream) if kind == "phones" else stream.spec())
    except FeatcacheError as error:
        return _Found(stream, None, f"The sizes of {name} are unknown: {error}")


def _phones(stream: Any) -> StreamSpec:
    """Return what a head asks of phones, whose whole spec names an alignment in a cache.

    Raises:
        ConfigError: the inventory is that of a corpus.
    """
    if stream.inventory != "arpabet128":
        raise ConfigError("its inventory is made of the phones that occur in the corpus.")
    settings = {"inventory": list(arpabet128().symbols)}
    shift_s = stream.frame_shift_ms / 1000
    return StreamSpec("phones", 1, "speech", settings, ("phone",), 1, frame_shift_s=shift_s, dtype="int16")


def _tuned_settings(family: str, preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checkpoint that the encoders of a family begin with, as a setting; empty where nobody says."""
    readers = _readers(family) if family else ()
    return next((_checkpoint_of(tuning) for reading, tuning in readers if reading == preset), {})


@cache
def _readers(family: str) -> tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...]:
    """Return the presets that papers have beside a run of this name, each with the one that fine-tunes its encoders.

    Both are of one form: the laptop form of a run reads what the laptop form of the other has fine-tuned.
    """
    pairs = [
        (paper.preset(reading), paper.preset(tuning))
        for paper in map(read_paper, paper_names())
        for form in ("preset", "demo", "laptop")
        if (tuning := getattr(paper.runs.get(family), form, None))
        for reading in dict.fromkeys(getattr(of, form) for of in paper.runs.values())
        if reading
    ]
    return tuple((read_preset(reading), read_preset(tuning)) for reading, tuning in pairs)


def _checkpoint_of(preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checkpoint that a preset fine-tunes, as a setting; empty where it is the stream's own."""
    train, stated = preset["train"], (preset.get("extract") or {}).get("streams") or {}
    [name] = train["streams"]
    several = [train.get("settings") or {}, stated.get(name) or {}]
    return next(({"checkpoint": one["checkpoint"]} for one in several if one.get("checkpoint")), {})


def _place(checkpoint: str, revision: str | None) -> str | None:
    """Return what names a checkpoint so that it is found without the Hub; None where it is not on this machine."""
    if checkpoint.startswith(demo_checkpoints.PREFIX) or checkpoint in _IN_WHEELS:
        return checkpoint
    if Path(checkpoint).expanduser().is_dir():
        return checkpoint
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(checkpoint, revision=revision, local_files_only=True)
    except Exception:  # the client's many ways to say that it is not here
        return None


def _until_here(checkpoint: str) -> str:
    remedy = "" if checkpoint.startswith(("/", ".", "~")) else f" (hf download {checkpoint})"
    return f"The sizes of {checkpoint} are unknown until it is here{remedy}."


def _trains_encoder(head: GradientHead) -> bool:
    """Return whether a head holds an encoder, which begins with a checkpoint."""
    return hasattr(head, "checkpoint") or getattr(head, "encoder", None) is not None


def _with_encoder(head: GradientHead, found: Mapping[str, _Found]) -> tuple[GradientHead, str]:
    """Return a head whose encoder is found without the Hub, or as it is and why that is not on this machine."""
    if not _trains_encoder(head):
        return head, ""
    setting = "checkpoint" if hasattr(head, "checkpoint") else "encoder"
    checkpoint = getattr(head, setting)
    if checkpoint is None:  # it is the stream's
        own = [getattr(one.stream, "checkpoint", None) for one in found.values() if one.spec is not None]
        checkpoint = next((one for one in own if one is not None), None)
    if checkpoint is None:
        return head, ""
    revision = getattr(head, "revision", None)
    place = _place(checkpoint, revision)
    if place is None:
        return head, _until_here(checkpoint)
    changed: dict[str, Any] = {setting: place, "revision": revision if place == checkpoint else None}
    located: GradientHead = replace(head, **changed)  # type: ignore[type-var]
    return located, ""


def _stand_in(found: _Found, layers: int | None, dim: int | None, head: GradientHead) -> StreamSpec | None:
    """Return a spec of sizes that were given for a stream whose own are unknown; None where one is lacking."""
    stream = found.stream
    count = layers or (1 if getattr(stream, "layers", None) == "last" else None)
    if stream is None or count is None or dim is None or not found.sayable or _trains_encoder(head):
        return None
    spec = StreamSpec(stream.kind(), 1, stream.input, {}, (), dim, frame_shift_s=_ENCODED_SHIFT_S)
    tokens = replace(spec, axis="tokens", frame_shift_s=None)
    return _resized(tokens if stream.input == "text" else spec, count, dim)


def _resized(spec: StreamSpec, layers: int | None, dim: int | None) -> StreamSpec:
    names = spec.layers if layers is None else tuple(f"layer_{number}" for number in range(1, layers + 1))
    return replace(spec, layers=names, dim=dim or spec.dim)


def _blocks(head: GradientHead, shapes: Mapping[str, Any], sizes: str, length: int | None = None) -> str:
    """Return a table of blocks, from one pass of zeros through a fresh module.

    Args:
        head: the head.
        shapes: arguments of its module.
        sizes: the same in words, for messages.
        length: frames of the first stream; None is as many as the head's example has.

    Raises:
        ConfigError: the module cannot take these sizes.
    """
    with torch.random.fork_rng(devices=[]):
        module = head.module(**shapes).eval()
    outputs: dict[str, str] = {}
    names = {block: name for name, block in module.named_modules()}

    def note(block: nn.Module, _: object, output: Any) -> None:
        outputs[names[block]] = _shape(output)

    hooks = [block.register_forward_hook(note) for block in names]
    examples = head.example(shapes)
    if length is not None:
        batch, num_layers, _, dim = examples[0].shape
        examples = (torch.zeros(batch, num_layers, length, dim), torch.full((batch,), length), *examples[2:])
    try:
        with torch.no_grad():
            module(*examples)
    except (RuntimeError, FeatcacheError) as error:
        raise ConfigError(f"The head {head.kind()!r} cannot take {sizes}: {error}") from None
    finally:
        for hook in hooks:
            hook.remove()
    rows = [("block", "kind", "output for 2", "parameters")]
    for name, block in module.named_modules():
        if name and name.count(".") < _DEPTH and not isinstance(block, nn.Identity):
            output = outputs.get(name, "in what is around it")  # which uses its weights and does not call it
            rows.append((name, type(block).__name__, output, f"{_parameters(block):,}"))
    given = " and ".join(_shape(item) for item in examples)
    rows.append(("all", type(module).__name__, outputs.get("", ""), f"{_parameters(module):,}"))
    return f"given {given}:\n\n{table(rows)}"


def _parameters(block: nn.Module) -> int:
    return sum(parameter.numel() for parameter in block.parameters() if parameter.requires_grad)


def _shape(output: Any) -> str:
    first = output[0] if isinstance(output, tuple) else output
    return " x ".join(str(size) for size in first.shape) if isinstance(first, torch.Tensor) else ""
