"""One job of the training loop: members that train side by side on one fold, or one alone."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from featcache.errors import ConfigError
from featcache.files import canonical_json
from heads.fit_settings import FitSettings
from heads.folds import Fold
from heads.head import Begun, GradientHead
from heads.inputs import Inputs
from heads.layers import LayerMix
from heads.members import Alone, Members, State, average
from heads.metrics import ua, wa
from heads.order import Order, generator, num_steps, rate_factor, unit_steps
from heads.task import Task

_STATE_FORMAT = 5


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
        kept: metric and step of each evaluation whose weights are kept: the `FitSettings.average` best so far.
        curve: see :class:`heads.task.Outcome`.
    """

    fold: Fold
    settings: Mapping[str, Any]
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    _: KW_ONLY
    best: float = -math.inf
    best_step: int = 0
    kept: list[tuple[float, int]] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)

    def place(self, value: float, step: int, most: int) -> int | None:
        """Return where the weights of an evaluation are to be kept, and note it; None where they are not.

        The first `most` are, then those better than the worst kept, whose place they take; of equals the earlier stays.
        """
        if not math.isfinite(value):
            return None
        if len(self.kept) < most:
            self.kept.append((value, step))
            return len(self.kept) - 1
        worst = min(range(most), key=lambda at: (self.kept[at][0], -self.kept[at][1]))
        if value <= self.kept[worst][0]:
            return None
        self.kept[worst] = (value, step)
        return worst


@dataclass(frozen=True, eq=False)
class Result:
    """What one member gave with the weights that it ended with.

    Attributes:
        member: it.
        validation: class probabilities of the validation part.
        test: of the test part.
        validation_metric: metric on validation.
        test_metric: the same on test.
        state: weights by name.
        layer_weights: see :class:`heads.task.Outcome`.
        num_parameters: parameters of its module.
    """

    member: Member
    validation: np.ndarray
    test: np.ndarray
    validation_metric: float
    test_metric: float
    state: Mapping[str, np.ndarray]
    layer_weights: np.ndarray | None
    num_parameters: int


class Job:
    """Members that train side by side: candidates of one fold, or one of them.

    Args:
        head: the head.
        task: the task.
        settings: how to train.
        inputs: what the head reads.
        members: the members, all of one fold.
    """

    def __init__(
        self, head: GradientHead, task: Task, settings: FitSettings, inputs: Inputs, members: Sequence[Member]
    ) -> None:
        # What is kept of another version's jobs, or of other candidates side by side, is not taken up.
        key = [_STATE_FORMAT, members[0].fold.name, [dict(member.settings) for member in members]]
        self._name = hashlib.blake2b(canonical_json(key), digest_size=8).hexdigest()
        self._head = head
        self._task, self._settings, self._inputs, self._list = task, settings, inputs, list(members)
        self._fold = self._list[0]
        layers = [member.settings["layer"] for member in self._list]
        modules = {layer: self._made(layer) for layer in dict.fromkeys(layers)}
        self._module = modules[layers[0]]
        self._mixes = [name for name, block in self._module.named_modules() if isinstance(block, LayerMix)]
        self._members = Members([modules[layer] for layer in layers]) if head.stacked else Alone(self._module)
        self._labels = torch.from_numpy(task.labels).to(task.device)
        self._targets = None if task.targets is None else torch.from_numpy(task.targets).float().to(task.device)
        self._layers = None if layers[0] is None else torch.tensor(layers)
        apart = {*head.pretrained(self._module), *_taken(head, self._module, task.start.get(self._fold.fold.name, {}))}
        if settings.pretrained_rate is not None and not apart:
            raise ConfigError(
                f"fit.pretrained_rate is {settings.pretrained_rate:g}, the rate of what begins with weights learnt "
                f"elsewhere, and here all of the head {head.kind()!r} begins at random. Set start to the folder of a "
                "run whose weights it begins with, or fit.pretrained_rate to null."
            )
        self._optimiser = self._members.optimiser(
            settings,
            [member.settings["learning_rate"] for member in self._list],
            [member.settings["weight_decay"] for member in self._list],
            apart,
        )
        self._windows = generator(settings, f"{self._fold.fold.name} windows")
        self._class_weights = self._weigh()
        self._unit = unit_steps(settings, len(self._fold.train))
        self.steps = num_steps(settings, len(self._fold.train))

    def _made(self, layer: int | None) -> nn.Module:
        """Return a module as it is before the first step."""
        head, task = self._head, self._task
        torch.manual_seed(self._settings.seed)
        module = head.module(**head.shapes(task))
        started = task.start.get(self._fold.fold.name)
        if started is not None:
            if isinstance(started, Begun):
                started.check(head, [stream.spec for stream in task.streams.values()])
            names = _taken(head, module, started)
            module.load_state_dict({name: torch.from_numpy(np.array(started[name])) for name in names}, strict=False)
        head.prepare(module, self._inputs, self._fold.train, layer)
        return module.to(task.device)

    def run(self, on_progress: Callable[[int], None]) -> list[Result]:
        """Train, and score validation and test with each member's best weights, or the average of the best."""
        settings = self._settings
        best: list[State] = [self._members.copy()]
        order = Order(
            self._fold.train, self._fold.fold.name, settings, self._inputs.sizes() if settings.bucketed else None
        )
        losses = torch.zeros(len(self._list), device=self._labels.device)
        since = 0
        if not self._head.stacked:
            torch.manual_seed(settings.seed)  # of dropout; several jobs at once draw no random numbers
        done, since, waited, finished = self._resume(best, order, losses)
        saved_s, took_s = time.monotonic(), 0.0
        on_progress(done)
        for step in range(done + 1, 1 if finished else self.steps + 1):
            losses += self._step(order, step)
            since += 1
            if step % (settings.eval_every * self._unit) == 0 or step == self.steps:
                better = self._evaluate(step, losses / since, waited, best)
                losses.zero_()
                since = 0
                waited = [0 if number in better else count + 1 for number, count in enumerate(waited)]
                if settings.patience is not None and min(waited) >= settings.patience:
                    on_progress(self.steps)
                    break
            unfinished = self._task.unfinished
            if unfinished is not None and time.monotonic() - saved_s >= unfinished.pause_s(took_s):
                took_s = time.monotonic()
                state = self._state(best, order) | {"losses": losses}
                unfinished.save(self._name, state, self._facts(step, since, waited, False))
                saved_s = time.monotonic()
                took_s = saved_s - took_s
            on_progress(step)
        if not finished:
            best = [average(best, [len(member.kept) for member in self._list], self._head.stacked)]
            if self._task.unfinished is not None:
                self._task.unfinished.save(self._name, _kept(best), self._facts(self.steps, 0, waited, True))
        self._members.load(best[0])
        return self._results()

    def _state(self, best: Sequence[State], order: Order) -> State:
        """Return all that the steps to come depend on."""
        state = {f"model/{name}": value for name, value in self._members.copy().items()} | _kept(best)
        state |= {f"optimiser/{name}": value for name, value in self._optimiser.state().items()}
        state |= {"order/left": order.left, "order/random": order.generator.get_state()}
        state["windows"] = self._windows.get_state()
        if not self._head.stacked:
            state["dropout"] = torch.get_rng_state()
            if torch.device(self._task.device).type == "cuda":
                state["dropout_cuda"] = torch.cuda.get_rng_state(self._task.device)
        return state

    def _facts(self, step: int, since: int, waited: Sequence[int], finished: bool) -> dict[str, Any]:
        members = [
            {"best": one.best, "best_step": one.best_step, "kept": one.kept, "curve": one.curve} for one in self._list
        ]
        return {"step": step, "since": since, "waited": list(waited), "finished": finished, "members": members}

    def _resume(self, best: list[State], order: Order, losses: torch.Tensor) -> tuple[int, int, list[int], bool]:
        """Take up what was kept.

        Returns:
            Steps done, those since the last evaluation, each member's evaluations since it was better, if that is all.
        """
        kept = None if self._task.unfinished is None else self._task.unfinished.load(self._name)
        if kept is None:
            return 0, 0, [0] * len(self._list), False
        state, facts = kept
        for member, known in zip(self._list, facts["members"], strict=True):
            member.best, member.best_step, member.curve = known["best"], known["best_step"], known["curve"]
            member.kept = [(value, step) for value, step in known["kept"]]
        while f"best/{len(best)}/{next(iter(best[0]))}" in state:
            best.append(self._members.copy())
        for number, slot in enumerate(best):
            for name, value in slot.items():
                value.copy_(state[f"best/{number}/{name}"])
        if not facts["finished"]:
            self._members.load(_below("model", state))
            self._optimiser.load(_below("optimiser", state))
            order.left = state["order/left"]
            order.generator.set_state(state["order/random"])
            self._windows.set_state(state["windows"])
            losses.copy_(state["losses"])
            if "dropout" in state:
                torch.set_rng_state(state["dropout"])
            if "dropout_cuda" in state:
                torch.cuda.set_rng_state(state["dropout_cuda"], self._task.device)
        return facts["step"], facts["since"], facts["waited"], facts["finished"]

    def _step(self, order: Order, step: int) -> torch.Tensor:
        """Take one optimiser step; return each member's loss, ``(members,)``."""
        self._members.train(True)
        count = self._settings.accumulate
        losses = torch.zeros(len(self._list), device=self._labels.device)
        for _ in range(count):
            batch = self._loss(order.next()) / count
            batch.sum().backward()  # a member's loss has no gradient in another member
            losses += batch.detach()
        self._optimiser.step(rate_factor(self._settings, (step - 1) // self._unit))
        return losses

    def _loss(self, indices: torch.Tensor) -> torch.Tensor:
        """Return each member's loss on ``(batch,)`` utterances, ``(members,)``."""
        chosen = indices.to(self._labels.device)
        batch = self._inputs.training_batch(indices[None], self._layers, self._windows)
        with self._precision():
            output = self._members(batch)
        logits, further = output if isinstance(output, tuple) else (output, 0.0)
        members, rows, _ = logits.shape
        copies = rows // len(chosen)  # of the batch, one after the other
        labels = self._labels[chosen].repeat(copies)
        weights = self._class_weights[labels]
        targets = labels
        if self._targets is not None:
            targets = self._targets[chosen].repeat(copies, 1)
            weights = targets @ self._class_weights
        repeated = targets.repeat(members, *[1] * (targets.ndim - 1))
        loss = F.cross_entropy(logits.float().flatten(0, 1), repeated, reduction="none")
        return loss.view(members, -1) @ (weights / weights.sum()) + further

    def _evaluate(self, step: int, losses: torch.Tensor, waited: Sequence[int], best: list[State]) -> list[int]:
        """Score every member on validation and keep the weights of those that are among their best.

        Returns:
            The members that are better than ever, and had not run out of patience.
        """
        patience = math.inf if self._settings.patience is None else self._settings.patience
        better = []
        places: dict[int, list[int]] = {}
        truth = self._truth(self._fold.validation)
        probabilities = self._probabilities(self._fold.validation)
        for number, member in enumerate(self._list):
            if waited[number] >= patience:
                continue
            # What is not finite would count as the first class.
            finite = bool(np.isfinite(probabilities[number]).all())
            value = _metric(self._settings, probabilities[number], truth) if finite else math.nan
            member.curve.append({"step": step, "loss": float(losses[number]), self._settings.select_by: value})
            place = member.place(value, step, self._settings.average)
            if place is not None:
                places.setdefault(place, []).append(number)
            if value > member.best:
                member.best, member.best_step = value, step
                better.append(number)
        for place, members in places.items():
            if place == len(best):
                best.append(self._members.copy())
            self._members.keep(best[place], members)
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

    def _results(self) -> list[Result]:
        """Return what each member gives with the weights that it has now."""
        validation, test = (self._probabilities(part) for part in (self._fold.validation, self._fold.test))
        truths = [self._truth(part) for part in (self._fold.validation, self._fold.test)]
        return [
            Result(
                member,
                validation[number],
                test[number],
                member.best if self._settings.average == 1 else _metric(self._settings, validation[number], truths[0]),
                _metric(self._settings, test[number], truths[1]),
                {name: value.detach().cpu().numpy().copy() for name, value in self._members.state(number).items()},
                self._layer_weights(number),
                sum(parameter.numel() for parameter in self._module.parameters()),
            )
            for number, member in enumerate(self._list)
        ]

    def _layer_weights(self, number: int) -> np.ndarray | None:
        """Return what each layer contributes in one member, ``(layers,)``; None where nothing mixes layers."""
        state, found = self._members.state(number), []
        for name in self._mixes:
            alpha = state[f"{name}.alpha"]
            with torch.no_grad():
                eye = torch.eye(len(alpha), device=alpha.device)[None]
                weights = torch.func.functional_call(self._module.get_submodule(name), {"alpha": alpha}, (eye,))
            found.append(weights[0].cpu().numpy())
        return np.concatenate(found) if found else None

    def _weigh(self) -> torch.Tensor:
        """Return ``(classes,)`` weights of the loss."""
        num_classes = len(self._task.classes)
        if not self._settings.balanced:
            return torch.ones(num_classes, device=self._labels.device)
        counts = torch.bincount(self._labels.cpu()[self._fold.train], minlength=num_classes).float()
        return (counts.sum() / (num_classes * counts.clamp(min=1))).to(self._labels.device)


def _taken(head: GradientHead, module: nn.Module, started: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of what a module takes from the weights that it begins with; nothing where there are none.

    Raises:
        ConfigError: they lack one, or have it in another shape: what is left would begin at random, unnoticed.
    """
    if not started:
        return []
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wanted = [name for name in shapes if not name.startswith(head.of_classes())]
    unfit = [name for name in wanted if name not in started or started[name].shape != shapes[name]]
    if unfit:
        there = f"is {started[unfit[0]].shape} there" if unfit[0] in started else "is not there"
        raise ConfigError(
            f"The run to start from does not fit the head {head.kind()!r} with these settings and streams: "
            f"{len(unfit)} of {len(wanted)} weights, such as {unfit[0]!r}, which is {shapes[unfit[0]]} here and "
            f"{there}. Start from a run of the same head with the same sizes and streams."
        )
    return wanted


def _kept(best: Sequence[State]) -> State:
    return {f"best/{number}/{name}": value for number, slot in enumerate(best) for name, value in slot.items()}


def _below(name: str, state: State) -> State:
    """Return what a state has under a name."""
    return {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}


def _metric(settings: FitSettings, probabilities: np.ndarray, truth: np.ndarray) -> float:
    predicted = probabilities.argmax(axis=1)
    return ua(truth, predicted) if settings.select_by == "ua" else wa(truth, predicted)
