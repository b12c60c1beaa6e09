"""The text CNN computes what the paper and its code say, and neither padding nor company changes a text's score."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featcache
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError, UnknownNameError
from featcache.settings import build
from featcache.stream import Features, StreamSpec
from heads.fit_settings import FitSettings
from heads.folds import Fold
from heads.metrics import ua
from heads.models.linear_probe import LinearProbe
from heads.models.text_cnn import TextCnn, TextCnnModule
from heads.task import Task

DIM, LAYERS = 5, 2


def make_task(folder: Path, texts: Sequence[np.ndarray], labels: Sequence[int], parts: Sequence[range]) -> Task:
    """A cached stream of texts, each ``(layers, tokens, dim)``, and its task with one fold of three parts."""
    spec = StreamSpec(
        "toy", 1, "text", {}, tuple(f"l{n}" for n in range(len(texts[0]))), texts[0].shape[-1], axis="tokens",
        dtype="float32",
    )  # fmt: skip
    ids = [f"u{number:03d}" for number in range(len(texts))]
    stored = [
        store(name, "0", 0, Features(text.astype(np.float32)), spec, "frames")
        for name, text in zip(ids, texts, strict=True)
    ]
    with StreamWriter(folder, spec, "zarr", "frames") as writer:
        writer.commit(stored, {})
    train, validation, test = (tuple(ids[number] for number in part) for part in parts)
    classes = tuple(f"c{number}" for number in range(max(labels) + 1))
    fold = Fold("0", train, validation, test)
    return Task({"toy": featcache.open(folder)["toy"]}, ids, np.array(labels), classes, (fold,))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Eight texts of 1 to 15 tokens, without any order to be learnt; train, validation and test are all of them."""
    generator = np.random.default_rng(0)
    texts = [generator.standard_normal((LAYERS, length, DIM)) for length in (1, 2, 3, 7, 10, 11, 12, 15)]
    return make_task(tmp_path_factory.mktemp("cache"), texts, [0, 1, 2, 0, 1, 2, 0, 1], [range(8)] * 3)


@pytest.fixture(scope="module")
def bigrams(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Texts that hold the tokens 0 and 1 once, side by side among others; the class is which one comes first."""
    generator = np.random.default_rng(1)
    texts, labels = [], []
    for number in range(240):
        tokens = generator.integers(2, DIM, generator.integers(4, 14)).tolist()
        place = generator.integers(0, len(tokens) + 1)
        tokens[place:place] = [0, 1] if number % 2 else [1, 0]
        texts.append(np.eye(DIM)[None, tokens])
        labels.append(number % 2)
    parts = [range(0, 140), range(140, 180), range(180, 240)]
    return make_task(tmp_path_factory.mktemp("bigrams"), texts, labels, parts)


def score(head: TextCnn, task: Task, module: nn.Module, positions: Sequence[int]) -> np.ndarray:
    """Return ``(texts, classes)`` probabilities of texts that are scored as one batch."""
    hidden, lengths = head.inputs(task).batch(torch.tensor([list(positions)]), None)
    with torch.no_grad():
        return torch.softmax(module(hidden[0], lengths[0]), 1).numpy()


def seeded(head: TextCnn, num_layers: int = LAYERS, dim: int = DIM, num_classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return head.module(num_layers, dim, num_classes).eval()


@pytest.mark.parametrize("layer", [-1, 0, "mix"])
@pytest.mark.parametrize("length", [None, "longest", 40])
def test_batch_and_order_change_no_score(task: Task, layer: int | str, length: int | str | None) -> None:
    head = TextCnn(layer=layer, fixed_length=length)  # type: ignore[arg-type]
    module = seeded(head)
    together = score(head, task, module, range(8))
    shuffled = [5, 0, 7, 2, 1, 6, 3, 4]
    np.testing.assert_allclose(score(head, task, module, shuffled), together[shuffled], atol=1e-6)
    for position in range(8):
        np.testing.assert_allclose(score(head, task, module, [position])[0], together[position], atol=1e-6)
    assert np.ptp(together, axis=0).min() > 1e-4


@pytest.mark.parametrize("conv_padding", [0, 1, 2])
@pytest.mark.parametrize("kernels", [(1, 1, 8, 4), (3, 2, 4, 7)])
def test_what_lies_behind_a_text_changes_no_score(kernels: tuple[int, ...], conv_padding: int) -> None:
    module = seeded(TextCnn(kernels=kernels, conv_padding=conv_padding))
    for length in (1, 2, 5, 11, 30):
        hidden = torch.randn(1, 1, length, DIM)
        behind = torch.full((1, 1, 25, DIM), math.nan)
        lengths = torch.tensor([length])
        with torch.no_grad():
            torch.testing.assert_close(
                module(torch.cat([hidden, behind], 2), lengths), module(hidden, lengths), rtol=0, atol=1e-6
            )


def test_the_papers_sizes_have_623556_parameters() -> None:
    convolutions = 1024 * 256 + 256 + 256 * 256 + 256 + 256 * 128 * 8 + 128 + 128 * 64 * 4 + 64
    module = TextCnn().module(1, 1024, 4)
    assert sum(one.numel() for one in module.parameters() if one.requires_grad) == convolutions + 64 * 4 + 4 == 623556
    mixed = TextCnn(layer="mix").module(25, 1024, 4)
    assert sum(one.numel() for one in mixed.parameters()) == 623556 + 25


def tiny(conv_padding: int, fixed: int | None = None) -> TextCnnModule:
    """Two convolutions of one channel, of weight 2 and bias -1, then of weights 1, 10, 100 and bias -5."""
    head = TextCnn(widths=(1, 1), kernels=(1, 3), conv_padding=conv_padding, fixed_length=fixed)
    module = head.module(1, 1, 2)
    assert isinstance(module, TextCnnModule)
    values = [[[[2.0]]], [-1.0], [[[1.0, 10.0, 100.0]]], [-5.0], [[1.0], [-1.0]], [0.0, 0.5]]
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    return module


@pytest.mark.parametrize(
    ("conv_padding", "fixed", "text", "mean"),
    [
        # 1, 0, 2 become 1, 0, 3 by 2x - 1 and ReLU, and a zero behind them 0.
        # Three positions see a token: 1 + 0 + 300 - 5 = 296, 0 + 30 + 0 - 5 = 25, 3 + 0 + 0 - 5 < 0.
        (0, None, [1, 0, 2], (296 + 25 + 0) / 3),
        # With a zero on either side twice there are two more: 0 + 0 + 100 - 5 = 95 and 0 + 10 + 0 - 5 = 5.
        (1, None, [1, 0, 2], (95 + 5 + 296 + 25 + 0) / 5),
        # One token, 2 -> 3: seen at three places of the kernel: 295, 25, and 3 - 5 < 0.
        (1, None, [2], (295 + 25 + 0) / 3),
        (0, None, [2], 0.0),
        # The paper's form at a length of 5: the same three positions, of a zero-padded text.
        (0, 5, [1, 0, 2, 0, 0], (296 + 25 + 0) / 3),
        # 5 + 2 + 2 tokens give 7 positions, two of which see padding alone: 0 - 5 < 0.
        (1, 5, [1, 0, 2, 0, 0], (95 + 5 + 296 + 25 + 0 + 0 + 0) / 7),
    ],
)
def test_a_tiny_network_gives_what_was_computed_by_hand(
    conv_padding: int, fixed: int | None, text: list[int], mean: float
) -> None:
    hidden = torch.tensor(text, dtype=torch.float32)[None, None, :, None]
    lengths = torch.tensor([len(text) if fixed is None else 3])
    with torch.no_grad():
        logits = tiny(conv_padding, fixed)(hidden, lengths)
    np.testing.assert_allclose(logits.numpy(), [[mean, 0.5 - mean]], rtol=1e-6)


def test_the_default_is_the_papers_form_without_positions_that_see_padding_alone(task: Task) -> None:
    """As sums over positions, before the mean: fixed = default + (positions left out) x (what pure padding gives)."""
    head = TextCnn(conv_padding=0, fixed_length=40)
    fixed = seeded(head)
    default = seeded(replace(head, fixed_length=None))
    fixed.classify, default.classify = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    hidden, lengths = head.inputs(task).batch(torch.arange(8)[None], None)
    with torch.no_grad():
        nothing = fixed(torch.zeros(1, 1, 40, DIM), torch.tensor([0]))
        count = lengths[0][:, None]
        expected = (default(hidden[0], lengths[0]) * count + nothing * (30 - count)) / 30
        torch.testing.assert_close(fixed(hidden[0], lengths[0]), expected, rtol=0, atol=1e-6)


def test_the_fixed_form_is_a_plain_sequence_on_zero_padded_texts(task: Task) -> None:
    head = TextCnn(conv_padding=0, fixed_length="longest")
    module = seeded(head)
    plain = nn.Sequential(
        nn.Conv1d(DIM, 256, 1), nn.ReLU(), nn.Conv1d(256, 256, 1), nn.ReLU(), nn.Conv1d(256, 128, 8), nn.ReLU(),
        nn.Conv1d(128, 64, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    plain.load_state_dict(dict(zip(plain.state_dict(), module.state_dict().values(), strict=True)))
    texts = torch.stack(
        [F.pad(torch.from_numpy(task.streams["toy"][name][-1].copy()).T, (0, 15 - n))
         for name, n in zip(task.ids, (1, 2, 3, 7, 10, 11, 12, 15), strict=True)]
    )  # fmt: skip
    with torch.no_grad():
        expected = torch.softmax(plain(texts), 1).numpy()
    np.testing.assert_allclose(score(head, task, module, [3, 0]), expected[[3, 0]], atol=1e-6)
    np.testing.assert_allclose(score(head, task, module, range(8)), expected, atol=1e-6)


def test_the_published_codes_network_is_reached_by_settings(task: Task) -> None:
    """There every text has 122 tokens, every convolution pads one zero, and the pool spans 118 of 120 positions."""
    head = TextCnn(fixed_length=122, pooled=118, sigmoid=True)
    module = seeded(head)
    weights = list(module.state_dict().values())
    hidden, _ = head.inputs(task).batch(torch.arange(8)[None], None)
    assert hidden.shape == (1, 8, 1, 122, DIM)
    values = hidden[0, :, 0].transpose(1, 2)
    for weight, bias in zip(weights[:8:2], weights[1:8:2], strict=True):
        values = F.relu(F.conv1d(values, weight, bias, padding=1))
    assert values.shape[2] == 120
    values = F.avg_pool1d(values, 118)
    assert values.shape[2] == 1
    expected = torch.softmax(torch.sigmoid(F.linear(values[..., 0], *weights[8:])), 1)
    np.testing.assert_allclose(score(head, task, module, range(8)), expected.numpy(), atol=1e-6)


def test_a_sigmoid_bounds_the_probabilities(task: Task) -> None:
    head = TextCnn(sigmoid=True)
    module = seeded(head, num_classes=4)
    with torch.no_grad():
        module.get_parameter("classify.bias").copy_(torch.tensor([1e3, -1e3, -1e3, -1e3]))
    assert score(head, task, module, range(8)).max() == pytest.approx(math.e / (math.e + 3), abs=1e-6)
    assert math.e / (math.e + 3) == pytest.approx(0.475, abs=5e-4)


def test_a_learned_mix_reads_every_layer_and_one_layer_only_itself(task: Task) -> None:
    inputs = TextCnn(layer="mix").inputs(task).batch(torch.tensor([[7]]), None)
    assert inputs[0].shape == (1, 1, LAYERS, 15, DIM)
    np.testing.assert_array_equal(inputs[0][0, 0].numpy(), task.streams["toy"]["u007"])
    for layer in (0, 1, -1, -2):
        hidden, _ = TextCnn(layer=layer).inputs(task).batch(torch.tensor([[7]]), None)
        np.testing.assert_array_equal(hidden[0, 0, 0].numpy(), task.streams["toy"]["u007"][layer])
    for weighting, start in {"softmax": 0.0, "ratio": 1.0}.items():
        module = TextCnn(layer="mix", weighting=weighting).module(LAYERS, DIM, 3)  # type: ignore[arg-type]
        assert module.get_parameter("mix.alpha").tolist() == [start] * LAYERS
    quick = FitSettings(steps=2, batch_size=4, eval_every=1)
    [mixed] = TextCnn(layer="mix", weighting="ratio").train(task, quick, lambda *_: None)
    assert mixed.layer_weights is not None
    assert mixed.layer_weights.sum() == pytest.approx(1.0)
    [single] = TextCnn().train(task, quick, lambda *_: None)
    assert single.layer_weights is None
    with pytest.raises(UnknownNameError, match="no layer for text_cnn '2'"):
        TextCnn(layer=2).inputs(task)


@pytest.mark.parametrize("length", [None, "longest"])
def test_eight_texts_are_learnt_by_heart_and_again_to_the_same_numbers(task: Task, length: str | None) -> None:
    head = TextCnn(fixed_length=length)  # type: ignore[arg-type]
    settings = FitSettings(steps=150, batch_size=8, eval_every=25, learning_rate=(3e-3,))
    [first], [second] = (head.train(task, settings, lambda *_: None) for _ in range(2))
    assert ua(task.labels, first.test.argmax(1)) == 1.0
    np.testing.assert_array_equal(first.test, second.test)
    assert first.weights.keys() == second.weights.keys()
    for name, values in first.weights.items():
        np.testing.assert_array_equal(values, second.weights[name])


def test_the_order_of_two_tokens_is_learnt_and_a_probe_of_the_mean_cannot(bigrams: Task) -> None:
    settings = FitSettings(steps=200, batch_size=32, eval_every=25, learning_rate=(1e-3,))
    [fold] = bigrams.folds
    truth = bigrams.labels[bigrams.positions(fold.test)]
    [ours] = TextCnn(widths=(64, 64, 64, 64)).train(bigrams, settings, lambda *_: None)
    [probe] = LinearProbe().train(bigrams, settings, lambda *_: None)
    assert ua(truth, ours.test.argmax(1)) > 0.95
    assert ua(truth, probe.test.argmax(1)) < 0.7


def test_a_text_longer_than_the_fixed_length_is_named(task: Task) -> None:
    TextCnn(fixed_length=15).inputs(task)
    with pytest.raises(ConfigError, match=r"'u007' has 15 tokens, more than the fixed_length of 14 .* 'longest'"):
        TextCnn(fixed_length=14).inputs(task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (4, 4)}, r"a width and a kernel, .* got widths \(4, 4\) and kernels \(1, 1, 8, 4\)"),
        ({"widths": (), "kernels": ()}, r"got widths \(\) and kernels \(\)"),
        ({"kernels": (1, 1, 0, 4)}, r"kernels \(1, 1, 0, 4\)"),
        ({"conv_padding": 3}, "begin 12 tokens before the text, .* sees 11.* set conv_padding to a smaller number"),
        ({"conv_padding": -1}, "conv_padding to a smaller number, 0 or more"),
        ({"pooled": 3}, "pooled=3 is of the form that fixed_length gives"),
        ({"fixed_length": "shortest"}, "head text_cnn: fixed_length"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(TextCnn, settings, "head text_cnn")


@pytest.mark.parametrize(("length", "pooled", "positions"), [(16, 15, 14), (16, 0, 14)])
def test_a_mean_over_more_positions_than_there_are_is_refused(
    task: Task, length: int, pooled: int, positions: int
) -> None:
    with pytest.raises(ConfigError, match=f"{length} tokens .* give {positions} positions, .* go over {pooled}"):
        TextCnn(fixed_length=length, pooled=pooled).inputs(task)


def test_texts_that_are_all_too_short_for_the_fixed_form_are_refused(tmp_path: Path) -> None:
    texts = [np.ones((1, length, DIM)) for length in (1, 2, 2)]
    short = make_task(tmp_path, texts, [0, 1, 0], [range(3)] * 3)
    with pytest.raises(ConfigError, match="2 tokens of padded text give 0 positions"):
        TextCnn(fixed_length="longest").inputs(short)
    TextCnn(fixed_length=3).inputs(short)
    assert np.isfinite(score(TextCnn(), short, seeded(TextCnn()), range(3))).all()
