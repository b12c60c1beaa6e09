"""Windows a second in training the full-size encoder-decoder, in float32 and in bfloat16 mixed precision.

25 x 1024 float16 frames, 80 mels, 128 phones and a speaker embedding, random numbers in a Zarr cache; windows of 96
frames in batches of 2, as the paper has them, and of 16. Each step draws windows, runs forward and backward and updates
84 million parameters. Random weights: for speed alone.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import featcache
from benchmarks.timing import compare
from featcache.commit import StreamWriter, store
from featcache.stream import Features, StreamSpec
from heads.folds import Fold
from heads.head import Task
from heads.members import Alone
from heads.models.encoder_decoder import EncoderDecoder, WindowInputs

UTTERANCES, FRAMES, CLASSES, STEPS = 24, 200, 4, 2
SPECS = (
    StreamSpec("hidden_states", 1, "audio", {}, tuple(f"layer_{n}" for n in range(25)), 1024, frame_shift_s=0.02),
    StreamSpec("log_mel", 1, "audio", {}, ("log_mel",), 80, frame_shift_s=0.02),
    StreamSpec("speaker", 1, "audio", {}, ("embedding",), 256),
    StreamSpec(
        "phones",
        1,
        "speech",
        {"inventory": [str(n) for n in range(128)]},
        ("phone",),
        1,
        frame_shift_s=0.02,
        dtype="int16",
    ),
)


def run(quick: bool = False) -> list[dict[str, object]]:
    folder = Path(tempfile.mkdtemp())
    try:
        task = _task(folder)
        head = EncoderDecoder()
        inputs = head.inputs(task)
        contestants = {
            (precision, batch): _step(head, inputs, task, precision, batch)
            for batch in (2, 16)
            for precision in ("float32", "bfloat16")
        }
        named = {f"{precision}, batch {batch}": run_ for (precision, batch), run_ in contestants.items()}
        named["windows alone, batch 16"] = lambda: [_windows(inputs, 16) for _ in range(STEPS)]
        rows: list[dict[str, object]] = []
        for name, (seconds, spread) in compare(named, rounds=3).items():
            windows = STEPS * int(name.rpartition(" ")[2])
            rows.append(
                {
                    "what": name,
                    "windows/s": round(windows / seconds, 2),
                    "spread s": round(spread, 3),
                    "s a step": round(seconds / STEPS, 3),
                    "5 x 2,000,000 windows, days": "" if "alone" in name else round(1e7 * seconds / windows / 86400, 1),
                }
            )
        return rows
    finally:
        shutil.rmtree(folder)


def _task(folder: Path) -> Task:
    generator = np.random.default_rng(0)
    ids = [f"u{number:02d}" for number in range(UTTERANCES)]
    for spec in SPECS:
        stored = []
        for name in ids:
            shape = (len(spec.layers), 1 if spec.kind == "speaker" else FRAMES, spec.dim)
            frames = generator.integers(0, 128, shape).astype(np.int16) if spec.dtype == "int16" else None
            values = generator.standard_normal(shape, np.float32) if frames is None else frames
            stored.append(store(name, "0", 0, Features(values), spec, "frames"))
        with StreamWriter(folder, spec, "zarr", "frames") as writer:
            writer.commit(stored, {})
    cache = featcache.open(folder)
    fold = Fold("one", tuple(ids), tuple(ids), tuple(ids))
    labels = np.arange(UTTERANCES) % CLASSES
    streams = {spec.kind: cache[spec.kind] for spec in SPECS}
    return Task(streams, ids, labels, tuple("abcd"), (fold,), "cpu", speakers=["s"] * UTTERANCES)


def _windows(inputs: WindowInputs, batch: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, UTTERANCES, (1, batch), generator=generator)
    return inputs.training_batch(indices, None, generator)


def _step(head: EncoderDecoder, inputs: WindowInputs, task: Task, precision: str, batch: int) -> Callable[[], None]:
    model = Alone(head.module(**head.shapes(task)))
    model.train(True)
    optimiser = model.optimiser([1e-4], [0.0], None)
    labels = torch.zeros(batch, dtype=torch.int64)

    def steps() -> None:
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                logits, further = model(_windows(inputs, batch))
            (F.cross_entropy(logits[0].float(), labels) + further.sum()).backward()
            optimiser.step()

    return steps
