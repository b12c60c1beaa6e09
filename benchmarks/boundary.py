"""Seconds a step of fine-tuning takes from the raw input and from the freeze boundary, the same parts frozen.

`wav2vec2-base, random`: the shape of wav2vec2-base (12 layers of 768, 94 million parameters) with random weights, which
take as long as others; a batch of 4 utterances of 4 s. `resemblyzer`: the speaker encoder of the wheel, a batch of 16
of 4 s. A step reads its batch from a Zarr cache, goes forward and backward, and updates by AdamW what is not frozen.
All streams are float32 and of random numbers, and lie in the page cache. What it took to compute the cached stream,
once, is not in the times. `of raw` is the time from the raw input over the row's. Takes about 5 minutes.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import featcache
from benchmarks.timing import compare
from featcache.commit import StreamWriter, store
from featcache.stream import Features, Stream, StreamSpec
from featcache.streams.conv_features import ConvFeatures
from featcache.streams.ge2e_mels import Ge2eMels
from featcache.streams.ge2e_states import Ge2eStates
from featcache.streams.hidden_states import HiddenStates
from featcache.streams.waveform import Waveform
from heads.models.finetune import Finetune
from heads.task import Task

CLASSES, RATE_HZ, LEARNING_RATE = 4, 16000, 1e-5


@dataclass(frozen=True)
class Size:
    """What is measured.

    Attributes:
        name: of the speech encoder.
        config: its settings beside wav2vec2-base's.
        layer: the layer up to which it is frozen.
        batch: utterances of a step.
        seconds: length of each.
        speaker_batch: utterances of a step of the speaker encoder.
        rounds: how often each step is measured.
    """

    name: str = "wav2vec2-base, random"
    config: Mapping[str, Any] = field(default_factory=dict)
    layer: int = 6
    batch: int = 4
    seconds: float = 4.0
    speaker_batch: int = 16
    rounds: int = 5


TINY = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
QUICK = Size("tiny, random", TINY, layer=1, batch=2, seconds=0.3, speaker_batch=2, rounds=2)


def run(quick: bool = False) -> list[dict[str, object]]:
    """Measure both encoders from every place they can start from."""
    return measure(QUICK if quick else Size())


def measure(size: Size) -> list[dict[str, object]]:
    """Return a row for each encoder, what is frozen, and where a step starts."""
    folder = Path(tempfile.mkdtemp())
    try:
        checkpoint = str(_checkpoint(folder / "checkpoint", size.config))
        raw, hidden = Waveform(), HiddenStates(checkpoint)
        speech = _Bench(folder / "speech", size.name, size.batch, size)
        rows = speech.rows("front end", {raw: {}, ConvFeatures(checkpoint): {}}, checkpoint, "front_end")
        read = {"start_layer": size.layer}
        rows += speech.rows(f"to layer {size.layer}", {raw: {}, hidden: read}, checkpoint, size.layer)
        speaker = _Bench(folder / "speaker", "resemblyzer", size.speaker_batch, size)
        return rows + speaker.rows("to layer 2", {Ge2eMels(): {}, Ge2eStates(): {"start_layer": 1}}, "resemblyzer", 2)
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class _Bench:
    """Steps of one encoder.

    Attributes:
        cache: where its streams are written.
        name: of the encoder.
        batch: utterances of a step.
        size: see :class:`Size`.
    """

    cache: Path
    name: str
    batch: int
    size: Size

    def rows(
        self, frozen: str, starts: Mapping[Stream, Mapping[str, Any]], checkpoint: str, freeze: Any
    ) -> list[dict[str, object]]:
        """Measure steps that differ in where they start; the first is the raw input."""
        steps: dict[str, Callable[[], object]] = {}
        trained: dict[str, int] = {}
        for stream, settings in starts.items():
            spec = stream.spec("float32")
            head = Finetune(checkpoint, freeze=freeze, **settings)
            task = self._task(stream, spec)
            layer = head.layer_names(task)[0]
            module = head.module(**head.shapes(task)).train()
            parameters = [value for value in module.parameters() if value.requires_grad]
            optimiser = torch.optim.AdamW(parameters, LEARNING_RATE, fused=True)
            where = f"{stream.kind()} {layer}" if len(spec.layers) > 1 else stream.kind()
            steps[where] = partial(_step, head.inputs(task), module, optimiser, self.batch)
            trained[where] = sum(value.numel() for value in parameters)
        times = compare(steps, self.size.rounds)
        base = next(iter(times.values()))[0]
        return [
            {
                "encoder": self.name,
                "frozen": frozen,
                "from": where,
                "batch": f"{self.batch} x {self.size.seconds:g} s",
                "trained": f"{trained[where]:,}",
                "s a step": round(seconds, 4),
                "spread s": round(spread, 4),
                "of raw": round(base / seconds, 2),
            }
            for where, (seconds, spread) in times.items()
        ]

    def _task(self, stream: Stream, spec: StreamSpec) -> Task:
        """Write a stream of random numbers; return the task on it."""
        ids = [f"u{number:02d}" for number in range(self.batch)]
        if spec.name not in [path.name for path in self.cache.glob("*-*")]:
            generator = np.random.default_rng(0)
            shape = (len(spec.layers), stream.num_frames(round(self.size.seconds * RATE_HZ)) or 0, spec.dim)
            with StreamWriter(self.cache, spec, "zarr", "frames") as writer:
                drawn = [Features(0.1 * generator.standard_normal(shape, np.float32)) for _ in ids]
                pairs = zip(ids, drawn, strict=True)
                writer.commit([store(name, "0", 0, frames, spec, "frames") for name, frames in pairs], {})
        labels = np.arange(len(ids)) % CLASSES
        return Task({spec.kind: featcache.open(self.cache)[spec.name]}, ids, labels, tuple("abcd"), (), place="disk")


def _step(inputs: Any, module: torch.nn.Module, optimiser: torch.optim.Optimizer, batch: int) -> None:
    indices = torch.arange(batch)
    logits = module(*(item[0] for item in inputs.batch(indices[None], None)))
    F.cross_entropy(logits, indices % CLASSES).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _checkpoint(folder: Path, config: Mapping[str, Any]) -> Path:
    """Save a wav2vec2 of random weights; base's shape unless told otherwise."""
    from transformers import AutoConfig, AutoModel

    from featcache.checkpoints import quiet

    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model("wav2vec2", **config)).save_pretrained(folder)
    return folder
