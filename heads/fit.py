"""The one training loop: folds and candidates side by side, weights and candidates chosen on validation.

Every member sees its own fold's training part only, in an order that depends on the seed and the fold. Each
`eval_every` steps the members are scored on their validation parts, and each one's best weights are kept. At the
end each fold takes the candidate that was best on its validation part, and scores its test part once.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from featcache.errors import ProtocolError
from heads.folds import Fold
from heads.head import Candidate, FitSettings, GradientHead, OnProgress, Outcome, Task
from heads.inputs import Inputs
from heads.layers import LayerMix
from heads.members import Alone, Members, State
from heads.metrics import ua, wa


@dataclass
class Member:
    """One model: a fold with one candidate's settings.

    Attributes:
        fold: its fold.
        settings: what was varied: learning rate, weight decay, layer.
        train: ``(utterances,)`` positions of the training part.
        validation: of the validation part.
        test: of the test part.
        best: best metric on validation so far.
        best_step: the step it was reached at.
        curve: see :class:`heads.head.Outcome`.
    """

    fold: Fold
    settings: Mapping[str, Any]
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    best: float = -math.inf
    best_step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Result:
    member: Member
    validation: np.ndarray
    test: np.ndarray
    test_metric: float
    state: Mapping[str, np.ndarray]
    layer_weights: np.ndarray | None


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
    empty = [fold.name for fold in task.folds if not fold.validation]
    if empty:
        raise ProtocolError(
            f"Fold {empty[0]!r} has no validation part, and the head {head.kind()!r} chooses its weights on it. "
            "Give a validation share above 0."
        )
    names = head.source(task).spec.layers
    inputs = head.inputs(task)
    variants = list(product(head.layers(len(names)), settings.learning_rate, settings.weight_decay))
    members = [
        _member(task, fold, {"layer": layer, "learning_rate": rate, "weight_decay": decay})
        for fold in task.folds
        for layer, rate, decay in variants
    ]
    groups = [members] if head.stacked else [[member] for member in members]
    total = len(groups) * settings.steps
    results: list[_Result] = []
    for number, group in enumerate(groups):
        before = number * settings.steps
        job = _Job(head, task, settings, inputs, group, f"job-{number}")
        results += job.run(partial(_report, on_progress, before, total))
    return [_outcome(fold, [result for result in results if result.member.fold is fold], names) for fold in task.folds]


def _report(on_progress: OnProgress, before: int, total: int, done: int) -> None:
    on_progress(before + done, total)


def _member(task: Task, fold: Fold, settings: Mapping[str, Any]) -> Member:
    train, validation, test = (
        torch.from_numpy(task.positions(part)) for part in (fold.train, fold.validation, fold.test)
    )
    return Member(fold, settings, train, validation, test)


class _Job:
    """Members that train side by side."""

    def __init__(
        self,
        head: GradientHead,
        task: Task,
        settings: FitSettings,
        inputs: Inputs,
        members: Sequence[Member],
        name: str,
    ) -> None:
        self._name = name
        shapes = head.shapes(task)
        self._task, self._settings, self._inputs, self._list = task, settings, inputs, list(members)
        modules = []
        for member in self._list:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                module = head.module(**shapes)
            head.prepare(module, inputs, member.train, member.settings["layer"])
            modules.append(module.to(task.device))
        self._mix = next((name for name, block in modules[0].named_modules() if isinstance(block, LayerMix)), None)
        self._module = modules[0]
        self._members: Members | Alone = Members(modules) if head.stacked else Alone(modules[0])
        self._labels = torch.from_numpy(task.labels).to(task.device)
        layers = [member.settings["layer"] for member in self._list]
        self._layers = None if layers[0] is None else torch.tensor(layers)
        self._optimiser = self._members.optimiser(
            [member.settings["learning_rate"] for member in self._list],
            [member.settings["weight_decay"] for member in self._list],
            settings.gradient_clip,
        )
        self._windows = _generator(settings, f"{self._list[0].fold.name} windows")
        self._class_weights = torch.stack([self._weigh(member) for member in self._list])

    def run(self, on_progress: Callable[[int], None]) -> list[_Result]:
        """Train, and score validation and test with each member's best weights."""
        settings = self._settings
        best = self._members.copy()
        orders = [_Order(member, settings) for member in self._list]
        losses = torch.zeros(len(self._list), device=self._labels.device)
        since = 0
        device = torch.device(self._task.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(settings.seed)  # of dropout
            done, waited, finished = self._resume(best, orders)
            saved_s = time.monotonic()
            on_progress(done)
            for step in range(done + 1, 1 if finished else settings.steps + 1):
                losses += self._step(torch.stack([order.next() for order in orders]))
                since += 1
                if step % settings.eval_every == 0 or step == settings.steps:
                    better = self._evaluate(step, losses / since)
                    self._members.keep(best, better)
                    losses.zero_()
                    since, waited = 0, 0 if better else waited + 1
                    if settings.patience is not None and waited >= settings.patience:
                        on_progress(settings.steps)
                        break
                    unfinished = self._task.unfinished
                    if unfinished is not None and time.monotonic() - saved_s >= unfinished.every_s:
                        unfinished.save(self._name, self._state(best, orders), self._facts(step, waited, False))
                        saved_s = time.monotonic()
                on_progress(step)
        if self._task.unfinished is not None and not finished:
            state = {f"best/{name}": value for name, value in best.items()}
            self._task.unfinished.save(self._name, state, self._facts(settings.steps, waited, True))
        self._members.load(best)
        return [self._result(number) for number in range(len(self._list))]

    def _state(self, best: State, orders: Sequence["_Order"]) -> State:
        """Return all that the steps to come depend on."""
        state = {f"model/{name}": value for name, value in self._members.copy().items()}
        state |= {f"best/{name}": value for name, value in best.items()}
        state |= {f"optimiser/{name}": value for name, value in self._optimiser.state().items()}
        for number, order in enumerate(orders):
            state |= {f"order/{number}/left": order.left, f"order/{number}/random": order.generator.get_state()}
        state |= {"windows": self._windows.get_state(), "dropout": torch.get_rng_state()}
        if torch.device(self._task.device).type == "cuda":
            state["dropout_cuda"] = torch.cuda.get_rng_state(self._task.device)
        return state

    def _facts(self, step: int, waited: int, finished: bool) -> dict[str, Any]:
        members = [{"best": one.best, "best_step": one.best_step, "curve": one.curve} for one in self._list]
        return {"step": step, "waited": waited, "finished": finished, "members": members}

    def _resume(self, best: State, orders: Sequence["_Order"]) -> tuple[int, int, bool]:
        """Take up what was kept; return steps done, evaluations without a better one, and whether that is all."""
        kept = None if self._task.unfinished is None else self._task.unfinished.load(self._name)
        if kept is None:
            return 0, 0, False
        state, facts = kept
        for member, known in zip(self._list, facts["members"], strict=True):
            member.best, member.best_step, member.curve = known["best"], known["best_step"], known["curve"]
        for name, value in best.items():
            value.copy_(state[f"best/{name}"])
        if not facts["finished"]:
            self._members.load(_below("model", state))
            self._optimiser.load(_below("optimiser", state))
            for number, order in enumerate(orders):
                order.left = state[f"order/{number}/left"]
                order.generator.set_state(state[f"order/{number}/random"])
            self._windows.set_state(state["windows"])
            torch.set_rng_state(state["dropout"])
            if "dropout_cuda" in state:
                torch.cuda.set_rng_state(state["dropout_cuda"], self._task.device)
        return facts["step"], facts["waited"], facts["finished"]

    def _step(self, indices: torch.Tensor) -> torch.Tensor:
        """Take one optimiser step on ``(members, batch)`` utterances; return each member's loss, ``(members,)``."""
        self._members.train(True)
        labels = self._labels[indices.to(self._labels.device)]
        batch = self._inputs.training_batch(indices, self._layers, self._windows)
        with self._precision():
            output = self._members(batch)
        logits, further = output if isinstance(output, tuple) else (output, 0.0)
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        weights = self._class_weights.gather(1, labels)
        losses = (loss * weights).sum(1) / weights.sum(1) + further
        losses.sum().backward()  # a member's loss has no gradient in another member
        self._optimiser.step()
        return losses.detach()

    def _evaluate(self, step: int, losses: torch.Tensor) -> list[int]:
        """Score every member on validation; return those that are better than ever."""
        better = []
        for number, member in enumerate(self._list):
            value = _metric(
                self._settings, self._probabilities(number, member.validation), self._truth(member.validation)
            )
            member.curve.append({"step": step, "loss": float(losses[number]), self._settings.select_by: value})
            if value > member.best:
                member.best, member.best_step = value, step
                better.append(number)
        return better

    def _probabilities(self, number: int, positions: torch.Tensor) -> np.ndarray:
        """Return ``(utterances, classes)`` float64 class probabilities of one member."""
        self._members.train(False)
        layers = None if self._layers is None else self._layers[number : number + 1]
        values = np.empty((len(positions), len(self._task.classes)))
        with torch.no_grad(), self._precision():
            for chunk in self._inputs.chunks(positions):
                batch, owners = self._inputs.scored(positions[chunk], layers)
                logits = self._members.one(number, batch)
                rows = torch.softmax(logits.double(), dim=1).cpu()
                total = torch.zeros(len(chunk), rows.shape[1], dtype=torch.float64).index_add_(0, owners, rows)
                values[chunk.numpy()] = (total / torch.bincount(owners, minlength=len(chunk))[:, None]).numpy()
        return values

    def _precision(self) -> torch.autocast:
        device = torch.device(self._task.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self._settings.precision == "bfloat16")

    def _truth(self, positions: torch.Tensor) -> np.ndarray:
        return self._task.labels[positions.numpy()]

    def _result(self, number: int) -> _Result:
        member = self._list[number]
        state = {name: value.detach().cpu().numpy().copy() for name, value in self._members.state(number).items()}
        layer_weights = None
        if self._mix is not None:
            mix = self._module.get_submodule(self._mix)
            alpha = self._members.state(number)[f"{self._mix}.alpha"]
            with torch.no_grad():
                layer_weights = torch.func.functional_call(mix, {"alpha": alpha}, (torch.eye(len(alpha))[None],))
            layer_weights = layer_weights[0].cpu().numpy()
        test = self._probabilities(number, member.test)
        return _Result(
            member,
            self._probabilities(number, member.validation),
            test,
            _metric(self._settings, test, self._truth(member.test)),
            state,
            layer_weights,
        )

    def _weigh(self, member: Member) -> torch.Tensor:
        """Return ``(classes,)`` weights of the loss."""
        num_classes = len(self._task.classes)
        counts = torch.bincount(self._labels.cpu()[member.train], minlength=num_classes).float()
        weights = (
            counts.sum() / (num_classes * counts.clamp(min=1)) if self._settings.balanced else torch.ones(num_classes)
        )
        return weights.to(self._labels.device)


def _below(name: str, state: State) -> State:
    """Return what a state has under a name."""
    return {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}


class _Order:
    """Batches of one member: one shuffled pass over its training part after another.

    Attributes:
        left: ``(utterances,)`` what is left of passes that were begun.
        generator: shuffles.
    """

    def __init__(self, member: Member, settings: FitSettings) -> None:
        self._train, self._size = member.train, settings.batch_size
        self.left = torch.empty(0, dtype=torch.int64)
        self.generator = _generator(settings, member.fold.name)

    def next(self) -> torch.Tensor:
        """Return the next batch, ``(batch,)`` positions."""
        while len(self.left) < self._size:
            shuffled = self._train[torch.randperm(len(self._train), generator=self.generator)]
            self.left = torch.cat([self.left, shuffled])
        batch, self.left = self.left[: self._size], self.left[self._size :]
        return batch


def _generator(settings: FitSettings, name: str) -> torch.Generator:
    """Return random numbers that follow from the seed and a name alone."""
    key = hashlib.blake2b(f"{settings.seed} {name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(key))


def _metric(settings: FitSettings, probabilities: np.ndarray, truth: np.ndarray) -> float:
    predicted = probabilities.argmax(axis=1)
    return ua(truth, predicted) if settings.select_by == "ua" else wa(truth, predicted)


def _outcome(fold: Fold, results: Sequence[_Result], layer_names: Sequence[str]) -> Outcome:
    """Choose a fold's candidate on validation; the first of equals."""
    chosen = max(results, key=lambda result: result.member.best)
    return Outcome(
        fold=fold.name,
        test=chosen.test,
        validation=chosen.validation,
        chosen={**_named(chosen.member.settings), "step": chosen.member.best_step},
        candidates=[
            Candidate(_named(result.member.settings), result.member.best, result.test_metric) for result in results
        ],
        curve=chosen.member.curve,
        weights=chosen.state,
        layer_weights=chosen.layer_weights,
        layer_names=layer_names,
    )


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
