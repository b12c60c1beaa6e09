"""The training loop does what its settings say: schedules, accumulation, averages, rates apart, soft targets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from speech_task import make_task
from torch import nn

from featcache.errors import ConfigError
from heads.fit import fit
from heads.fit_settings import FitSettings
from heads.head import GradientHead
from heads.inputs import FrameInputs
from heads.job import Job, Member
from heads.layers import LayerMix, masked_mean
from heads.members import Alone, Members, average
from heads.models.ecapa import Ecapa
from heads.models.layer_mix import LayerMix as LayerMixHead
from heads.models.linear_probe import LinearProbe
from heads.models.mean_pool import MeanPool
from heads.models.mlp_probe import MlpProbe
from heads.order import Order, num_steps, rate_factor, unit_steps
from heads.task import Task
from heads.unfinished import Unfinished

ALL = FitSettings(
    steps=6, eval_every=2, unit="epoch", batch_size=4, accumulate=2, average=2, optimiser="sgd", momentum=0.5,
    halve_from=2, halve_every=2, pretrained_rate=1e-3, bucketed=True, learning_rate=(0.1,), gradient_clip=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    made = make_task(tmp_path_factory.mktemp("cache"), [6 + number % 11 for number in range(36)])
    return replace(made, streams={"toy": made.streams["toy"]}, folds=made.folds[:2])


class Toy(nn.Module):
    """A frozen map, one that came from elsewhere, and a classifier."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.mix = LayerMix(2)
        self.frozen = nn.Linear(dim, dim).requires_grad_(False)
        self.known = nn.Linear(dim, dim)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        pooled = masked_mean(self.known(self.frozen(hidden[:, 0])), lengths)
        logits: torch.Tensor = self.classify(pooled)
        return torch.cat([logits, 2 * logits, 3 * logits]) if self.training else logits


@dataclass(frozen=True)
class ToyHead(GradientHead[FrameInputs]):
    """The head of :class:`Toy`."""

    title, tier, stacked = "toy", "frames", False

    def inputs(self, task: Task) -> FrameInputs:
        return FrameInputs(task.view(task.stream("toy")))

    def module(self, num_layers: int, dim: int, num_classes: int) -> nn.Module:
        return Toy(dim, num_classes)

    def pretrained(self, module: nn.Module) -> Sequence[str]:
        return [name for name, _ in module.named_parameters() if name.startswith("known.")]


def job(task: Task, settings: FitSettings, head: GradientHead | None = None) -> Job:
    fold = task.folds[0]
    parts = [torch.from_numpy(task.positions(part)) for part in fold.parts.values()]
    head = ToyHead() if head is None else head
    [layer] = head.layers(len(head.layer_names(task)))
    member = Member(fold, {"layer": layer, "learning_rate": settings.learning_rate[0], "weight_decay": 0.0}, *parts)
    return Job(head, task, settings, head.inputs(task), [member])


def test_padi_s_rate_is_constant_for_eight_epochs_and_then_halved_every_other_one() -> None:
    settings = FitSettings(unit="epoch", halve_from=8, halve_every=2)
    expected = [1.0] * 8 + [0.5] * 2 + [0.25] * 2 + [0.125]
    assert [rate_factor(settings, epoch) for epoch in range(13)] == expected
    assert {rate_factor(FitSettings(), step) for step in range(100)} == {1.0}


def test_an_epoch_is_the_steps_nearest_to_one_pass() -> None:
    settings = FitSettings(steps=3, unit="epoch", batch_size=4, accumulate=2)
    assert [unit_steps(settings, number) for number in (1, 8, 11, 12, 16, 19)] == [1, 1, 1, 2, 2, 2]
    assert num_steps(settings, 16) == 6
    assert num_steps(replace(settings, unit="step"), 9) == 3


def test_sgd_steps_are_those_computed_by_hand(task: Task) -> None:
    """One parameter's numbers through momentum, the halved rate and the rate apart."""
    settings = FitSettings(
        optimiser="sgd", momentum=0.5, learning_rate=(0.1,), pretrained_rate=0.01, gradient_clip=None
    )
    module = Toy(3, 2)
    members = Alone(module)
    assert sorted(members.parameters) == ["classify.bias", "classify.weight", "known.bias", "known.weight", "mix.alpha"]
    optimiser = members.optimiser(settings, [0.1], [0.0], ["known.bias", "known.weight"])
    known, own = module.known.bias.detach().clone(), module.classify.bias.detach().clone()
    for factor in (1.0, 1.0, 0.5):
        module.known.bias.grad = torch.ones(3)
        module.classify.bias.grad = torch.ones(2)
        optimiser.step(factor)
    # velocities 1, 1.5, 1.75; rates 1, 1, 0.5 times the base
    moved = 1 + 1.5 + 0.5 * 1.75
    torch.testing.assert_close(module.known.bias.detach(), known - 0.01 * moved)
    torch.testing.assert_close(module.classify.bias.detach(), own - 0.1 * moved)


def test_accumulated_batches_take_the_step_of_one_large_batch(task: Task) -> None:
    """Two batches of 5 are one of 10, since the order of a fold's utterances is the same."""
    whole = FitSettings(steps=4, eval_every=4, batch_size=10, learning_rate=(0.05,))
    head = LayerMixHead(projector_dim=4)
    ones, halves = fit(head, task, whole), fit(head, task, replace(whole, batch_size=5, accumulate=2))
    for one, other in zip(ones, halves, strict=True):
        for name, value in one.weights.items():
            np.testing.assert_allclose(other.weights[name], value, rtol=1e-4, atol=1e-6)
        assert other.curve[-1]["loss"] == pytest.approx(one.curve[-1]["loss"], rel=1e-5)


def test_copies_of_a_batch_share_its_labels(task: Task) -> None:
    """The module gives three rows an utterance in training: the loss is the mean over all."""
    one = job(task, FitSettings(batch_size=6))
    positions = torch.arange(6)
    torch.manual_seed(3)
    loss = one._loss(positions)
    frames, lengths = one._inputs.batch(positions[None], None)
    module = one._module.train(False)
    logits = module(frames[0], lengths[0])
    labels = torch.from_numpy(task.labels)[positions]
    expected = torch.stack([F.cross_entropy(factor * logits, labels) for factor in (1, 2, 3)]).mean()
    torch.testing.assert_close(loss[0], expected)


@pytest.mark.parametrize("balanced", [False, True])
def test_soft_targets_are_aimed_at_in_place_of_labels(task: Task, balanced: bool) -> None:
    num_classes = len(task.classes)
    votes = np.full((len(task.ids), num_classes), 0.1)
    votes[np.arange(len(task.ids)), task.labels] = 1 - 0.1 * (num_classes - 1)
    settings = FitSettings(batch_size=6, balanced=balanced)
    one = job(replace(task, targets=votes), settings, MeanPool(dropout=0.0))
    positions = torch.arange(6)
    with torch.no_grad():
        loss = one._loss(positions)
        frames, lengths = one._inputs.batch(positions[None], None)
        logs = torch.log_softmax(one._module(frames[0], lengths[0]), 1)
    wanted = torch.from_numpy(votes[:6]).float()
    weights = wanted @ one._class_weights
    expected = (weights * -(wanted * logs).sum(1)).sum() / weights.sum()
    torch.testing.assert_close(loss[0], expected)


def test_one_hot_targets_give_what_labels_give(task: Task) -> None:
    settings = FitSettings(steps=6, eval_every=3, batch_size=4)
    hot = np.eye(len(task.classes))[task.labels]
    for one, other in zip(
        fit(MeanPool(), task, settings), fit(MeanPool(), replace(task, targets=hot), settings), strict=True
    ):
        np.testing.assert_allclose(one.test, other.test, rtol=1e-5)


def test_the_best_evaluations_are_kept_and_the_worst_gives_way() -> None:
    member = Member.__new__(Member)
    member.kept = []
    places = [
        member.place(value, step, 3) for step, value in enumerate([0.5, 0.4, 0.6, 0.4, 0.55, math.nan, 0.55, 0.7])
    ]
    assert places == [0, 1, 2, None, 1, None, 0, 0]  # of the two 0.55 the later gave way to 0.7
    assert member.kept == [(0.7, 7), (0.55, 4), (0.6, 2)]


def test_averaging_takes_the_mean_of_each_members_own_checkpoints() -> None:
    slots = [
        {"w": torch.tensor([[1.0, 2.0], [10.0, 20.0]]), "count": torch.tensor([1, 2])},
        {"w": torch.tensor([[3.0, 4.0], [99.0, 99.0]]), "count": torch.tensor([5, 6])},
        {"w": torch.tensor([[8.0, 9.0], [99.0, 99.0]]), "count": torch.tensor([7, 8])},
    ]
    mean = average(slots, [3, 1], stacked=True)
    assert mean["w"].tolist() == [[4.0, 5.0], [10.0, 20.0]]
    assert mean["count"].tolist() == [1, 2]
    alone = average([{name: value[0] for name, value in slot.items()} for slot in slots], [2], stacked=False)
    assert alone["w"].tolist() == [2.0, 3.0]
    assert alone["count"].item() == 1
    assert not alone["count"].is_floating_point()
    assert average(slots, [1, 0], stacked=True) is slots[0]


@pytest.mark.parametrize(
    "head",
    [
        LayerMixHead(projector_dim=4),
        MeanPool(projector_dim=4),
        Ecapa(
            channels=4, mfa_channels=4, dilations=(1,), scale=2, se_channels=2, attention_channels=2, embedding_dim=3
        ),
    ],
    ids=["stacked", "alone", "batch norm"],
)
def test_a_run_ends_with_the_mean_of_its_best_checkpoints(task: Task, head: GradientHead) -> None:
    """All evaluations averaged: each one's weights are those of a run that ends there and takes its last."""
    settings = FitSettings(steps=6, eval_every=2, batch_size=4, learning_rate=(0.05,), average=3)
    averaged = fit(head, task, settings)
    ends = {}
    for steps in (2, 4, 6):
        alone = job_weights(head, task, replace(settings, steps=steps, eval_every=steps, average=1))
        ends[steps] = alone
    for number, outcome in enumerate(averaged):
        assert outcome.chosen["averaged"] == "2 4 6"
        for name, value in outcome.weights.items():
            each = [ends[steps][number][name] for steps in ends]
            counts = value.dtype.kind == "i"  # batches that batch norm saw, of the first that is kept
            np.testing.assert_allclose(value, each[0] if counts else np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
        [candidate] = outcome.candidates
        truth = task.labels[task.positions(task.folds[number].validation)]
        recalls = [np.mean(outcome.validation.argmax(1)[truth == label] == label) for label in np.unique(truth)]
        assert candidate.validation == pytest.approx(np.mean(recalls))


def job_weights(head: GradientHead, task: Task, settings: FitSettings) -> list[dict[str, np.ndarray]]:
    return [dict(outcome.weights) for outcome in fit(head, task, settings)]


def test_batches_of_like_length_read_everything_once_a_pass() -> None:
    train, sizes = torch.arange(100, 153), torch.arange(200) % 37
    order = Order(train, "1", FitSettings(batch_size=8), sizes)
    plain = Order(train, "1", FitSettings(batch_size=8))
    batches = [order.next() for _ in range(53)]
    assert all(len(batch) == 8 for batch in batches)
    counts = torch.bincount(torch.cat(batches), minlength=153)[100:]
    assert counts.tolist() == [8] * 53
    twice = sum(len(batch.unique()) < 8 for batch in batches)
    assert twice <= 8  # at most the batch that begins a pass with what was left of the one before
    spread = [int(sizes[batch].max() - sizes[batch].min()) for batch in batches]
    wide = [int(sizes[batch].max() - sizes[batch].min()) for batch in (plain.next() for _ in range(53))]
    assert np.mean(spread) < 0.4 * np.mean(wide)
    means = [float(sizes[batch].float().mean()) for batch in batches[:6]]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_frozen_parameters_stay_and_others_move(task: Task) -> None:
    [first, _] = fit(ToyHead(), task, ALL)
    torch.manual_seed(ALL.seed)
    fresh = Toy(task.streams["toy"].spec.dim, len(task.classes)).state_dict()
    assert np.array_equal(first.weights["frozen.weight"], fresh["frozen.weight"].numpy())
    for name in ("known.weight", "classify.weight"):
        assert not np.array_equal(first.weights[name], fresh[name].numpy())
    assert first.num_parameters == sum(value.numel() for value in fresh.values())
    assert first.layer_weights is not None


@pytest.mark.parametrize("stop", [1, 3, 7, 11, 17])
def test_all_settings_at_once_resume_to_the_same_numbers(task: Task, tmp_path: Path, stop: int) -> None:
    one = replace(task, folds=task.folds[:1])
    [whole] = fit(ToyHead(), one, ALL)
    kept = replace(one, unfinished=Unfinished(tmp_path, every_s=0.0))

    def interrupt(done: int, total: int) -> None:
        if done >= stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(ToyHead(), kept, ALL, interrupt)
    [resumed] = fit(ToyHead(), kept, ALL)
    assert resumed.curve == whole.curve
    assert resumed.chosen == whole.chosen
    for name, value in whole.weights.items():
        assert np.array_equal(value, resumed.weights[name]), name


@pytest.mark.parametrize(
    "head",
    [LayerMixHead(projector_dim=4), LinearProbe(layer=1), MlpProbe(layer=1, hidden=(5, 4)), ToyHead()],
    ids=lambda head: type(head).__name__,
)
def test_a_run_begins_with_another_ones_weights_but_for_the_classes(task: Task, head: GradientHead) -> None:
    settings = FitSettings(steps=5, eval_every=5, batch_size=4)
    [first, _] = fit(head, task, settings)
    begun = job(replace(task, start={task.folds[0].name: first.weights}), settings, head)
    for name, value in begun._module.state_dict().items():
        same = np.array_equal(value.numpy(), first.weights[name])
        assert same != name.startswith(head.of_classes()) or "frozen" in name, name
    assert any(name.startswith(head.of_classes()) for name in first.weights)


def test_a_start_that_does_not_fit_whole_is_refused(task: Task) -> None:
    [first, _] = fit(MeanPool(projector_dim=4), task, FitSettings(steps=1, eval_every=1))
    fold = task.folds[0].name
    with pytest.raises(ConfigError, match=r"does not fit the head 'mean_pool'.*2 of 3 weights, such as 'project"):
        job(replace(task, start={fold: first.weights}), FitSettings(), MeanPool(projector_dim=5))
    lacking = {name: value for name, value in first.weights.items() if name != "mix.alpha"}
    with pytest.raises(ConfigError, match=r"1 of 3 weights, such as 'mix.alpha', .* is not there"):
        job(replace(task, start={fold: lacking}), FitSettings(), MeanPool(projector_dim=4))


def test_frozen_parameters_of_stacked_members_stay() -> None:
    modules = [nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2)) for _ in range(2)]
    members = Members(modules)
    assert sorted(members.parameters) == ["1.bias", "1.weight"]
    before = members.copy()
    optimiser = members.optimiser(FitSettings(), [0.1, 0.1], [0.0, 0.0])
    members((torch.randn(1, 5, 3),)).square().sum().backward()
    optimiser.step()
    after = members.copy()
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == {"1.weight", "1.bias"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"average": 0}, "average must be at least 1"),
        ({"halve_from": 0}, "halve_from must be at least 1"),
        ({"momentum": 1.0}, "momentum must be 0 to below 1"),
        ({"pretrained_rate": 0.0}, "pretrained_rate must be positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        FitSettings(**values)  # type: ignore[arg-type]


def test_frames_say_how_long_they_are(task: Task) -> None:
    sizes = ToyHead().inputs(task).sizes()
    assert sizes is not None
    assert sizes.tolist() == [task.streams["toy"].num_frames(name) for name in task.ids]
