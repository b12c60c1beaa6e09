"""The MLP probe reads groups of frames as rows, learns what they hold, and nothing beside an utterance changes it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import featcache
from featcache.cache import CachedStream
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError, StreamError, UnknownNameError
from featcache.stream import Features, StreamSpec
from heads.fit_settings import FitSettings
from heads.folds import Fold
from heads.metrics import wa
from heads.models import mlp_probe
from heads.models.mlp_probe import MlpProbe
from heads.task import Outcome, Task
from pipelines import describe

SMALL = MlpProbe(hidden=(16, 8, 8))
QUICK = FitSettings(steps=120, eval_every=20, batch_size=16, learning_rate=(1e-2,))


def write_stream(
    cache: Path,
    frames: Mapping[str, np.ndarray],
    kind: str = "codes",
    settings: Mapping[str, Any] | None = None,
    shift_s: float | None = 0.04,
    dtype: str = "float32",
) -> CachedStream:
    """Write a stream of utterances of ``(frames, dim)`` or ``(layers, frames, dim)`` and return it."""
    stacked = {name: values if values.ndim == 3 else values[None] for name, values in frames.items()}
    layers, _, dim = next(iter(stacked.values())).shape
    spec = StreamSpec(
        kind, 1, "cache", settings or {}, tuple(f"l{number}" for number in range(layers)), dim, frame_shift_s=shift_s,
        dtype=dtype,
    )  # fmt: skip
    with StreamWriter(cache, spec, "zarr", "frames") as writer:
        stored = [store(name, "0", 0, Features(stacked[name]), spec, "frames") for name in sorted(stacked)]
        writer.commit(stored, {})
    return featcache.open(cache)[spec.name]


def make_task(stream: CachedStream, labels: Sequence[int], parts: Sequence[Sequence[int]] | None = None) -> Task:
    """Return the task of a stream's utterances; one fold, whose parts are all of them unless positions are given."""
    ids = stream.ids
    chosen = [list(range(len(ids)))] * 3 if parts is None else parts
    fold = Fold("0", *(tuple(ids[number] for number in part) for part in chosen))
    classes = tuple(f"c{number}" for number in range(max(labels) + 1))
    return Task({"codes": stream}, ids, np.array(labels), classes, (fold,))


def counted(length: int, first: float) -> np.ndarray:
    """Return frames ``(length, 2)`` whose every number is another one, so that a row says where it is from."""
    return first + np.arange(2 * length, dtype=np.float32).reshape(length, 2)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> CachedStream:
    """Three utterances of 3, 4 and 1 frames, two frames a window."""
    lengths = {"a": 3, "b": 4, "c": 1}
    frames = {name: counted(length, 100 * number + 1) for number, (name, length) in enumerate(lengths.items())}
    return write_stream(tmp_path_factory.mktemp("cache"), frames, settings={"blocks": 2})


def test_rows_are_windows_of_the_utterance_and_the_last_is_zero_padded(uneven: CachedStream) -> None:
    inputs = MlpProbe().inputs(make_task(uneven, [0, 1, 0]))
    [rows], owners = inputs.scored(torch.tensor([1, 0, 2]), None)
    assert owners.tolist() == [0, 0, 1, 1, 2]
    assert rows.tolist() == [
        [101, 102, 103, 104], [105, 106, 107, 108], [1, 2, 3, 4], [5, 6, 0, 0], [201, 202, 0, 0],
    ]  # fmt: skip
    [first] = inputs.batch(torch.tensor([[2, 1]]), None)
    assert first.tolist() == [[[201, 202, 0, 0], [101, 102, 103, 104]]]


@pytest.mark.parametrize(("setting", "width"), [(0, 4), (1, 2), (3, 6)])
def test_a_window_is_what_the_stream_says_unless_a_setting_does(uneven: CachedStream, setting: int, width: int) -> None:
    head = MlpProbe(frames=setting)
    task = make_task(uneven, [0, 1, 0])
    [rows], _ = head.inputs(task).scored(torch.arange(3), None)
    assert rows.shape[1] == width
    assert head.module(**head.shapes(task))[0].in_features == width


def test_a_stream_without_windows_is_read_frame_by_frame_and_a_layer_is_chosen(tmp_path: Path) -> None:
    layers = np.stack([counted(3, 1), counted(3, 51)])
    task = make_task(write_stream(tmp_path, {"a": layers, "b": layers + 200}), [0, 1])
    for layer, first in ((-1, 51), (0, 1), (1, 51)):
        [rows], _ = MlpProbe(layer=layer).inputs(task).scored(torch.tensor([0]), None)
        assert rows.tolist() == [[first, first + 1], [first + 2, first + 3], [first + 4, first + 5]]
    with pytest.raises(UnknownNameError, match="no layer for mlp_probe '2'"):
        MlpProbe(layer=2).inputs(task)


def test_training_draws_every_row_of_an_utterance_and_scoring_draws_none(uneven: CachedStream) -> None:
    inputs = MlpProbe(frames=1).inputs(make_task(uneven, [0, 1, 0]))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.tensor([[0, 1, 2] * 400])
    [rows] = inputs.training_batch(chosen, None, generator)
    for number, length in enumerate((3, 4, 1)):
        drawn = rows[0, chosen[0] == number, 0]
        own = counted(length, 100 * number + 1)[:, 0]
        assert set(drawn.tolist()) == set(own.tolist())
        counts = np.array([(drawn == value).sum() for value in own])
        assert (np.abs(counts / 400 - 1 / length) < 0.08).all()
    again = inputs.training_batch(chosen, None, torch.Generator().manual_seed(0))[0]
    assert torch.equal(again, rows)
    assert not torch.equal(inputs.training_batch(chosen, None, generator)[0], rows)
    state = torch.random.get_rng_state()
    assert torch.equal(inputs.scored(torch.arange(3), None)[0][0], inputs.scored(torch.arange(3), None)[0][0])
    assert torch.equal(torch.random.get_rng_state(), state)


def by_hand(outcome: Outcome, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return the probabilities of an utterance from a probe's weights: the mean over its rows, in plain NumPy."""
    weights = {name: values.astype(np.float64) for name, values in outcome.weights.items()}
    numbers = sorted({int(name.split(".")[0]) for name in weights})
    total = 0.0
    for row in rows:
        values = row.astype(np.float64)
        for number in numbers:
            values = weights[f"{number}.weight"] @ values + weights[f"{number}.bias"]
            values = np.log1p(np.exp(values)) if number != numbers[-1] else values
        total = total + np.exp(values) / np.exp(values).sum()
    return total / len(rows)


def test_an_utterances_score_is_the_mean_over_its_rows(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    frames = {f"u{n}": generator.standard_normal((length, 3)) for n, length in enumerate((5, 2, 7, 4))}
    frames = {name: values.astype(np.float32) for name, values in frames.items()}
    task = make_task(write_stream(tmp_path, frames, settings={"blocks": 2}), [0, 1, 2, 0])
    [outcome] = SMALL.train(task, FitSettings(steps=3, eval_every=3, batch_size=4), lambda *_: None)
    for name, found in zip(task.ids, outcome.test, strict=True):
        padded = np.concatenate([frames[name], np.zeros((len(frames[name]) % 2, 3), np.float32)])
        np.testing.assert_allclose(found, by_hand(outcome, padded.reshape(-1, 6)), atol=1e-6)
    assert np.array_equal(outcome.validation, outcome.test)


@pytest.fixture(scope="module")
def spikes(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Utterances of whole windows of three codes; the class is which of the three is larger, in every window."""
    generator = np.random.default_rng(1)
    frames, labels = {}, []
    for number in range(90):
        label = number % 3
        windows = 0.3 * generator.standard_normal((1 + number % 4, 3, 2))
        windows[:, label] += 2.0
        frames[f"u{number:02d}"] = windows.reshape(-1, 2).astype(np.float32)
        labels.append(label)
    stream = write_stream(tmp_path_factory.mktemp("cache"), frames, settings={"blocks": 3})
    return make_task(stream, labels, [range(50), range(50, 65), range(65, 90)])


def accuracy(task: Task, outcome: Outcome) -> float:
    return wa(task.labels[task.positions(task.folds[0].test)], outcome.test.argmax(1))


def test_a_probe_tells_what_is_in_the_codes_and_the_order_in_a_window_is_part_of_it(spikes: Task) -> None:
    [windows] = SMALL.train(spikes, QUICK, lambda *_: None)
    assert accuracy(spikes, windows) == 1.0
    [single] = replace(SMALL, frames=1).train(spikes, QUICK, lambda *_: None)
    assert accuracy(spikes, single) < 0.6  # one code alone does not say which of a window it is


def test_permuted_labels_give_chance(spikes: Task) -> None:
    found = []
    for seed in range(4):
        shuffled = replace(spikes, labels=np.random.default_rng(seed).permutation(spikes.labels))
        [outcome] = SMALL.train(shuffled, replace(QUICK, seed=seed), lambda *_: None)
        found.append(accuracy(shuffled, outcome))
    assert abs(np.mean(found) - 1 / 3) < 0.15


def test_neither_company_nor_order_nor_chunks_change_a_score(spikes: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(QUICK, steps=20)
    [whole] = SMALL.train(spikes, quick, lambda *_: None)
    [fold] = spikes.folds
    with monkeypatch.context() as patch:
        patch.setattr(mlp_probe, "_MOST_ROWS", 1)
        [alone] = SMALL.train(spikes, quick, lambda *_: None)
    np.testing.assert_allclose(alone.test, whole.test, atol=1e-6)
    turned = replace(spikes, folds=(replace(fold, test=fold.test[::-1]),))
    [reverse] = SMALL.train(turned, quick, lambda *_: None)
    np.testing.assert_allclose(reverse.test[::-1], whole.test, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(spikes.ids))
    mixed = replace(spikes, ids=[spikes.ids[number] for number in order], labels=spikes.labels[order])
    [shuffled] = SMALL.train(mixed, quick, lambda *_: None)
    np.testing.assert_allclose(shuffled.test, whole.test, atol=1e-6)


def test_chunks_hold_every_item_once_and_few_rows(spikes: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp_probe, "_MOST_ROWS", 7)
    inputs = SMALL.inputs(spikes)
    positions = torch.arange(5, 80)
    chunks = inputs.chunks(positions)
    assert torch.cat(list(chunks)).tolist() == list(range(75))
    assert max(int(inputs.counts[positions[chunk]].sum()) for chunk in chunks) == 7
    monkeypatch.setattr(mlp_probe, "_MOST_BYTES", 1)  # less than a row: each alone
    assert [len(chunk) for chunk in inputs.chunks(positions)] == [1] * 75


def test_a_task_of_frames_reads_the_row_that_each_frame_lies_in(uneven: CachedStream) -> None:
    places = [("b", 3), ("a", 0), ("b", 1), ("a", 2)]
    fold = Fold("0", ("i0", "i1"), ("i2",), ("i3",))
    task = Task({"codes": uneven}, ["i0", "i1", "i2", "i3"], np.array([0, 1, 0, 1]), ("x", "y"), (fold,), places=places)
    windows = [[105, 106, 107, 108], [1, 2, 3, 4], [101, 102, 103, 104], [5, 6, 0, 0]]
    frames = [[107, 108], [1, 2], [103, 104], [5, 6]]
    for head, expected in ((MlpProbe(), windows), (MlpProbe(frames=1), frames)):
        inputs = head.inputs(task)
        [rows], owners = inputs.scored(torch.arange(4), None)
        assert rows.tolist() == expected
        assert owners.tolist() == [0, 1, 2, 3]
        [drawn] = inputs.training_batch(torch.tensor([[3, 0]]), None, torch.Generator().manual_seed(0))
        assert drawn[0].tolist() == [expected[3], expected[0]]
    [outcome] = SMALL.train(task, FitSettings(steps=2, eval_every=2, batch_size=2), lambda *_: None)
    assert outcome.test.shape == (1, 2)
    with pytest.raises(StreamError, match=r"'i1' stands for frame 3 of 'a', which has 3 in codes-"):
        MlpProbe().inputs(replace(task, places=[("b", 3), ("a", 3), ("b", 1), ("a", 2)]))


def test_the_papers_probe_has_its_layers_and_softplus_between_them(uneven: CachedStream) -> None:
    module = MlpProbe().module(1, 16, 8, frames=2)  # the small model's window: two codes of 16
    layers = [block for block in module if isinstance(block, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [
        (32, 2048), (2048, 1024), (1024, 1024), (1024, 8),
    ]  # fmt: skip
    assert [type(block) for block in module][1::2] == [nn.Softplus] * 3
    assert sum(parameter.numel() for parameter in module.parameters()) == 3_223_560
    kinds = {"relu": [nn.Linear, nn.ReLU, nn.Linear], "none": [nn.Linear, nn.Linear]}
    for activation, blocks in kinds.items():
        assert [type(block) for block in MlpProbe((4,), activation).module(1, 3, 2)] == blocks  # type: ignore[arg-type]
    assert [type(block) for block in MlpProbe(()).module(1, 3, 2)] == [nn.Linear]


@pytest.mark.parametrize("settings", [{"hidden": (4, 0)}, {"frames": -1}])
def test_impossible_sizes_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="mlp_probe needs hidden layers of 1 or more and frames of 0 or more"):
        MlpProbe(**settings)


def test_it_is_described_with_and_without_a_window() -> None:
    assert re.search(r"given 2 x 16:.*all .* 2 x 5 +3,187,717$", describe.run("mlp_probe", {}, [], 3, 16, 5), re.S)
    text = describe.run("mlp_probe", {}, ["frames=2", "hidden=8", "activation=none"], 1, 16, 8)
    assert re.search(r"given 2 x 32:.*all .* 2 x 8 +336$", text, re.S)
