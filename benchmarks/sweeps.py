"""Folds x candidates of small heads, side by side, beside a plain loop that trains one after the other.

IEMOCAP's size: 5531 utterances, 25 x 1024 means of random numbers, 4 classes, 5 folds. SUPERB's emotion protocol (7
learning rates, 30,000 steps of 32) is timed over fewer steps and an evaluation, and its 30,000 steps follow from that;
a probe on each layer x 5 folds x 5 seeds, with the default settings, is trained whole, seed by seed. The plain loop is
PyTorch as one writes it: modules of ``nn.Linear``, ``torch.optim.AdamW``, ``clip_grad_norm_``, stats in memory, all
cores. Its weights are compared with ours over the same steps.

``python -m benchmarks.sweeps FOLDER`` writes the cache and a manifest, for the whole of it by the command that a user
gives: ``featcache train-heads FOLDER/manifest.jsonl --cache FOLDER --preset superb``.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

import featcache
from featcache.commit import StreamWriter, store
from featcache.manifest import Manifest, Utterance
from featcache.stream import Features, StreamSpec
from heads.fit import fit
from heads.fit_settings import FitSettings
from heads.folds import Fold
from heads.head import GradientHead
from heads.models.layer_mix import LayerMix
from heads.models.linear_probe import LinearProbe
from heads.order import Order
from heads.task import Outcome, Task

RATES = tuple(10.0**-power for power in range(1, 8))
FOLDS, SEEDS, ROUNDS = 5, 5, 3


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
        utterances: in the corpus.
        layers: of the stream.
        dim: of a frame.
        steps: that are timed.
        superb_steps: of SUPERB's protocol.
        probe_steps: of a probe.
    """

    utterances: int = 5531
    layers: int = 25
    dim: int = 1024
    steps: int = 100
    superb_steps: int = 30_000
    probe_steps: int = FitSettings().steps


QUICK = Size(utterances=60, layers=3, dim=8, steps=4, superb_steps=8, probe_steps=4)


def run(quick: bool = False) -> list[dict[str, object]]:
    size = QUICK if quick else Size()
    folder = Path(tempfile.mkdtemp())
    try:
        start = time.perf_counter()
        task = make_task(folder, size)
        print(f"  a cache of {len(task.ids)} utterances in {time.perf_counter() - start:.0f} s", flush=True)
        return [*_superb(task, size), *_probes(task, size)]
    finally:
        shutil.rmtree(folder)


def make_task(folder: Path, size: Size) -> Task:
    """Return a task over random stats in a cache, whose classes differ a little in the middle layer."""
    generator = np.random.default_rng(0)
    layers = tuple(f"layer_{number}" for number in range(size.layers))
    spec = StreamSpec("hidden_states", 1, "audio", {}, layers, size.dim)
    labels = generator.integers(4, size=size.utterances)
    ids = [f"u{number:05d}" for number in range(size.utterances)]
    with StreamWriter(folder, spec, "zarr", "stats") as writer:
        for start in range(0, len(ids), 500):
            stored = []
            for name, label in zip(ids[start : start + 500], labels[start : start + 500], strict=True):
                frames = generator.standard_normal((size.layers, 2, size.dim), np.float32)
                frames[size.layers // 2, :, label] += 0.5
                stored.append(store(name, name, 0, Features(frames), spec, "stats"))
            writer.commit(stored, {})
    folds = []
    for number in range(FOLDS):
        others = [name for place, name in enumerate(ids) if place % FOLDS != number]
        cut = 4 * len(others) // 5
        folds.append(Fold(f"{number}", tuple(others[:cut]), tuple(others[cut:]), tuple(ids[number::FOLDS])))
    return Task({"hidden_states": featcache.open(folder)["hidden_states"]}, ids, labels, tuple("abcd"), tuple(folds))


def write_corpus(folder: Path, size: Size) -> None:
    """Write the cache of :func:`make_task` and a manifest whose sessions are its folds."""
    task = make_task(folder, size)
    session = {name: fold.name for fold in task.folds for name in fold.test}
    utterances = [
        Utterance(name, f"{name}.wav", label=task.classes[int(label)], speaker=session[name], session=session[name])
        for name, label in zip(task.ids, task.labels, strict=True)
    ]
    Manifest(utterances, folder).write(folder / "manifest.jsonl")


def _superb(task: Task, size: Size) -> Iterator[dict[str, object]]:
    head = LayerMix()
    settings = FitSettings(steps=size.steps, eval_every=size.steps, learning_rate=RATES, select_by="wa")
    values = head.inputs(task).values
    evaluations = size.superb_steps // 1000 or 1
    ours, plain = [], []
    for _ in range(ROUNDS):
        whole = _steps_and_rest(head, task, settings)
        ours.append(whole.per_step * size.superb_steps + whole.rest * evaluations)
        start = time.perf_counter()
        for fold in task.folds[:1]:
            for rate in RATES:
                train_plainly(superb_plain, values, task, fold, replace(settings, learning_rate=(rate,)))
        plain.append((time.perf_counter() - start) / size.steps * len(task.folds) * size.superb_steps)
    members = f"{len(task.folds)} folds x {len(RATES)} rates x {size.superb_steps} steps of 32"
    yield _row(f"SUPERB: {members}", "featcache, train-heads", ours, plain, _difference(head, task, settings))
    yield _row(f"SUPERB: {members}", "plain loop over the stats", plain, plain, "")


@dataclass(frozen=True)
class _Cost:
    per_step: float
    rest: float


def _steps_and_rest(head: GradientHead, task: Task, settings: FitSettings) -> _Cost:
    """Return seconds a step of all members, and of all else: reading the stats, one evaluation, the test."""
    short = replace(settings, steps=max(1, settings.steps // 10))
    seconds = []
    for one in (short, settings):
        start = time.perf_counter()
        fit(head, task, one)
        seconds.append(time.perf_counter() - start)
    per_step = (seconds[1] - seconds[0]) / (settings.steps - short.steps)
    return _Cost(per_step, max(0.0, seconds[0] - per_step * short.steps))


def _probes(task: Task, size: Size) -> Iterator[dict[str, object]]:
    head = LinearProbe()
    settings = FitSettings(steps=size.probe_steps)
    values = head.inputs(task).values
    quick = replace(settings, steps=size.steps)
    ours, plain = [], []
    for seed in range(SEEDS):
        start = time.perf_counter()
        fit(head, task, replace(settings, seed=seed))
        ours.append(SEEDS * (time.perf_counter() - start))
        start = time.perf_counter()
        for layer in range(size.layers):
            train_plainly(probe_plain, values[:, layer], task, task.folds[0], quick)
        plain.append((time.perf_counter() - start) / size.steps * len(task.folds) * SEEDS * size.probe_steps)
    what = f"probes: {size.layers} layers x {len(task.folds)} folds x {SEEDS} seeds x {size.probe_steps} steps"
    yield _row(what, "featcache, train-heads", ours, plain, "")
    yield _row(what, "plain loop over the stats", plain, plain, "")


def superb_plain(layers: int, dim: int, classes: int) -> nn.Module:
    """Return SUPERB's emotion head on means, as one writes it."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.zeros(layers))
            self.project = nn.Linear(dim, 256)
            self.classify = nn.Linear(256, classes)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            mixed = (torch.softmax(self.alpha, 0)[:, None] * hidden).sum(1)
            logits: torch.Tensor = self.classify(self.project(mixed))
            return logits

    return Plain()


def probe_plain(_: int, dim: int, classes: int) -> nn.Module:
    """Return a linear probe."""
    return nn.Linear(dim, classes)


def train_plainly(
    make: Callable[[int, int, int], nn.Module],
    values: torch.Tensor,
    task: Task,
    fold: Fold,
    settings: FitSettings,
    start_from: Sequence[torch.Tensor] = (),
) -> nn.Module:
    """Train one module on one fold, without evaluations, on the batches that featcache would give it.

    Args:
        make: called with layers, dim and classes.
        values: ``(utterances, layers, dim)`` or ``(utterances, dim)``.
        task: the task.
        fold: the fold.
        settings: of one learning rate.
        start_from: initial values of the parameters, in their order; none keeps the module's own.
    """
    module = make(values.shape[1], values.shape[-1], len(task.classes))
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), start_from, strict=bool(start_from)):
            parameter.copy_(value.reshape(parameter.shape))
    [rate] = settings.learning_rate
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=settings.weight_decay[0])
    labels = torch.from_numpy(task.labels)
    parts = [torch.from_numpy(task.positions(part)) for part in fold.parts.values()]
    order = Order(parts[0], fold.name, settings)
    for _ in range(settings.steps):
        indices = order.next()
        loss = nn.functional.cross_entropy(module(values[indices]), labels[indices])
        optimiser.zero_grad()
        loss.backward()
        if settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), settings.gradient_clip)
        optimiser.step()
    return module


def _difference(head: LayerMix, task: Task, settings: FitSettings) -> str:
    """Return for each rate the largest difference of a parameter tensor from the plain loop's, relative to its norm."""
    fold = task.folds[0]
    values = head.inputs(task).values
    found = []
    for rate in RATES:
        one = replace(settings, learning_rate=(rate,))
        [outcome] = fit(head, replace(task, folds=(fold,)), one)
        torch.manual_seed(settings.seed)
        start = [value.detach() for value in head.module(**head.shapes(task)).parameters()]
        module = train_plainly(superb_plain, values, task, fold, one, start)
        found.append(f"{largest_difference(outcome, module):.0e} at {rate:g}")
    return ", ".join(found)


def largest_difference(outcome: Outcome, module: nn.Module) -> float:
    """Return the largest difference between the tensors of two trainings, relative to the norm of each."""
    names = [name for name in outcome.weights if not name.startswith("0.")]  # what standardises is not learnt
    pairs = zip((outcome.weights[name] for name in names), module.parameters(), strict=True)
    return max(
        float(np.linalg.norm(ours - plain) / np.linalg.norm(plain))
        for ours, plain in ((ours, parameter.detach().numpy().reshape(ours.shape)) for ours, parameter in pairs)
    )


def _row(what: str, how: str, seconds: Sequence[float], plain: Sequence[float], difference: str) -> dict[str, object]:
    return {
        "sweep": what,
        "how": how,
        "minutes": round(median(seconds) / 60, 2),
        "spread": f"± {50 * np.ptp(seconds) / median(seconds):.0f} %",
        "times the plain loop": round(median(plain) / median(seconds), 1),
        "largest difference": difference,
    }


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]), Size())
