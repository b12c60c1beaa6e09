"""The one training loop: folds and candidates side by side, weights and candidates chosen on validation.

Every member sees its own fold's training part only, in an order that depends on the seed and the fold. Each
`eval_every` steps the members are scored on their validation parts, and each one's best weights are kept. At the
end each fold takes the candidate that was best on its validation part, and scores its test part once.
"""

import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import accumulate, product
from typing import Any

import torch

from featcache.errors import ConfigError, ProtocolError
from featcache.files import canonical_json
from heads import threads
from heads.fit_settings import FitSettings
from heads.folds import Fold
from heads.head import GradientHead, Head, OnProgress
from heads.inputs import Inputs
from heads.job import Job, Member, Result
from heads.layers import exact
from heads.order import num_steps
from heads.task import Candidate, Outcome, Task

_JOB_BYTES = 20 * 2**20
_Variant = tuple[int | None, float, float]
_MAKING = threading.Lock()  # initial weights come from torch's one generator


def fit(
    head: GradientHead, task: Task, settings: FitSettings, on_progress: OnProgress = lambda *_: None
) -> list[Outcome]:
    """Train a head on every fold of a task.

    Args:
        head: the head.
        task: the task.
        settings: how to train.
        on_progress: called with steps done and all steps.

    Returns:
        An outcome for each fold, in the order of the task.

    Raises:
        ProtocolError: a fold has no validation part to choose on.
    """
    [outcomes] = fit_each([(head, settings)], task, on_progress)
    return outcomes


def side_by_side(head: Head, settings: FitSettings) -> Hashable:
    """Return what trainings must share for :func:`fit_each` to train them as one job.

    They may differ in learning rates, weight decays and layers, which are the candidates of a fold, where the head
    trains its candidates side by side; trainings of other heads share with nothing that differs.
    """
    of_head = {item.name: getattr(head, item.name) for item in fields(head)}  # type: ignore[arg-type]
    of_fit = asdict(settings)
    if isinstance(head, GradientHead) and head.stacked:
        of_fit |= {"learning_rate": None, "weight_decay": None}
        if type(head).layers is not GradientHead.layers:
            of_head["layer"] = None
    return head.kind(), canonical_json([of_head, of_fit])


def fit_each(
    trainings: Sequence[tuple[GradientHead, FitSettings]], task: Task, on_progress: OnProgress = lambda *_: None
) -> list[list[Outcome]]:
    """Train heads that differ only in what a fold's candidates differ in, all candidates side by side.

    Each training chooses among its own candidates, and has the numbers that it has alone, to rounding: candidates of a
    fold read the same batches, however many there are. A candidate that several trainings have is trained once.

    Args:
        trainings: heads and how to train them, alike by :func:`side_by_side`.
        task: the task.
        on_progress: called with steps done and all steps.

    Returns:
        For each training its outcomes, one for each fold, in the order of the task.

    Raises:
        ConfigError: the trainings are not alike.
        ProtocolError: a fold has no validation part to choose on.
    """
    head, settings = trainings[0]
    if len({side_by_side(*training) for training in trainings}) > 1:
        raise ConfigError("Only trainings that differ in learning rate, weight decay or layer alone train as one job.")
    empty = [fold.name for fold in task.folds if not fold.validation]
    if empty:
        raise ProtocolError(
            f"Fold {empty[0]!r} has no validation part, and the head {head.kind()!r} chooses its weights on it. "
            "Give a validation share above 0."
        )
    names = tuple(head.layer_names(task))
    inputs = head.inputs(task)
    own = [list(product(one.layers(len(names)), how.learning_rate, how.weight_decay)) for one, how in trainings]
    variants = list(dict.fromkeys(variant for several in own for variant in several))
    device = torch.device(task.device)
    works: list[threads.Work[list[Result]]] = []
    done: list[list[Result]] = []
    steps: list[int] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        size = _job_size(head, task, len(variants))
        for fold in task.folds:
            parts = [torch.from_numpy(task.positions(part)) for part in fold.parts.values()]
            members = [_member(fold, parts, *variant) for variant in variants]
            for start in range(0, len(members), size):
                works.append(partial(_work, head, task, settings, inputs, members[start : start + size]))
                steps.append(num_steps(settings, len(fold.train)))
        if head.stacked and device.type == "cpu":
            done = threads.run(works, steps, on_progress)
        else:
            before = [0, *accumulate(steps)]
            tell = [partial(_report, on_progress, steps_before, before[-1]) for steps_before in before]
            a_fold = len(works) // len(task.folds)
            for first in range(0, len(works), a_fold):
                found = [result for at in range(first, first + a_fold) for result in works[at](tell[at])]
                done.append(_without_others(dict(zip(variants, found, strict=True)), own))
    results = [result for group in done for result in group]
    starts = range(0, len(results), len(variants))
    by_fold = [dict(zip(variants, results[start : start + len(variants)], strict=True)) for start in starts]
    return [
        [
            _outcome(fold, [found[variant] for variant in several], names)
            for fold, found in zip(task.folds, by_fold, strict=True)
        ]
        for several in own
    ]


def _without_others(found: Mapping[_Variant, Result], own: Sequence[Sequence[_Variant]]) -> list[Result]:
    """Return a fold's results without the weights of those that no training chooses: a large model's take gigabytes."""
    chosen = [_chosen([found[variant] for variant in several]) for several in own]
    return [result if result in chosen else replace(result, state={}) for result in found.values()]


def _job_size(head: GradientHead, task: Task, candidates: int) -> int:
    """Return how many candidates of a fold train as one job.

    They share their batches, which are read once for all. But what the optimiser reads and writes at each step is to
    stay in the processor's cache, and there are to be jobs for all cores; a GPU wants as much at once as there is.
    """
    if not head.stacked:
        return 1
    if torch.device(task.device).type != "cpu":
        return candidates
    weights = sum(parameter.numel() for parameter in head.module(**head.shapes(task)).parameters())
    most = max(1, _JOB_BYTES // (16 * weights))  # the weights, their gradient and two moments, each in 4 bytes
    return -(-candidates // -(-candidates // most))


def _member(fold: Fold, parts: Sequence[torch.Tensor], layer: int | None, rate: float, decay: float) -> Member:
    return Member(fold, {"layer": layer, "learning_rate": rate, "weight_decay": decay}, *parts)


def _work(
    head: GradientHead,
    task: Task,
    settings: FitSettings,
    inputs: Inputs,
    members: Sequence[Member],
    on_progress: Callable[[int], None],
) -> list[Result]:
    with exact(task.device):
        with _MAKING:
            job = Job(head, task, settings, inputs, members)
        return job.run(on_progress)


def _report(on_progress: OnProgress, before: int, total: int, done: int) -> None:
    on_progress(before + done, total)


def _outcome(fold: Fold, results: Sequence[Result], layer_names: Sequence[str]) -> Outcome:
    """Choose a fold's candidate on validation; the first of equals. Scores are NaN where none was ever finite."""
    chosen = _chosen(results)
    unit = 1.0 if math.isfinite(chosen.member.best) else math.nan
    taken: dict[str, Any] = {"step": chosen.member.best_step}
    if len(chosen.member.kept) > 1:
        taken["averaged"] = " ".join(str(step) for step in sorted(step for _, step in chosen.member.kept))
    return Outcome(
        fold=fold.name,
        test=unit * chosen.test,
        validation=unit * chosen.validation,
        chosen={**_named(chosen.member.settings), **taken},
        candidates=[
            Candidate(_named(one.member.settings), one.validation_metric, one.test_metric)
            if math.isfinite(one.member.best)
            else Candidate(_named(one.member.settings), math.nan, math.nan)
            for one in results
        ],
        curve=chosen.member.curve,
        weights=chosen.state,
        layer_weights=chosen.layer_weights,
        layer_names=layer_names,
        num_parameters=chosen.num_parameters,
    )


def _chosen(results: Sequence[Result]) -> Result:
    """Return the result that is best on validation; the first of equals."""
    return max(results, key=lambda one: one.validation_metric if math.isfinite(one.member.best) else -math.inf)


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
