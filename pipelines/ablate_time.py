"""How long an ablation takes: by the runs of a kind that are there, or by a trial of a few steps."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.errors import FeatcacheError
from heads.fit import fit_each
from heads.head import GradientHead
from heads.order import unit_steps
from pipelines import show
from pipelines.ablate_plan import Plan
from pipelines.config import TrainConfig
from pipelines.train_heads import Prepared

_STEPS = 6


def kind(config: TrainConfig) -> tuple[str, str]:
    """Return what runs share that take about as long a step: their head and streams."""
    return config.head, ", ".join(config.streams)


def estimate(planned: Plan) -> str:
    """Return how long what is to be trained takes, in words.

    By the seconds that runs of the same head and streams took that are there; of other kinds by a few steps, on one
    fold, of the longest job. Reading the cache and the start of processes are not in a trial.
    """
    kinds = {run.name: kind(run.config) for run in planned.ablation.runs}
    rates = _measured(planned, kinds)
    tried = set()
    for batch in planned.batches:  # the longest first
        one = kinds[batch.runs[0]]
        if one not in rates and one not in tried:
            tried.add(one)
            with suppress(FeatcacheError, RuntimeError, MemoryError):  # what fails here fails there, and says so
                rates |= _trial(one, [planned.prepared[name] for name in batch.runs])
    known = [name for name in planned.todo if kinds[name] in rates]
    if not known:
        return "unknown before a run is done"
    needed = sum(planned.work[name] * rates[kinds[name]] for name in known)
    text = f"about {show.duration(needed / min(planned.at_once, len(planned.batches)))}"
    if any(kinds[name] in tried for name in known):
        text += ", by a trial of a few steps"
    unknown = len(planned.todo) - len(known)
    return f"{text}, for {len(known)} runs; unknown for {unknown} others" if unknown else text


def _measured(planned: Plan, kinds: Mapping[str, tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Return seconds a unit of work, of each kind of which a run is there."""
    seconds: dict[tuple[str, str], float] = {}
    work: dict[tuple[str, str], int] = {}
    for name in planned.done:
        took: Any = planned.recorded.get(planned.moved.get(name, Path(name)).name, {}).get("seconds")
        if isinstance(took, int | float):
            seconds[kinds[name]] = seconds.get(kinds[name], 0.0) + took
            work[kinds[name]] = work.get(kinds[name], 0) + planned.work[name]
    return {one: seconds[one] / work[one] for one in work if work[one]}


def _trial(of: tuple[str, str], several: Sequence[Prepared]) -> dict[tuple[str, str], float]:
    """Return seconds a unit of work of runs that train as one job; nothing where their head takes no steps."""
    pairs = [(one.head, one.config.fit) for one in several if isinstance(one.head, GradientHead)]
    if not pairs:
        return {}
    task = several[0].task()
    task = replace(task, folds=task.folds[:1], place="disk")
    layers = len(pairs[0][0].source(task).spec.layers)
    candidates = sum(len(head.layers(layers)) * len(fit.learning_rate) * len(fit.weight_decay) for head, fit in pairs)

    def timed(steps: int, eval_every: int) -> float:
        started = time.perf_counter()
        fit_each([(head, replace(fit, steps=steps, eval_every=eval_every, unit="step")) for head, fit in pairs], task)
        return time.perf_counter() - started

    one, all_steps, with_evaluations = timed(1, 1), timed(_STEPS, _STEPS), timed(_STEPS, 1)
    step = max(0.0, all_steps - one) / (_STEPS - 1)
    evaluation = max(0.0, with_evaluations - all_steps) / (_STEPS - 1)
    every = pairs[0][1].eval_every * unit_steps(pairs[0][1], len(task.folds[0].train))
    return {of: (step + evaluation / every) / candidates}
