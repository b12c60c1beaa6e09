"""Zhou's VGG network: its blocks by hand, and that padding, batches and other utterances decide nothing."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from speech_task import make_task

from featcache.errors import ConfigError
from heads.fit_settings import FitSettings
from heads.models.vgg import PaddedInputs, Vgg, VggModule
from heads.task import Task, Trained

LENGTHS = [6 + number % 7 for number in range(24)]
SMALL = Vgg(widths=(4, 6), hidden=8, dropout=0.5)
QUICK = FitSettings(steps=6, batch_size=4, eval_every=3)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    made = make_task(tmp_path_factory.mktemp("cache"), LENGTHS)
    return replace(made, streams={"log_mel": made.streams["log_mel"]})


def by_hand(module: VggModule, frames: torch.Tensor) -> torch.Tensor:
    """Return the logits of spectrograms ``(batch, frames, bands)`` already standardised and padded."""
    weights = dict(module.named_parameters())
    values = frames[:, None]
    for name in [name for name in weights if name.startswith("convolve") and name.endswith("weight")]:
        values = F.conv2d(values, weights[name], weights[name.replace("weight", "bias")], padding=1)
        values = torch.where(values > 0, values, 0.01 * values)
        rows, columns = values.shape[2] % 2, values.shape[3] % 2
        values = F.pad(values, (0, columns, 0, rows), value=-torch.inf)
        values = values.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    hidden = values.flatten(1) @ weights["project.0.weight"].T + weights["project.0.bias"]
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    return hidden @ weights["classify.weight"].T + weights["classify.bias"]


def test_it_is_five_convolutions_with_pools_and_two_linear_layers() -> None:
    module = Vgg(widths=(3, 4, 5, 6, 7), hidden=8).module(1, 20, 5, length=37).eval()
    frames = torch.randn(2, 1, 37, 20)
    torch.testing.assert_close(module(frames, torch.tensor([37, 37])), by_hand(module, frames[:, 0]))
    kinds = [type(block).__name__ for block in module.modules()]
    assert [kinds.count(kind) for kind in ("Conv2d", "MaxPool2d", "Linear", "LeakyReLU", "Dropout")] == [5, 5, 2, 6, 1]
    assert module.dropout.p == 0.6


def test_the_number_of_parameters_is_what_the_module_says() -> None:
    # IEMOCAP's longest utterance, and that slowed to 0.8 times the speed, as the documents have them.
    for length, bands, expected in (
        (1470, 128, 28.0e6), (1470, 20, 9.9e6), (1838, 128, 34.3e6), (1838, 20, 11.5e6),
    ):  # fmt: skip
        module = Vgg().module(1, bands, 5, length=length)
        widths, columns = (1, 64, 128, 256, 512, 512), -(-bands // 32)
        convolutions = sum(9 * a * b + b for a, b in pairwise(widths))
        by_formula = convolutions + (512 * -(-length // 32) * columns + 1) * 256 + 257 * 5
        assert sum(one.numel() for one in module.parameters()) == by_formula == pytest.approx(expected, abs=0.05e6)


def test_convolutions_begin_with_hes_weights_by_what_goes_in() -> None:
    torch.manual_seed(0)
    module = Vgg().module(1, 20, 5)
    weights = [value for name, value in module.convolve.named_parameters() if name.endswith("weight")]
    assert len(weights) == 5
    for weight in weights:
        wanted = (2 / (1 + 0.01**2) / weight[0].numel()) ** 0.5
        assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.1)
    assert not any(value.any() for name, value in module.convolve.named_parameters() if name.endswith("bias"))


def test_what_lies_behind_an_utterance_has_no_part() -> None:
    module = VggModule(SMALL, 5, 3, 12).eval()
    module.standardise.set_from(torch.full((5,), 3.0), torch.full((5,), 2.0))
    frames = torch.randn(2, 1, 12, 5)
    other = frames.clone()
    other[0, :, 7:] = torch.randn(5, 5)
    lengths = torch.tensor([7, 12])
    torch.testing.assert_close(module(frames, lengths), module(other, lengths))
    standardised = (frames[:, 0] - 3) / 2
    standardised[0, 7:] = 0
    torch.testing.assert_close(module(frames, lengths), by_hand(module, standardised))


def test_mean_and_variance_are_of_all_frames_of_the_training_part_alone(task: Task) -> None:
    inputs = SMALL.inputs(task)
    train = task.positions(task.folds[0].train)
    frames = np.concatenate([task.streams["log_mel"][task.ids[at]][0] for at in train]).astype(float)
    mean, std = inputs.moments(torch.from_numpy(train))
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, frames.std(0), rtol=1e-5)
    [outcome, *_] = SMALL.train(task, QUICK, lambda *_: None)
    np.testing.assert_allclose(outcome.weights["standardise.centre"], frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(outcome.weights["standardise.scale"], frames.std(0), rtol=1e-5)


def test_batches_and_chunks_change_no_score(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    head = replace(SMALL, length=9)
    [outcome, *_] = head.train(task, QUICK, lambda *_: None)
    trained = Trained(outcome.weights)
    together = head.score(task, trained)
    monkeypatch.setattr("heads.models.vgg._SCORED_BYTES", 1)
    assert {len(chunk) for chunk in head.inputs(task).chunks(torch.arange(5))} == {1}
    np.testing.assert_allclose(head.score(task, trained), together, atol=1e-7)
    at = task.positions(task.folds[0].test)
    np.testing.assert_allclose(together[at], outcome.test, atol=1e-7)


def test_other_utterances_are_scored_as_in_training_whatever_their_lengths(task: Task) -> None:
    """The common length is that of training, also where none of those to be scored is as long, or one is longer."""
    short = [name for name, length in zip(task.ids, LENGTHS, strict=True) if length < 10]
    training = replace(task, ids=short, labels=task.labels[task.positions(short)], folds=[
        replace(fold, **{part: tuple(name for name in getattr(fold, part) if name in short)
                         for part in ("train", "validation", "test")})
        for fold in task.folds
    ])  # fmt: skip
    context = SMALL.context(training)
    assert int(context["length"]) == 9
    assert replace(SMALL, length=9).context(training) == {}
    [outcome, *_] = SMALL.train(training, QUICK, lambda *_: None)
    scored = SMALL.score(replace(task, context=context), Trained(outcome.weights))
    where = task.positions(training.folds[0].test)
    np.testing.assert_allclose(scored[where], outcome.test, atol=1e-7)
    alone = replace(task, ids=[training.folds[0].test[0]], context=context)
    np.testing.assert_allclose(SMALL.score(alone, Trained(outcome.weights))[0], outcome.test[0], atol=1e-7)


def test_what_is_longer_than_the_length_is_cut_at_its_end(task: Task) -> None:
    frames, lengths = replace(SMALL, length=8).inputs(task).batch(torch.tensor([[0, 6]]), None)
    assert lengths.tolist() == [[6, 8]]
    np.testing.assert_array_equal(frames[0, 1, 0], task.streams["log_mel"][task.ids[6]][0][:8])
    assert not frames[0, 0, 0, 6:].any()
    assert isinstance(SMALL.inputs(task), PaddedInputs)
    assert SMALL.inputs(task).length == max(LENGTHS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"widths": ()}, "widths and hidden of 1 or more"),
        ({"hidden": 0}, "widths and hidden of 1 or more"),
        ({"length": 0}, "length of 1 frame or more, or to 'longest'; got 0"),
        ({"dropout": 1.0}, "dropout must be 0 to below 1"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Vgg(**settings)
