"""What a head is made of: its blocks, what each gives, how many parameters it trains, and what it reads."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from featcache import registry
from featcache.errors import ConfigError, FeatcacheError
from featcache.settings import build
from featcache.stream import Stream
from heads.head import GradientHead, Head
from heads.pooling import PoolingHead
from pipelines.config import train_config
from pipelines.show import table
from pipelines.train_heads import load_head

_DEPTH = 2  # blocks of blocks, no further
_LAYERS, _DIM = 25, 1024  # of wav2vec2-large


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
        layers: layers of the stream it reads; None is those of the preset's stream, or 25.
        dim: size of a frame; None likewise, or 1024.
        classes: number of classes.

    Raises:
        UnknownNameError: no such head.
        ConfigError: settings that it does not have, or sizes that it cannot take.
    """
    if name is None and not (preset.get("train") or {}).get("head"):
        raise ConfigError("Say which head, or give a preset that names one.")
    head = load_head(train_config(preset, {"head": name}, [f"settings.{text}" for text in overrides]))
    values = ", ".join(f"{field.name}={getattr(head, field.name)}" for field in fields(head))  # type: ignore[arg-type]
    lines = [f"{head.kind()}: {head.title}", f"settings: {values or 'none'}", f"reads: {reads(head)}"]
    if isinstance(head, GradientHead):
        stream, known_layers, known_dim = _source(head, preset)
        sizes = {"num_layers": layers or known_layers, "dim": dim or known_dim, "num_classes": classes}
        told = f"of {stream}; --layers and --dim say others" if stream else "by --layers, --dim and --classes"
        lines += ["", f"sizes: {sizes['num_layers']} x {sizes['dim']}, {classes} classes, {told}", _blocks(head, sizes)]
    else:
        lines.append("It trains no blocks by gradients; its parameters follow from the data.")
    return "\n".join(lines)


def _source(head: Head, preset: Mapping[str, Any]) -> tuple[str, int, int]:
    """Return the stream that a preset's head reads, with its layers and the size of its frames.

    Without a name, 25 and 1024 where there is no preset, or where a checkpoint would have to be looked for.
    """
    stated = (preset.get("extract") or {}).get("streams") or {}
    wanted = [one for one in (preset.get("train") or {}).get("streams") or () if one not in head.further_streams()]
    for kind in wanted:
        settings = stated.get(kind) or {}
        if kind in stated and str(settings.get("checkpoint", "demo:")).startswith(("demo:", "minilm")):
            with suppress(FeatcacheError):
                spec = build(registry.load("featcache.streams", kind, Stream), settings, f"stream {kind}").spec()
                return kind, len(spec.layers), spec.dim
    return "", _LAYERS, _DIM


def reads(head: Head) -> str:
    """Return what a head needs of a cache, in words."""
    what = "frames" if head.tier == "frames" else "the stats tier (mean and std over time)"
    further = head.further_streams()
    several = ", or of several with fusion=early or late" if isinstance(head, PoolingHead) else ""
    return f"{what} of one stream{several}" + (f", and the streams {', '.join(further)}" if further else "")


def _blocks(head: GradientHead, shapes: Mapping[str, int]) -> str:
    """Return a table of blocks, from one pass of zeros through a fresh module."""
    with torch.random.fork_rng(devices=[]):
        module = head.module(**shapes).eval()
    outputs: dict[str, str] = {}
    names = {block: name for name, block in module.named_modules()}

    def note(block: nn.Module, _: object, output: Any) -> None:
        outputs[names[block]] = _shape(output)

    hooks = [block.register_forward_hook(note) for block in names]
    batch = head.example(shapes)
    try:
        with torch.no_grad():
            module(*batch)
    except RuntimeError as error:
        raise ConfigError(f"The head {head.kind()!r} cannot take {dict(shapes)}: {error}") from None
    finally:
        for hook in hooks:
            hook.remove()
    rows = [("block", "kind", "output for 2", "parameters")]
    for name, block in module.named_modules():
        if name and name.count(".") < _DEPTH and not isinstance(block, nn.Identity):
            output = outputs.get(name, "in what is around it")  # which uses its weights and does not call it
            rows.append((name, type(block).__name__, output, f"{_parameters(block):,}"))
    given = " and ".join(_shape(item) for item in batch)
    rows.append(("all", type(module).__name__, outputs.get("", ""), f"{_parameters(module):,}"))
    return f"given {given}:\n\n{table(rows)}"


def _parameters(block: nn.Module) -> int:
    return sum(parameter.numel() for parameter in block.parameters() if parameter.requires_grad)


def _shape(output: Any) -> str:
    first = output[0] if isinstance(output, tuple) else output
    return " x ".join(str(size) for size in first.shape) if isinstance(first, torch.Tensor) else ""
