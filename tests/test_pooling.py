"""Pooling heads over several streams: one rate by hand, either fusion by hand, and padding that changes no score."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from torch import nn

import featcache
from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError, StreamError, UnknownNameError
from featcache.settings import build
from featcache.stream import Features, StreamSpec
from heads.fit_settings import FitSettings
from heads.folds import make_folds
from heads.layers import masked_mean
from heads.models.ecapa import Ecapa
from heads.models.mean_pool import MeanPool
from heads.pooling import PoolingHead
from heads.streams import StreamShape, at_rate, join, shift_of, slow_lengths
from heads.task import Task, Trained
from pipelines.reporting.details import LayerWeights
from pipelines.reporting.figures import layer_weights
from pipelines.reporting.plots import layer_weights as drawn

NUM, CLASSES = 36, 3
SPECS = {
    "mel": StreamSpec("mel", 1, "audio", {}, ("mel",), 4, frame_shift_s=0.01, dtype="float32"),
    "states": StreamSpec("states", 1, "audio", {}, ("low", "high"), 3, frame_shift_s=0.02, dtype="float32"),
    "words": StreamSpec("words", 1, "text", {}, ("last",), 5, axis="tokens", dtype="float32"),
}
HEADS: Sequence[PoolingHead] = (
    MeanPool(projector_dim=6),
    Ecapa(channels=8, mfa_channels=12, scale=2, se_channels=4, attention_channels=4, embedding_dim=6, dropout=0.2),
)
HEAD_NAMES = [head.kind() for head in HEADS]
QUICK = FitSettings(steps=30, eval_every=10, batch_size=8, learning_rate=(1e-2,))


def lengths(number: int) -> dict[str, int]:
    """Return the frames of an utterance in each stream: mels are centred, so they have one or two more."""
    states = 4 + number % 5
    return {"mel": 2 * states + 1 + number % 2, "states": states, "words": 1 + number % 4}


def make_task(folder: Path, longer: int = 0, names: Sequence[str] = ("mel", "states")) -> Task:
    """Three classes, of which no stream alone tells more than one from the others.

    Args:
        folder: the cache.
        longer: frames that the states of the last utterance have more.
        names: streams of the task.
    """
    utterances = [
        Utterance(f"u{number:03d}", label="abc"[number % 3], speaker=f"s{number // 3 % 3}") for number in range(NUM)
    ]
    for name, spec in SPECS.items():
        stored = []
        for number in range(NUM):
            count = lengths(number)[name] + (longer if name == "states" and number == NUM - 1 else 0)
            generator = np.random.default_rng([number, len(name)])
            frames = 0.3 * generator.standard_normal((len(spec.layers), count, spec.dim)).astype(np.float32)
            frames[-1, :, 0] += 2.0 * (number % 3 == {"mel": 0, "states": 1, "words": 2}[name])
            stored.append(store(f"u{number:03d}", "0", 0, Features(frames), spec, "frames"))
        with StreamWriter(folder, spec, "zarr", "frames") as writer:
            writer.commit(stored, {})
    cache = featcache.open(folder)
    return Task(
        {name: cache[name] for name in names},
        [one.id for one in utterances],
        np.arange(NUM) % CLASSES,
        ("a", "b", "c"),
        tuple(make_folds(Manifest(utterances), "speaker")),
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("cache"), names=("states", "words"))


def by_hand(frames: torch.Tensor, count: int, shift: Fraction, slow: Fraction, num: int) -> list[list[float]]:
    """Average frames over each slow frame's time, second by second; what is not there has no part."""
    rows = []
    for wanted in range(num):
        total, filled = [0.0] * frames.shape[1], Fraction(0)
        for at in range(count):
            overlap = min((at + 1) * shift, (wanted + 1) * slow) - max(at * shift, wanted * slow)
            if overlap > 0:
                filled += overlap
                total = [old + float(overlap) * float(new) for old, new in zip(total, frames[at], strict=True)]
        rows.append([value / float(filled) if filled else 0.0 for value in total])
    return rows


@pytest.mark.parametrize(("fast", "slow"), [("1/100", "1/50"), ("1/100", "1/40"), ("2/125", "1/50"), ("3/100", "1/25")])
def test_frames_are_averaged_over_each_slow_frames_time(fast: str, slow: str) -> None:
    shift, wanted = Fraction(fast), Fraction(slow)
    frames, counts = torch.randn(2, 20, 3), torch.tensor([20, 13])
    most = int(slow_lengths([counts], [shift])[0].max())
    found = at_rate(frames, counts, wanted / shift, most)
    for row in range(2):
        expected = by_hand(frames[row], int(counts[row]), shift, wanted, most)
        torch.testing.assert_close(found[row], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_a_whole_ratio_is_the_plain_mean_and_one_is_the_frames_themselves() -> None:
    frames, counts = torch.randn(2, 12, 3), torch.tensor([12, 12])
    torch.testing.assert_close(at_rate(frames, counts, Fraction(3), 4), frames.view(2, 4, 3, 3).mean(2))
    assert torch.equal(at_rate(frames, counts, Fraction(1), 12), frames)


def test_a_frame_that_fills_part_of_a_slow_one_stands_for_it_where_it_is_alone() -> None:
    shifts = [Fraction(1, 100), Fraction(1, 50)]
    assert [one.tolist() for one in slow_lengths([torch.tensor([1, 5]), torch.tensor([1, 3])], shifts)] == [
        [1, 2], [1, 3],
    ]  # fmt: skip
    frames = torch.tensor([[[7.0], [100.0]]])
    assert at_rate(frames, torch.tensor([1]), Fraction(2), 1).tolist() == [[[7.0]]]


def test_joined_streams_end_where_the_first_of_them_does() -> None:
    fast, slow = torch.arange(8.0).view(1, 8, 1), torch.tensor([[[10.0], [20.0], [30.0]]])
    joined, counts = join(
        [fast, slow], [torch.tensor([7]), torch.tensor([3])], [Fraction(1, 100), Fraction(1, 50)]
    )  # fmt: skip
    assert counts.tolist() == [3]
    assert joined.tolist() == [[[0.5, 10.0], [2.5, 20.0], [4.5, 30.0]]]
    _, counts = join([fast, slow], [torch.tensor([5]), torch.tensor([3])], [Fraction(1, 100), Fraction(1, 50)])
    assert counts.tolist() == [2]


def test_shifts_are_exact_fractions() -> None:
    spec = SPECS["mel"]
    assert shift_of(spec) == Fraction(1, 100)
    assert shift_of(replace(spec, frame_shift_s=256 / 22050)) == Fraction(256, 22050)
    assert shift_of(replace(spec, frame_shift_s=1 / 16000)) == Fraction(1, 16000)
    assert shift_of(SPECS["words"]) is None
    assert shift_of(replace(spec, frame_shift_s=None)) is None


@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize("head", HEADS, ids=HEAD_NAMES)
def test_two_streams_tell_what_one_alone_cannot(task: Task, head: PoolingHead, fusion: str) -> None:
    both = build(type(head), {**vars(head), "fusion": fusion}, "head")
    fit = replace(QUICK, steps=80, eval_every=20)
    for outcome, fold in zip(both.train(task, fit, lambda *_: None), task.folds, strict=True):
        right = outcome.test.argmax(axis=1) == task.labels[task.positions(fold.test)]
        assert right.mean() > 0.9
        assert outcome.layer_weights is not None
        np.testing.assert_allclose(outcome.layer_weights[0], 1.0)
        np.testing.assert_allclose(outcome.layer_weights[1:].sum(), 1.0, rtol=1e-6)
        assert list(outcome.layer_names) == ["mel: mel", "states: low", "states: high"]


@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize("head", HEADS, ids=HEAD_NAMES)
def test_padding_of_several_streams_changes_no_score(task: Task, head: PoolingHead, fusion: str) -> None:
    both = replace(head, fusion=fusion, standardise=True)  # type: ignore[arg-type]
    inputs, module = both.inputs(task), both.module(**both.shapes(task)).eval()
    both.prepare(module, inputs, torch.arange(20), None)
    everyone = torch.arange(NUM)
    batch, _ = inputs.scored(everyone, None)
    together = module(*batch)
    garbage = []
    for frames, counts in zip(batch[::2], batch[1::2], strict=True):
        wider = torch.cat([frames, torch.zeros_like(frames[:, :, :3])], dim=2)
        behind = torch.arange(wider.shape[2]) >= counts[:, None]
        garbage += [wider.masked_fill(behind[:, None, :, None], 1e4), counts]
    torch.testing.assert_close(module(*garbage), together, rtol=1e-4, atol=1e-5)
    alone = torch.cat([module(*inputs.scored(everyone[[at]], None)[0]) for at in range(NUM)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", [None, "early", "late"])
@pytest.mark.parametrize("head", HEADS, ids=HEAD_NAMES)
def test_numbers_behind_an_utterance_change_no_gradient(head: PoolingHead, fusion: Literal["early", "late"]) -> None:
    """Those of the layer weights among them, which read every frame of a batch."""
    shapes = (StreamShape(2, 3, Fraction(1, 50)), StreamShape(2, 4, Fraction(1, 100)))[: 2 if fusion else 1]
    counts = [torch.tensor([5, 8, 3]), torch.tensor([10, 16, 6])]
    hidden = [torch.randn(3, 2, int(count.max()) + 2, one.dim) for one, count in zip(shapes, counts, strict=False)]
    found = []
    for garbage in (0.0, 1e4):
        torch.manual_seed(0)
        module = replace(head, fusion=fusion, dropout=0.0).module(2, 3, CLASSES, shapes)
        behind = [torch.arange(one.shape[2]) >= count[:, None] for one, count in zip(hidden, counts, strict=False)]
        filled = [one.masked_fill(mask[:, None, :, None], garbage) for one, mask in zip(hidden, behind, strict=True)]
        batch = [item for pair in zip(filled, counts, strict=False) for item in pair]
        module(*batch).square().sum().backward()
        found.append({name: value.grad for name, value in module.named_parameters() if value.grad is not None})
    alphas = [value for name, value in found[0].items() if name.endswith("alpha")]
    assert len(alphas) == len(shapes)
    assert all(value.abs().sum() > 0 for value in alphas)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5)


def test_mean_pool_of_two_streams_by_hand(task: Task) -> None:
    head = MeanPool(projector_dim=6, fusion="early", dropout=0.0)
    one = Task(task.streams, task.ids[:1], task.labels[:1], task.classes, ())
    module = head.module(**head.shapes(one)).eval()
    weights = dict(module.named_parameters())
    mel, states = (torch.from_numpy(task.streams[name]["u000"].copy()) for name in ("mel", "states"))
    count = states.shape[1]
    mixed = torch.cat([mel[0, : 2 * count].view(count, 2, 4).mean(1), states.mean(0)], dim=1)
    projected = (mixed @ weights["pools.0.0.weight"].T + weights["pools.0.0.bias"]).relu().mean(0)
    expected = weights["classify.weight"] @ projected + weights["classify.bias"]
    torch.testing.assert_close(module(*head.inputs(one).scored(torch.tensor([0]), None)[0])[0], expected)


def test_late_fusion_is_each_streams_embedding_side_by_side(worded: Task) -> None:
    head = MeanPool(projector_dim=6, fusion="late", dropout=0.0)
    module = head.module(**head.shapes(worded)).eval()
    batch, _ = head.inputs(worded).scored(torch.arange(4), None)
    embeddings = []
    for number, name in enumerate(("states", "words")):
        frames = module.get_submodule(f"mixes.{number}")(batch[2 * number])
        embeddings.append(module.get_submodule(f"pools.{number}")(frames, batch[2 * number + 1]))
        assert embeddings[-1].shape == (4, 6), name
    classify = module.get_submodule("classify")
    torch.testing.assert_close(module(*batch), classify(torch.cat(embeddings, dim=1)))


def test_mean_pool_of_one_stream_has_the_names_and_the_first_weights_that_it_always_had() -> None:
    torch.manual_seed(0)
    module = MeanPool(projector_dim=6).module(2, 3, 4).eval()
    torch.manual_seed(0)
    project, classify = nn.Linear(3, 6), nn.Linear(6, 4)
    state = module.state_dict()
    assert list(state) == ["mix.alpha", "project.0.weight", "project.0.bias", "classify.weight", "classify.bias"]
    for name, layer in (("project.0", project), ("classify", classify)):
        assert torch.equal(state[f"{name}.weight"], layer.weight)
        assert torch.equal(state[f"{name}.bias"], layer.bias)
    hidden, counts = torch.randn(1, 2, 5, 3), torch.tensor([4])
    expected = classify(project(hidden[0, :, :4].mean(0)).relu().mean(0))
    torch.testing.assert_close(module(hidden, counts)[0], expected)


def test_what_is_no_number_behind_an_utterance_is_not_averaged() -> None:
    frames = torch.tensor([[[1.0], [3.0], [math.nan]], [[2.0], [4.0], [6.0]]])
    assert masked_mean(frames, torch.tensor([2, 3])).tolist() == [[2.0], [4.0]]


def test_several_streams_without_a_fusion_are_refused(task: Task) -> None:
    with pytest.raises(
        ConfigError, match=r"'mean_pool' got mel, states\. Say how .*fusion=early .* settings.fusion=late"
    ):
        MeanPool().train(task, QUICK, lambda *_: None)
    with pytest.raises(ConfigError, match="'ecapa' reads one stream or several, and got none"):
        Ecapa().train(replace(task, streams={}), QUICK, lambda *_: None)


def test_tokens_have_no_rate_and_fuse_late_only(worded: Task) -> None:
    with pytest.raises(ConfigError, match="the frames of words are tokens. Set fusion=late"):
        MeanPool(fusion="early").train(worded, QUICK, lambda *_: None)
    outcomes = MeanPool(projector_dim=6, fusion="late").train(worded, replace(QUICK, bucketed=True), lambda *_: None)
    assert all(np.isfinite(outcome.test).all() for outcome in outcomes)


def test_an_utterance_that_is_longer_in_one_stream_is_named(tmp_path: Path) -> None:
    task = make_task(tmp_path / "few", longer=4)
    MeanPool(fusion="early").inputs(task)
    longer = make_task(tmp_path / "many", longer=6)
    with pytest.raises(StreamError, match=r"'u035' is not of one length .*mel 0\.10 s, states 0\.20 s.*or set fusion="):
        MeanPool(fusion="early").inputs(longer)
    MeanPool(fusion="late").inputs(longer)


def test_layers_are_chosen_for_every_stream_or_for_one(task: Task) -> None:
    assert MeanPool(fusion="late", subset=(-1,)).layer_names(task) == ["mel: mel", "states: high"]
    one = MeanPool(fusion="early", subsets={"states": (0,)})
    assert one.layer_names(task) == ["mel: mel", "states: low"]
    assert one.shapes(task)["streams"] == (
        StreamShape(1, 4, Fraction(1, 100)), StreamShape(1, 3, Fraction(1, 50)),
    )  # fmt: skip
    frames = one.inputs(task).scored(torch.tensor([0]), None)[0][2]
    torch.testing.assert_close(frames[0], torch.from_numpy(task.streams["states"]["u000"][:1].copy()))
    with pytest.raises(UnknownNameError, match="stream in the subsets of mean_pool 'words'"):
        MeanPool(fusion="late", subsets={"words": (0,)}).inputs(task)
    with pytest.raises(UnknownNameError, match="layer for mean_pool, states"):
        MeanPool(fusion="late", subsets={"states": (2,)}).inputs(task)


def test_settings_come_as_text_and_as_lists() -> None:
    assert build(MeanPool, {"subset": -1, "fusion": "late"}, "head mean_pool") == MeanPool(subset=(-1,), fusion="late")
    assert build(Ecapa, {"subsets": {"mel": [0]}}, "head ecapa").subsets == {"mel": (0,)}
    with pytest.raises(ConfigError, match="fusion"):
        build(MeanPool, {"fusion": "middle"}, "head mean_pool")


def test_standardised_frames_of_the_training_part_have_mean_0_and_deviation_1(task: Task) -> None:
    head = MeanPool(fusion="late", standardise=True)
    inputs, module = head.inputs(task), head.module(**head.shapes(task))
    train = torch.arange(5, 30)
    head.prepare(module, inputs, train, None)
    for number, name in enumerate(("mel", "states")):
        frames = [torch.from_numpy(task.streams[name][task.ids[at]].copy()) for at in train.tolist()]
        standardised = module.get_submodule(f"standardise.{number}")(torch.cat(frames, dim=1))
        std, mean = torch.std_mean(standardised, dim=1, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-4, atol=0)


@pytest.mark.parametrize("num_bytes", [1, 3000, 10**9])
def test_batches_of_several_streams_are_bounded_over_all_of_them(
    worded: Task, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setattr("heads.inputs._EVAL_BYTES", num_bytes)
    inputs = MeanPool(fusion="late").inputs(worded)
    positions = torch.arange(NUM).flip(0)[3:]
    chunks = inputs.chunks(positions)
    assert sorted(torch.cat(list(chunks)).tolist()) == list(range(NUM - 3))
    sizes = [sum(item.nbytes for item in inputs.batch(positions[one][None], None)[::2]) for one in chunks]
    assert all(size <= num_bytes or len(one) == 1 for size, one in zip(sizes, chunks, strict=True))
    # Two batches that follow each other would not have gone together.
    for first, second in pairwise(chunks):
        more = torch.cat([first, second[:1]])
        assert sum(item.nbytes for item in inputs.batch(positions[more][None], None)[::2]) > num_bytes


def test_sizes_count_the_bytes_of_all_streams(worded: Task) -> None:
    expected = [4 * (2 * 3 * lengths(number)["states"] + 5 * lengths(number)["words"]) for number in range(NUM)]
    assert MeanPool(fusion="late").inputs(worded).sizes().tolist() == expected


def test_the_report_compares_layers_within_their_stream() -> None:
    names = ("a: x", "b@run: l1", "b@run: l2")
    found = LayerWeights(("1", "2"), (0, 1, 2), names, np.array([[1.0, 0.3, 0.7], [1.0, 0.2, 0.8]]))
    assert found.streams == [("a", range(1)), ("b@run", range(1, 3))]
    plot = layer_weights(found, "weights")
    assert "Largest mean of b@run (layers 1 to 2): layer 2, l2 (0.750)." in plot.caption
    assert "all layers of a stream alike" in plot.caption
    lines = [one for one in drawn(found).axes[0].collections if isinstance(one, LineCollection)]
    dashed = [np.asarray(one.get_segments()[0]).tolist() for one in lines]
    assert dashed == [[[-0.5, 1.0], [0.5, 1.0]], [[0.5, 0.5], [2.5, 0.5]]]
    one = LayerWeights(("1",), (0, 1), ("l1", "l2"), np.array([[0.4, 0.6]]))
    assert one.streams == [("", range(2))]
    caption = "Above: mean over folds; dashed, all layers alike. Below: full colour is 0.600. "
    assert layer_weights(one, "weights").caption == f"{caption}Largest mean: layer 1, l2 (0.600)."


def test_a_trained_fold_scores_again_what_it_scored_in_whatever_order_streams_come(
    task: Task,
) -> None:
    head = MeanPool(projector_dim=6, fusion="early", standardise=True)
    for outcome, fold in zip(head.train(task, QUICK, lambda *_: None), task.folds, strict=True):
        turned = replace(task, folds=(), streams=dict(reversed(list(task.streams.items()))))
        scores = head.score(turned, Trained(outcome.weights, outcome.chosen))
        np.testing.assert_allclose(scores[task.positions(fold.test)], outcome.test, atol=1e-6)
