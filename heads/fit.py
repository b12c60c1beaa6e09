"""The one training loop: folds and candidates side by side, weights and candidates chosen on validation.

Every member sees its own fold's training part only, in an order that depends on the seed and the fold. Each
`eval_every` steps the members are scored on their validation parts, and each one's best weights are kept. At the
end each fold takes the candidate that was best on its validation part, and scores its test part once.
"""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from featcache.errors import ConfigError, ProtocolError
from featcache.files import canonical_json
from heads import threads
from heads.folds import Fold
from heads.head import Candidate, FitSettings, GradientHead, Head, OnProgress, Outcome, Task
from heads.inputs import Inputs
from heads.layers import LayerMix
from heads.members import Alone, Members, State
from heads.metrics import ua, wa

_STATE_FORMAT = 3
_JOB_BYTES = 20 * 2**20
_MAKING = threading.Lock()  # initial weights come from torch's one generator


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
    _: KW_ONLY
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
    layers = head.source(task).spec.layers
    names = tuple(layers[number] for number in head.read_layers(len(layers)))
    inputs = head.inputs(task)
    own = [list(product(one.layers(len(names)), how.learning_rate, how.weight_decay)) for one, how in trainings]
    variants = list(dict.fromkeys(variant for several in own for variant in several))
    device = torch.device(task.device)
    works: list[threads.Work[list[_Result]]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        size = _job_size(head, task, len(variants))
        for fold in task.folds:
            parts = [torch.from_numpy(task.positions(part)) for part in fold.parts.values()]
            members = [_member(fold, parts, *variant) for variant in variants]
            for start in range(0, len(members), size):
                works.append(partial(_work, head, task, settings, inputs, members[start : start + size]))
        if head.stacked and device.type == "cpu":
            done = threads.run(works, settings.steps, on_progress)
        else:
            total = len(works) * settings.steps
            done = [
                work(partial(_report, on_progress, number * settings.steps, total)) for number, work in enumerate(works)
            ]
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
) -> list[_Result]:
    with _MAKING:
        job = _Job(head, task, settings, inputs, members)
    return job.run(on_progress)


def _report(on_progress: OnProgress, before: int, total: int, done: int) -> None:
    on_progress(before + done, total)


class _Job:
    """Members that train side by side: candidates of one fold, or one of them."""

    def __init__(
        self,
        head: GradientHead,
        task: Task,
        settings: FitSettings,
        inputs: Inputs,
        members: Sequence[Member],
    ) -> None:
        # What is kept of another version's jobs, or of other candidates side by side, is not taken up.
        key = [_STATE_FORMAT, members[0].fold.name, [dict(member.settings) for member in members]]
        self._name = hashlib.blake2b(canonical_json(key), digest_size=8).hexdigest()
        self._head = head
        shapes = head.shapes(task)
        self._task, self._settings, self._inputs, self._list = task, settings, inputs, list(members)
        self._fold = self._list[0]
        layers = [member.settings["layer"] for member in self._list]
        modules: dict[int | None, nn.Module] = {}
        for layer in dict.fromkeys(layers):
            torch.manual_seed(settings.seed)
            module = head.module(**shapes)
            head.prepare(module, inputs, self._fold.train, layer)
            modules[layer] = module.to(task.device)
        self._module = modules[layers[0]]
        self._mix = next((name for name, block in self._module.named_modules() if isinstance(block, LayerMix)), None)
        self._members = Members([modules[layer] for layer in layers]) if head.stacked else Alone(self._module)
        self._labels = torch.from_numpy(task.labels).to(task.device)
        self._layers = None if layers[0] is None else torch.tensor(layers)
        self._optimiser = self._members.optimiser(
            [member.settings["learning_rate"] for member in self._list],
            [member.settings["weight_decay"] for member in self._list],
            settings.gradient_clip,
        )
        self._windows = _generator(settings, f"{self._list[0].fold.name} windows")
        self._class_weights = self._weigh()

    def run(self, on_progress: Callable[[int], None]) -> list[_Result]:
        """Train, and score validation and test with each member's best weights."""
        settings = self._settings
        best = self._members.copy()
        order = Order(self._fold, settings)
        losses = torch.zeros(len(self._list), device=self._labels.device)
        since = 0
        if not self._head.stacked:
            torch.manual_seed(settings.seed)  # of dropout; several jobs at once draw no random numbers
        done, waited, finished = self._resume(best, order)
        saved_s = time.monotonic()
        on_progress(done)
        for step in range(done + 1, 1 if finished else settings.steps + 1):
            losses += self._step(order.next())
            since += 1
            if step % settings.eval_every == 0 or step == settings.steps:
                better = self._evaluate(step, losses / since, waited)
                self._members.keep(best, better)
                losses.zero_()
                since = 0
                waited = [0 if number in better else count + 1 for number, count in enumerate(waited)]
                if settings.patience is not None and min(waited) >= settings.patience:
                    on_progress(settings.steps)
                    break
                unfinished = self._task.unfinished
                if unfinished is not None and time.monotonic() - saved_s >= unfinished.every_s:
                    unfinished.save(self._name, self._state(best, order), self._facts(step, waited, False))
                    saved_s = time.monotonic()
            on_progress(step)
        if self._task.unfinished is not None and not finished:
            state = {f"best/{name}": value for name, value in best.items()}
            self._task.unfinished.save(self._name, state, self._facts(settings.steps, waited, True))
        self._members.load(best)
        return self._results()

    def _state(self, best: State, order: "Order") -> State:
        """Return all that the steps to come depend on."""
        state = {f"model/{name}": value for name, value in self._members.copy().items()}
        state |= {f"best/{name}": value for name, value in best.items()}
        state |= {f"optimiser/{name}": value for name, value in self._optimiser.state().items()}
        state |= {"order/left": order.left, "order/random": order.generator.get_state()}
        state["windows"] = self._windows.get_state()
        if not self._head.stacked:
            state["dropout"] = torch.get_rng_state()
            if torch.device(self._task.device).type == "cuda":
                state["dropout_cuda"] = torch.cuda.get_rng_state(self._task.device)
        return state

    def _facts(self, step: int, waited: Sequence[int], finished: bool) -> dict[str, Any]:
        members = [{"best": one.best, "best_step": one.best_step, "curve": one.curve} for one in self._list]
        return {"step": step, "waited": list(waited), "finished": finished, "members": members}

    def _resume(self, best: State, order: "Order") -> tuple[int, list[int], bool]:
        """Take up what was kept; return steps done, each one's evaluations since it was better, and if that is all."""
        kept = None if self._task.unfinished is None else self._task.unfinished.load(self._name)
        if kept is None:
            return 0, [0] * len(self._list), False
        state, facts = kept
        for member, known in zip(self._list, facts["members"], strict=True):
            member.best, member.best_step, member.curve = known["best"], known["best_step"], known["curve"]
        for name, value in best.items():
            value.copy_(state[f"best/{name}"])
        if not facts["finished"]:
            self._members.load(_below("model", state))
            self._optimiser.load(_below("optimiser", state))
            order.left = state["order/left"]
            order.generator.set_state(state["order/random"])
            self._windows.set_state(state["windows"])
            if "dropout" in state:
                torch.set_rng_state(state["dropout"])
            if "dropout_cuda" in state:
                torch.cuda.set_rng_state(state["dropout_cuda"], self._task.device)
        return facts["step"], facts["waited"], facts["finished"]

    def _step(self, indices: torch.Tensor) -> torch.Tensor:
        """Take one optimiser step on ``(batch,)`` utterances; return each member's loss, ``(members,)``."""
        self._members.train(True)
        labels = self._labels[indices.to(self._labels.device)]
        batch = self._inputs.training_batch(indices[None], self._layers, self._windows)
        with self._precision():
            output = self._members(batch)
        logits, further = output if isinstance(output, tuple) else (output, 0.0)
        members = len(logits)
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.repeat(members), reduction="none")
        weights = self._class_weights[labels]
        losses = loss.view(members, -1) @ (weights / weights.sum()) + further
        losses.sum().backward()  # a member's loss has no gradient in another member
        self._optimiser.step()
        return losses.detach()

    def _evaluate(self, step: int, losses: torch.Tensor, waited: Sequence[int]) -> list[int]:
        """Score every member on validation; return those that are better than ever, and had not run out of patience."""
        patience = math.inf if self._settings.patience is None else self._settings.patience
        better = []
        truth = self._truth(self._fold.validation)
        probabilities = self._probabilities(self._fold.validation)
        for number, member in enumerate(self._list):
            if waited[number] >= patience:
                continue
            # What is not finite would count as the first class.
            finite = bool(np.isfinite(probabilities[number]).all())
            value = _metric(self._settings, probabilities[number], truth) if finite else math.nan
            member.curve.append({"step": step, "loss": float(losses[number]), self._settings.select_by: value})
            if value > member.best:
                member.best, member.best_step = value, step
                better.append(number)
        return better

    def _probabilities(self, positions: torch.Tensor) -> np.ndarray:
        """Return ``(members, utterances, classes)`` float64 class probabilities."""
        self._members.train(False)
        values = np.empty((len(self._list), len(positions), len(self._task.classes)))
        with torch.no_grad(), self._precision():
            for chunk in self._inputs.chunks(positions):
                logits, owners = self._logits(positions[chunk])
                rows = torch.softmax(logits.double(), dim=2).cpu()
                total = torch.zeros(len(rows), len(chunk), rows.shape[2], dtype=torch.float64)
                total.index_add_(1, owners, rows)
                values[:, chunk.numpy()] = (total / torch.bincount(owners, minlength=len(chunk))[:, None]).numpy()
        return values

    def _logits(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(members, rows, classes)`` to score utterances by, and the utterance of each row."""
        if isinstance(self._members, Members):
            return self._members(self._inputs.batch(positions[None], self._layers)), torch.arange(len(positions))
        batch, owners = self._inputs.scored(positions, self._layers)
        return self._members.one(batch)[None], owners

    def _precision(self) -> torch.autocast:
        device = torch.device(self._task.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self._settings.precision == "bfloat16")

    def _truth(self, positions: torch.Tensor) -> np.ndarray:
        return self._task.labels[positions.numpy()]

    def _results(self) -> list[_Result]:
        """Return what each member gave with the weights that it has now."""
        validation, test = (self._probabilities(part) for part in (self._fold.validation, self._fold.test))
        truth = self._truth(self._fold.test)
        return [
            _Result(
                member,
                validation[number],
                test[number],
                _metric(self._settings, test[number], truth),
                {name: value.detach().cpu().numpy().copy() for name, value in self._members.state(number).items()},
                self._layer_weights(number),
            )
            for number, member in enumerate(self._list)
        ]

    def _layer_weights(self, number: int) -> np.ndarray | None:
        """Return what each layer contributes in one member, ``(layers,)``; None where nothing mixes layers."""
        if self._mix is None:
            return None
        mix = self._module.get_submodule(self._mix)
        alpha = self._members.state(number)[f"{self._mix}.alpha"]
        with torch.no_grad():
            weights = torch.func.functional_call(mix, {"alpha": alpha}, (torch.eye(len(alpha))[None],))
        values: np.ndarray = weights[0].cpu().numpy()
        return values

    def _weigh(self) -> torch.Tensor:
        """Return ``(classes,)`` weights of the loss."""
        num_classes = len(self._task.classes)
        if not self._settings.balanced:
            return torch.ones(num_classes, device=self._labels.device)
        counts = torch.bincount(self._labels.cpu()[self._fold.train], minlength=num_classes).float()
        return (counts.sum() / (num_classes * counts.clamp(min=1))).to(self._labels.device)


def _below(name: str, state: State) -> State:
    """Return what a state has under a name."""
    return {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}


class Order:
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
    """Choose a fold's candidate on validation; the first of equals. Scores are NaN where none was ever finite."""
    chosen = max(results, key=lambda result: result.member.best)
    unit = 1.0 if math.isfinite(chosen.member.best) else math.nan
    return Outcome(
        fold=fold.name,
        test=unit * chosen.test,
        validation=unit * chosen.validation,
        chosen={**_named(chosen.member.settings), "step": chosen.member.best_step},
        candidates=[
            Candidate(_named(one.member.settings), one.member.best, one.test_metric)
            if math.isfinite(one.member.best)
            else Candidate(_named(one.member.settings), math.nan, math.nan)
            for one in results
        ],
        curve=chosen.member.curve,
        weights=chosen.state,
        layer_weights=chosen.layer_weights,
        layer_names=layer_names,
    )


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
