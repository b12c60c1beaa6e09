"""Padi's ResNet: sizes, pooling, chunks, normalisation, copies, what is frozen, and that padding changes no score."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import featcache
from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError
from featcache.stream import Features, StreamSpec
from featcache.view import View
from heads.fit_settings import FitSettings
from heads.folds import make_folds
from heads.job import Job, Member
from heads.models._resnet import ResnetModule, statistics
from heads.models.resnet import Resnet, SegmentInputs
from heads.task import Task, Trained

MELS = 12
SMALL: dict[str, Any] = {"channels": 3, "blocks": (1, 2, 1), "embedding": 8, "chunks": (10, 17, 24)}
STRIDES: dict[str, Any] = {"time_strides": (1, 2, 2), "frequency_strides": (1, 2, 1)}
QUICK = FitSettings(steps=12, eval_every=4, batch_size=12, optimiser="sgd", learning_rate=(0.05,), gradient_clip=None)


def small(**changed: Any) -> Resnet:
    return Resnet(**{**SMALL, **STRIDES, **changed})


def make_task(folder: Path, lengths: list[int]) -> Task:
    """Log-mels whose classes differ in where the energy moves, of four speakers."""
    generator = np.random.default_rng(0)
    spec = StreamSpec("log_mel", 1, "audio", {}, ("log_mel",), MELS, frame_shift_s=0.01, dtype="float32")
    stored, utterances = [], []
    for number, length in enumerate(lengths):
        frames = -9 + 0.5 * generator.standard_normal((1, length, MELS)).astype(np.float32)
        frames[0, (number % 3) :: 3, : MELS // 2] += 3.0 * (number % 3)
        stored.append(store(f"u{number:03d}", "0", 0, Features(frames), spec, "frames"))
        utterances.append(Utterance(f"u{number:03d}", label="abc"[number % 3], speaker=f"s{number // 3 % 4}"))
    with StreamWriter(folder, spec, "zarr", "frames") as writer:
        writer.commit(stored, {})
    return Task(
        {"log_mel": featcache.open(folder)["log_mel"]},
        [one.id for one in utterances],
        np.array([number % 3 for number in range(len(lengths))]),
        ("a", "b", "c"),
        tuple(make_folds(Manifest(utterances), "speaker")),
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("cache"), [5 + number % 41 for number in range(48)])


def trained_like(head: Resnet, mels: int = MELS, classes: int = 3) -> ResnetModule:
    """Return a module whose weights and running means are nothing special, ready to score."""
    torch.manual_seed(1)
    module = head.module(1, mels, classes)
    for block in module.modules():
        if isinstance(block, nn.BatchNorm2d | nn.BatchNorm1d):
            block.load_state_dict(
                {"running_mean": torch.randn(block.num_features), "running_var": 0.5 + torch.rand(block.num_features)},
                strict=False,
            )
            nn.init.normal_(block.weight, 1.0, 0.2)
            nn.init.normal_(block.bias)
    return module.eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_near_the_papers_and_each_block_has_those_of_its_shapes() -> None:
    module = Resnet().module(1, 128, 4)
    convolutions = 9 * 32  # the first
    norms, activations, before = 32, 1, 32
    for width, blocks in ((32, 3), (64, 4), (128, 6), (256, 3)):
        convolutions += 9 * before * width + 9 * width * width * (2 * blocks - 1)
        norms += 2 * blocks * width
        activations += 2 * blocks
        if width != before:
            convolutions += before * width
            norms += width
        before = width
    assert count(module.convolutions) == convolutions + 2 * norms + activations == 5_323_393
    embedding = 2 * 256 * 64 * 512 + 512
    assert count(module.classify) == embedding + 2 * 512 + 1 + 512 * 4 + 4 == 16_780_805
    assert count(module) == 22_104_198  # the paper: 21.5 million
    assert count(Resnet(frequency_strides=(1, 2, 2, 2)).module(1, 128, 4)) == 9_521_286
    # Layers that learn, as He et al. count them: without those of the shortcuts, 33 convolutions and one linear layer.
    kinds = [name for name, block in module.named_modules() if isinstance(block, nn.Conv2d) and "past" not in name]
    assert len(kinds) == 33


def test_statistics_are_mean_and_standard_deviation_over_an_utterances_own_frames() -> None:
    frames = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [9e9, float("inf")]], [[2.0, 1.0], [4.0, 2.0], [9.0, 6.0]]])
    found = statistics(frames.nan_to_num(posinf=7.0), torch.tensor([2, 3]))
    expected = torch.tensor([[2.0, 0.0, 1.0, 0.0], [5.0, 3.0, (26 / 3) ** 0.5, (14 / 3) ** 0.5]])
    torch.testing.assert_close(found, expected, atol=4e-3, rtol=1e-5)  # the root of 1e-5 where nothing varies
    torch.testing.assert_close(statistics(frames[1:], None), found[1:])
    still = torch.ones(1, 4, 2, requires_grad=True)
    statistics(still, torch.tensor([1])).sum().backward()
    assert still.grad is not None
    assert still.grad.isfinite().all()


@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("first", "strides"), [((1, 1), (1, 2, 2)), ((2, 2), (1, 2, 2)), ((3, 1), (2, 1, 3)), ((1, 1), (1, 1, 1))]
)
def test_padding_does_not_change_scores(first: tuple[int, int], strides: tuple[int, ...], garbage: float) -> None:
    module = trained_like(small(first_stride=first, time_strides=strides))
    lengths = [1, 2, 3, 7, 8, 9, 22, 31]
    torch.manual_seed(2)
    utterances = [torch.randn(1, length, MELS) for length in lengths]
    batch = torch.full((len(lengths), 1, 36, MELS), garbage)
    for row, one in zip(batch, utterances, strict=True):
        row[:, : one.shape[1]] = one
    with torch.no_grad():
        together = module(batch, torch.tensor(lengths))
        alone = torch.cat([module(one[None], torch.tensor([one.shape[1]])) for one in utterances])
        bare = torch.cat([module(one[None]) for one in utterances])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bare, alone, rtol=1e-5, atol=1e-6)
    assert float(alone.std(dim=0).min()) > 1e-3  # the utterances do differ


def test_scores_do_not_depend_on_what_is_scored_together(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    head = small()
    module = trained_like(head)
    trained = Trained({name: value.numpy() for name, value in module.state_dict().items()})
    together = head.score(task, trained)
    monkeypatch.setattr("heads.models.resnet._SCORED_BYTES", 1)
    np.testing.assert_allclose(head.score(task, trained), together, rtol=1e-4)


def test_utterances_scored_together_are_bounded_by_what_the_first_stage_holds(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = small().inputs(task)
    positions = torch.arange(len(task.ids)).flip(0)
    frame_bytes = 4 * 3 * MELS
    monkeypatch.setattr("heads.models.resnet._SCORED_BYTES", 100 * frame_bytes)
    chunks = inputs.chunks(positions)
    assert sorted(torch.cat(list(chunks)).tolist()) == list(range(len(positions)))
    for chunk in chunks:
        assert len(chunk) * int(inputs.view.lengths[positions[chunk]].max()) <= 100
    assert max(len(chunk) for chunk in chunks) > 1


def test_a_batchs_chunks_are_of_one_of_the_lengths_and_begin_anywhere(task: Task) -> None:
    inputs = small(normalise="none", shorter="repeat").inputs(task)
    generator = torch.Generator().manual_seed(0)
    long = int(inputs.view.lengths.argmax())
    whole = torch.from_numpy(task.streams["log_mel"][task.ids[long]][0].copy())  # (45, mels)
    lengths, starts = set(), set()
    for _ in range(400):
        [chunk] = inputs.training_batch(torch.tensor([[long, long]]), None, generator)
        assert chunk.shape[:3] == (1, 2, 1)
        lengths.add(chunk.shape[3])
        for one in chunk[0, :, 0]:
            [start] = [at for at in range(len(whole) - len(one) + 1) if torch.equal(whole[at : at + len(one)], one)]
            if len(one) == 24:
                starts.add(start)
    assert lengths == {10, 17, 24}
    assert starts == set(range(45 - 24 + 1))


@pytest.mark.parametrize("shorter", ["zeros", "repeat"])
def test_a_chunk_longer_than_its_utterance_is_filled_up(task: Task, shorter: Literal["zeros", "repeat"]) -> None:
    inputs = small(shorter=shorter, chunks=(17,)).inputs(task)
    rows = [task.ids.index("u001"), int(inputs.view.lengths.argmax())]
    generator = torch.Generator().manual_seed(0)
    inputs.training_batch(torch.tensor([rows[::-1]]), None, generator)  # leaves a long one's frames in the buffer
    [chunk] = inputs.training_batch(torch.tensor([rows]), None, generator)
    whole = torch.from_numpy(task.streams["log_mel"]["u001"][0].copy())
    assert len(whole) == 6
    own = (whole - whole.mean(dim=0)) / whole.std(dim=0, correction=0)
    filled = own.repeat(3, 1)[:17] if shorter == "repeat" else torch.cat([own, torch.zeros(11, MELS)])
    torch.testing.assert_close(chunk[0, 0, 0], filled, rtol=1e-4, atol=1e-5)
    assert (chunk[0, 1, 0] != 0).all()  # a longer one is left as it is


def test_mels_are_normalised_over_the_whole_segment_in_chunks_as_in_test(task: Task) -> None:
    inputs = small(chunks=(10,)).inputs(task)
    positions = torch.tensor([task.ids.index("u030"), task.ids.index("u007")])
    frames, lengths = inputs.batch(positions[None], None)
    for row, name in enumerate(("u030", "u007")):
        own = frames[0, row, 0, : lengths[0, row]]
        torch.testing.assert_close(own.mean(0), torch.zeros(MELS), atol=1e-5, rtol=0)
        torch.testing.assert_close(own.std(0, correction=0), torch.ones(MELS), atol=1e-5, rtol=0)
        raw = task.streams["log_mel"][name][0]
        np.testing.assert_allclose(own, (raw - raw.mean(0)) / raw.std(0), atol=1e-5)
    whole = frames[0, 0, 0].clone()
    [chunk] = inputs.training_batch(positions[None, :1], None, torch.Generator().manual_seed(3))
    assert any(torch.allclose(whole[at : at + 10], chunk[0, 0, 0], atol=1e-6) for at in range(35 - 10 + 1))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_mel_without_sound_is_not_blown_up(tmp_path: Path, dtype: str) -> None:
    spec = StreamSpec("log_mel", 1, "audio", {}, ("log_mel",), 3, frame_shift_s=0.01, dtype=dtype)
    frames = np.random.default_rng(0).normal(-9, 2, (1, 50, 3)).astype(np.float32)
    frames[..., 1] = np.log(1e-10)
    frames[..., 2] = np.log(1e-10) + 1e-5 * np.arange(50)
    with StreamWriter(tmp_path, spec, "zarr", "frames") as writer:
        writer.commit([store("u", "0", 0, Features(frames), spec, "frames")], {})
    view = View(featcache.open(tmp_path)["log_mel"], ["u"])
    found, _ = SegmentInputs(view, Resnet()).batch(torch.zeros(1, 1, dtype=torch.int64), None)
    assert float(found[..., 1:].abs().max()) < (5.0 if dtype == "int8" else 0.5)
    assert float(found[..., 0].std()) == pytest.approx(1.0, abs=0.05)


def test_masked_copies_stand_behind_the_batch_in_training_alone() -> None:
    seen: list[torch.Tensor] = []
    module = small(augment="aggressive", copies=2).module(1, MELS, 3)
    module.convolutions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    hidden = torch.randn(4, 1, 24, MELS)
    torch.manual_seed(0)
    assert module(hidden).shape == (12, 3)
    [frames] = seen
    assert torch.equal(frames[:4], hidden[:, 0])
    copies = frames[4:].view(2, 4, 24, MELS)
    hidden_too = (copies == 0) | (copies == hidden[:, 0])
    assert hidden_too.all()
    assert not torch.equal(copies[0], copies[1])
    seen.clear()
    module.eval()
    assert module(hidden).shape == (4, 3)
    assert torch.equal(seen[0], hidden[:, 0])
    plain = small().module(1, MELS, 3)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(plain.eval()(hidden), module(hidden))


@pytest.mark.parametrize("voted", [False, True])
def test_copies_train_with_the_labels_of_the_batch(task: Task, voted: bool) -> None:
    """The loss of 3 chunks and 2 copies of each, row by row: the batch, then copies of it one after the other."""
    aims = np.random.default_rng(0).dirichlet(np.ones(3), len(task.ids)) if voted else np.eye(3)[task.labels]
    head, positions = small(augment="conservative", copies=2), torch.tensor([4, 5, 0])
    fold = task.folds[0]
    parts = [torch.from_numpy(task.positions(part)) for part in fold.parts.values()]
    member = Member(fold, {"layer": None, "learning_rate": 0.1, "weight_decay": 0.0}, *parts)
    job = Job(head, replace(task, targets=aims if voted else None), QUICK, head.inputs(task), [member])
    of_class = torch.tensor([1.0, 2.0, 4.0])
    job._class_weights.copy_(of_class)
    before = job._windows.get_state()
    torch.manual_seed(5)
    loss = float(job._loss(positions).detach())
    job._windows.set_state(before)
    torch.manual_seed(5)
    with torch.no_grad():
        [chunks] = job._inputs.training_batch(positions[None], None, job._windows)
        logs = torch.log_softmax(job._module(chunks[0]), dim=1).tolist()

    def by_hand(order: list[int]) -> float:
        rows = [aims[positions[place]] for place in order]
        losses = [-float(aim @ row) for aim, row in zip(rows, logs, strict=True)]
        return float(np.average(losses, weights=[float(aim @ of_class.numpy()) for aim in rows]))

    assert loss == pytest.approx(by_hand([0, 1, 2] * 3), rel=1e-5)
    assert loss != pytest.approx(by_hand([0, 0, 0, 1, 1, 1, 2, 2, 2]), rel=1e-2)


def started(task: Task) -> tuple[Task, dict[str, np.ndarray]]:
    """Return the task's first fold, beginning with what the head learnt of other classes there, and those weights."""
    fold = task.folds[0]
    others = replace(task, folds=(fold,), labels=(np.arange(len(task.ids)) // 3) % 2, classes=("x", "y"))
    [learnt] = small().train(others, QUICK, lambda *_: None)
    weights = dict(learnt.weights)
    return replace(task, folds=(fold,), start={fold.name: weights}), weights


def test_frozen_convolutions_stay_as_they_began_and_the_rest_begins_anew(task: Task) -> None:
    ready, before = started(task)
    [outcome] = small(freeze="convolutions", augment="conservative").train(ready, QUICK, lambda *_: None)
    after = outcome.weights
    kept = [name for name in before if name.startswith("convolutions.")]
    assert any("running_mean" in name for name in kept)
    for name in kept:
        assert np.array_equal(before[name], after[name]), name
    shared = [name for name in before if name.startswith("classify.") and before[name].shape == after[name].shape]
    torch.manual_seed(QUICK.seed)
    fresh = small().module(1, MELS, 3).state_dict()
    assert "classify.embedding.weight" in shared
    distance = np.abs(after["classify.embedding.weight"] - fresh["classify.embedding.weight"].numpy()).max()
    assert 0 < distance < np.abs(after["classify.embedding.weight"] - before["classify.embedding.weight"]).max()


def test_fine_tuned_convolutions_learn_at_the_rate_of_what_was_pretrained(task: Task) -> None:
    ready, before = started(task)
    name = "convolutions.blocks.0.first.weight"
    moved = {}
    for rate in (1e-12, 1e-2):
        [outcome] = small().train(ready, replace(QUICK, pretrained_rate=rate), lambda *_: None)
        moved[rate] = np.abs(outcome.weights[name] - before[name]).max()
        assert np.abs(outcome.weights["classify.embedding.bias"]).max() > 0
    assert moved[1e-12] < 1e-8 < 1e-5 < moved[1e-2]


def test_freezing_what_never_learnt_is_refused(task: Task) -> None:
    with pytest.raises(ConfigError, match="freeze its convolutions, and they begin at random. Set start to the folder"):
        small(freeze="convolutions").train(task, QUICK, lambda *_: None)


def test_nothing_that_is_frozen_has_a_gradient() -> None:
    module = small(freeze="convolutions").module(1, MELS, 3).train()
    assert {name.split(".")[0] for name, value in module.named_parameters() if value.requires_grad} == {"classify"}
    assert not any(block.training for block in module.convolutions.modules())
    assert module.classify.training
    module(torch.randn(4, 1, 12, MELS)).sum().backward()
    assert module.classify[0].weight.grad is not None


def test_a_batch_of_one_is_refused_where_batch_norm_would_fail(task: Task) -> None:
    with pytest.raises(ConfigError, match=r"batches of one utterance. Set fit.batch_size to 2"):
        small().train(task, replace(QUICK, batch_size=1), lambda *_: None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"time_strides": (1, 2)}, "a number of blocks and two strides for every stage"),
        ({"blocks": (), "time_strides": (), "frequency_strides": ()}, "for every stage"),
        ({"chunks": ()}, "one or more lengths of chunks"),
        ({"chunks": (0, 5)}, "1 or more"),
        ({"channels": 0}, "1 or more"),
        ({"first_stride": (0, 1)}, "1 or more"),
        ({"blocks": (1, 0, 1)}, "1 or more"),
        ({"copies": 0}, "1 or more"),
    ],
)
def test_settings_that_make_no_network_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**wrong)


def test_the_output_is_all_that_has_the_name_of_the_classes() -> None:
    names = {name.split(".")[0] for name in small().module(1, MELS, 3).state_dict()}
    assert names == {"convolutions", "classify"}
