"""Heads learn what can be learnt, side by side as alone, and nothing leaks from test into a choice."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from speech_task import make_task as make_speech_task
from torch import nn

import featcache
from featcache import Manifest, Utterance, registry
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError, ProtocolError, UnknownNameError
from featcache.stream import Features, StreamSpec
from featcache.streams.ge2e_states import Ge2eStates
from featcache.view import View
from heads.fit import fit
from heads.fit_settings import FitSettings
from heads.folds import make_folds
from heads.head import Head
from heads.inputs import FrameInputs, StatsInputs
from heads.layers import LayerMix, Standardise, masked_mean
from heads.members import Members, Optimiser
from heads.metrics import ua
from heads.models.layer_mix import LayerMix as LayerMixHead
from heads.models.linear_probe import LinearProbe
from heads.models.mean_pool import MeanPool
from heads.models.svm import Svm
from heads.task import Task

LAYERS, DIM = 4, 6
QUICK = FitSettings(steps=150, eval_every=25, learning_rate=(0.05,), batch_size=16)
SMALL = {
    "mlp_probe": {"layer": 2, "hidden": (16, 8)},
    "encoder_decoder": {
        "window": 8, "bottleneck": 4, "factor": 4, "channels": 12, "phone_channels": 8, "phone_dim": 3,
        "decoder_channels": 8, "decoder_dim": 6, "post_net_channels": 8, "dropout": 0.0,
    },
    "mmer": {"layer": 2, "text": False, "alpha": 0.0},  # its whole form, of three streams, is in tests/test_mmer.py
    "vgg": {"layer": 2, "widths": (8, 8), "hidden": 16, "dropout": 0.0},
    "ecapa": {
        "channels": 16, "mfa_channels": 24, "scale": 4, "se_channels": 8, "attention_channels": 8, "embedding_dim": 12,
    },
    "resnet": {  # not normalised: the classes below differ in what is the same in all of an utterance
        "layer": 2, "channels": 4, "blocks": (1, 1), "time_strides": (1, 2), "frequency_strides": (1, 2),
        "embedding": 8, "chunks": (4, 6), "normalise": "none", "shorter": "repeat",
    },
    "finetune": {"start_layer": 1},
    "text_cnn": {"layer": 2},  # the layer that differs in the tasks below; by default it reads the last
}  # fmt: skip
OWN_SETTINGS = {
    "encoder_decoder": {"learning_rate": (3e-3,), "steps": 200},
    "vgg": {"learning_rate": (3e-3,)},
    "ecapa": {"learning_rate": (3e-3,), "steps": 75},
    "finetune": {"learning_rate": (3e-3,), "steps": 20, "eval_every": 10},
}
TOY = StreamSpec("toy", 1, "audio", {}, tuple(f"l{n}" for n in range(LAYERS)), DIM, dtype="float32")


def make_task(folder: Path, informative: int = 2, num: int = 60, noise: float = 0.3, spec: StreamSpec = TOY) -> Task:
    """A cached stream whose classes differ in one layer only, and its task with four speakers."""
    generator = np.random.default_rng(0)
    stored, utterances = [], []
    for number in range(num):
        label = number % 3
        shape = (len(spec.layers), 5 + number % 7, spec.dim)
        frames = noise * generator.standard_normal(shape).astype(np.float32)
        frames[informative, :, label::DIM] += 1.0
        stored.append(store(f"u{number:03d}", "0", 0, Features(frames), spec, "frames"))
        utterances.append(Utterance(f"u{number:03d}", label="abc"[label], speaker=f"s{number // 3 % 4}"))
    with StreamWriter(folder, spec, "zarr", "frames") as writer:
        writer.commit(stored, {})
    folds = make_folds(Manifest(utterances), "speaker")
    labels = np.array([number % 3 for number in range(num)])
    return Task(
        {spec.kind: featcache.open(folder)[spec.kind]},
        [u.id for u in utterances],
        labels,
        ("a", "b", "c"),
        tuple(folds),
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def speech_task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_speech_task(tmp_path_factory.mktemp("speech"), [6 + number % 7 for number in range(60)])


@pytest.fixture(scope="module")
def encoder_task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """What an encoder starts from: the second layer of the speaker encoder, whose third one then trains."""
    return make_task(tmp_path_factory.mktemp("encoder"), informative=1, spec=Ge2eStates().spec("float32"))


def fitting(name: str, task: Task, speech_task: Task, encoder_task: Task) -> Task:
    """Return the task that a head can read."""
    if name == "finetune":
        return encoder_task
    return speech_task if small(name).further_streams() else task


def small(name: str) -> Head:
    """Return a head in a size that trains in seconds."""
    return registry.load("heads.models", name, Head)(**SMALL.get(name, {}))


@pytest.mark.parametrize("name", registry.names("heads.models"))
def test_every_head_learns_a_separable_task(task: Task, speech_task: Task, encoder_task: Task, name: str) -> None:
    head = small(name)
    task = fitting(name, task, speech_task, encoder_task)
    outcomes = head.train(task, replace(QUICK, **OWN_SETTINGS.get(name, {})), lambda *_: None)
    assert [outcome.fold for outcome in outcomes] == [fold.name for fold in task.folds]
    for outcome, fold in zip(outcomes, task.folds, strict=True):
        assert outcome.test.shape == (len(fold.test), 3)
        assert outcome.validation.shape == (len(fold.validation), 3)
        np.testing.assert_allclose(outcome.test.sum(axis=1), 1)
        assert ua(task.labels[task.positions(fold.test)], outcome.test.argmax(axis=1)) > 0.9


@pytest.mark.parametrize("name", registry.names("heads.models"))
def test_the_same_seed_gives_the_same_numbers(task: Task, speech_task: Task, encoder_task: Task, name: str) -> None:
    head = small(name)
    task = fitting(name, task, speech_task, encoder_task)
    quick = FitSettings(steps=20, eval_every=10)
    first, second = (head.train(task, quick, lambda *_: None) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.test, other.test)
        assert one.chosen == other.chosen


@pytest.mark.parametrize("name", registry.names("heads.models"))
def test_no_head_takes_ids_for_features(speech_task: Task, name: str) -> None:
    head = small(name)
    ids = {"other": speech_task.streams["phones"]}
    if head.further_streams():
        ids |= {kind: speech_task.streams[kind] for kind in ("log_mel", "speaker", "phones")}
    with pytest.raises(ConfigError, match=r"cannot learn from phones-\w+: its frames are no features but ids|It got"):
        head.train(replace(speech_task, streams=ids), QUICK, lambda *_: None)


def test_training_leaves_the_global_random_state_alone(task: Task) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    MeanPool().train(task, FitSettings(steps=3, eval_every=3), lambda *_: None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_members_side_by_side_equal_each_trained_alone(task: Task) -> None:
    many = FitSettings(steps=60, eval_every=20, learning_rate=(1e-2, 1e-3), weight_decay=(0.0, 0.1), select_by="wa")
    together = LayerMixHead(standardise=True).train(task, many, lambda *_: None)
    for fold, outcome in zip(task.folds, together, strict=True):
        for candidate in outcome.candidates:
            alone = FitSettings(
                steps=60, eval_every=20, select_by="wa",
                learning_rate=(candidate.settings["learning_rate"],),
                weight_decay=(candidate.settings["weight_decay"],),
            )  # fmt: skip
            single = Task(task.streams, task.ids, task.labels, task.classes, (fold,))
            [only] = LayerMixHead(standardise=True).train(single, alone, lambda *_: None)
            assert only.candidates[0].validation == pytest.approx(candidate.validation)
            if candidate.settings.items() <= outcome.chosen.items():
                np.testing.assert_allclose(only.test, outcome.test, rtol=1e-5, atol=1e-7)


def test_the_stacked_optimiser_equals_torchs_adamw_with_clipping() -> None:
    torch.manual_seed(0)
    start = [torch.randn(3, 4, 2), torch.randn(3, 5)]
    rates, decays = [1e-1, 1e-2, 1e-2], [0.0, 0.1, 0.1]
    stacked = [value.clone().requires_grad_() for value in start]
    names = {str(number): value for number, value in enumerate(stacked)}
    ours = Optimiser(names, (), FitSettings(gradient_clip=1.0), rates, decays)
    alone = [[value[member].clone().requires_grad_() for value in start] for member in range(3)]
    theirs = [torch.optim.AdamW(alone[member], lr=rates[member], weight_decay=decays[member]) for member in range(3)]
    for _ in range(25):
        targets = [torch.randn(3, 4, 2), torch.randn(3, 5)]
        sum(((value - goal) ** 2).sum() for value, goal in zip(stacked, targets, strict=True)).backward()
        ours.step()
        for member in range(3):
            theirs[member].zero_grad()
            pairs = zip(alone[member], targets, strict=True)
            sum(((value - goal[member]) ** 2).sum() for value, goal in pairs).backward()
            nn.utils.clip_grad_norm_(alone[member], 1.0)
            theirs[member].step()
    for index, value in enumerate(stacked):
        for member in range(3):
            torch.testing.assert_close(value[member], alone[member][index], rtol=1e-5, atol=1e-7)


def test_changed_test_labels_change_no_choice_and_no_probability(task: Task) -> None:
    settings = FitSettings(steps=40, eval_every=10, learning_rate=(1e-2, 1e-3))
    [fold, *_] = task.folds
    wrong = task.labels.copy()
    where = task.positions(fold.test)
    wrong[where] = (wrong[where] + 1) % 3
    pair = [
        LinearProbe().train(Task(task.streams, task.ids, labels, task.classes, (fold,)), settings, lambda *_: None)[0]
        for labels in (task.labels, wrong)
    ]
    assert pair[0].chosen == pair[1].chosen
    assert np.array_equal(pair[0].test, pair[1].test)


def test_a_probe_on_each_layer_finds_the_layer_that_holds_the_classes(task: Task) -> None:
    for outcome in LinearProbe(layer="each").train(task, QUICK, lambda *_: None):
        assert outcome.chosen["layer"] == 2
        assert len(outcome.candidates) == LAYERS
    assert LinearProbe(layer=-1).layers(25) == [24]
    with pytest.raises(UnknownNameError, match="no layer for linear_probe '25'"):
        LinearProbe(layer=25).layers(25)


def test_layer_mix_learns_which_layer_holds_the_classes(task: Task) -> None:
    for outcome in LayerMixHead().train(task, QUICK, lambda *_: None):
        assert outcome.layer_weights is not None
        assert outcome.layer_weights.sum() == pytest.approx(1.0, abs=1e-6)
        assert outcome.layer_weights.argmax() == 2


@pytest.mark.parametrize("weighting", ["softmax", "ratio"])
def test_equal_weights_give_the_plain_mean(weighting: str) -> None:
    mix = LayerMix(LAYERS, weighting)  # type: ignore[arg-type]
    hidden = torch.randn(3, LAYERS, 5, DIM)
    torch.testing.assert_close(mix(hidden), hidden.mean(1))
    with torch.no_grad():
        mix.alpha.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    expected = torch.softmax(mix.alpha, 0) if weighting == "softmax" else mix.alpha / 10
    torch.testing.assert_close(mix(hidden), sum(expected[n] * hidden[:, n] for n in range(LAYERS)))


def test_the_stats_head_equals_the_same_layers_applied_to_frames(task: Task) -> None:
    """SUPERB's head is linear up to its pooling, so it may be given means instead of frames."""
    stream = task.streams["toy"]
    module = LayerMixHead().module(LAYERS, DIM, 3)
    frames = torch.from_numpy(stream["u003"].copy())
    mix, project, classify = module[1], module[2], module[3]
    by_frame = classify(project(mix(frames[None])[0]).mean(0))
    by_stats = module(torch.from_numpy(stream.stats(["u003"])[0]))[0]
    torch.testing.assert_close(by_frame, by_stats, rtol=1e-5, atol=1e-6)


def test_padding_does_not_change_scores() -> None:
    module = MeanPool().module(LAYERS, DIM, 3).eval()
    frames = torch.randn(1, LAYERS, 9, DIM)
    padded = torch.cat([frames, 1e3 * torch.randn(1, LAYERS, 20, DIM)], dim=2)
    lengths = torch.tensor([9])
    torch.testing.assert_close(module(frames, lengths), module(padded, lengths))


def test_scores_are_in_the_order_of_the_ids_however_evaluation_is_split(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FitSettings(steps=5, eval_every=5)
    [fold, *_] = task.folds
    # Neither sorted nor in order of length.
    shuffled = replace(fold, test=tuple(sorted(fold.test, key=lambda name: name[::-1])))
    one_fold = Task(task.streams, task.ids, task.labels, task.classes, (shuffled,))
    [together] = MeanPool().train(one_fold, settings, lambda *_: None)
    for num_bytes in (1, 3 * 4 * LAYERS * 11 * DIM):
        monkeypatch.setattr("heads.inputs._EVAL_BYTES", num_bytes)
        [split] = MeanPool().train(one_fold, settings, lambda *_: None)
        np.testing.assert_allclose(split.test, together.test, rtol=1e-5)
        np.testing.assert_allclose(split.validation, together.validation, rtol=1e-5)


def test_whole_utterances_are_evaluated_in_batches_of_bounded_size(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    frame_bytes = 4 * LAYERS * DIM
    monkeypatch.setattr("heads.inputs._EVAL_BYTES", 30 * frame_bytes)
    inputs = FrameInputs(View(task.streams["toy"], task.ids))
    positions = torch.arange(len(task.ids)).flip(0)[:50]
    chunks = inputs.chunks(positions)
    assert sorted(torch.cat(list(chunks)).tolist()) == list(range(50))
    for chunk in chunks:
        frames, _ = inputs.batch(positions[chunk][None], None)
        assert frames.nbytes <= 30 * frame_bytes
    assert max(len(chunk) for chunk in chunks) > 1
    monkeypatch.setattr("heads.inputs._EVAL_BYTES", 1)
    assert [len(chunk) for chunk in inputs.chunks(positions)] == [1] * 50


def test_stats_are_evaluated_in_order(task: Task) -> None:
    inputs = StatsInputs(View(task.streams["toy"], task.ids), with_std=False)
    row_bytes = 4 * LAYERS * DIM
    chunks = inputs.chunks(torch.arange(100_000))
    assert {len(chunk) * row_bytes <= 4 * 2**20 < (len(chunk) + 1) * row_bytes for chunk in chunks[:-1]} == {True}
    assert torch.cat(list(chunks)).tolist() == list(range(100_000))


def test_masked_mean_counts_only_real_frames() -> None:
    frames = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [2.0], [5.0]]])
    assert masked_mean(frames, torch.tensor([2, 3])).tolist() == [[2.0], [3.0]]


def test_standardise_leaves_constant_dimensions_finite() -> None:
    block = Standardise(2)
    block.set_from(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.0]))
    assert block(torch.tensor([[3.0, 5.0]])).tolist() == [[1.0, 0.0]]


def test_members_become_what_was_kept_of_them() -> None:
    members = Members([nn.Linear(2, 2) for _ in range(3)])
    best = members.copy()
    with torch.no_grad():
        for parameter in members.parameters.values():
            parameter.add_(1.0)
    members.keep(best, [1])
    changed = members.copy()
    members.load(best)
    for name, value in members.copy().items():
        assert torch.equal(value[1], changed[name][1])
        assert not torch.equal(value[0], changed[name][0])


def test_the_svm_is_scikit_learns_on_train_and_validation_together(task: Task) -> None:
    [fold, *_] = task.folds
    [outcome] = Svm().train(
        Task(task.streams, task.ids, task.labels, task.classes, (fold,)), FitSettings(), lambda *_: None
    )
    mean, std = task.streams["toy"].stats(list(task.ids))
    values = np.concatenate([mean, std], axis=-1).reshape(len(task.ids), -1)
    model = make_pipeline(StandardScaler(), SVC(class_weight="balanced", break_ties=True))
    both = task.positions([*fold.train, *fold.validation])
    model.fit(values[both].astype(float), task.labels[both])
    predicted = model.predict(values[task.positions(fold.test)].astype(float))
    assert np.array_equal(outcome.test.argmax(axis=1), predicted)


def test_the_svm_chooses_its_cost_on_validation(task: Task) -> None:
    for outcome in Svm(C=(1e-3, 1.0, 100.0)).train(task, FitSettings(), lambda *_: None):
        [chosen] = [one for one in outcome.candidates if one.settings == outcome.chosen]
        assert chosen.validation == max(one.validation for one in outcome.candidates)
    with pytest.raises(ConfigError, match="has no functionals"):
        Svm(features="functionals").train(task, FitSettings(), lambda *_: None)


def test_patience_stops_a_run_that_no_longer_improves(task: Task) -> None:
    steps: list[int] = []
    settings = FitSettings(steps=1000, eval_every=5, patience=2, learning_rate=(0.05,))
    fit(LayerMixHead(), task, settings, lambda done, _: steps.append(done))
    assert len(steps) < 500
    assert steps[-1] == 1000 * len(task.folds)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "gradient_clip"])
def test_rates_that_are_negative_or_not_finite_are_refused(name: str, bad: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} .*finite"):
        FitSettings(**{name: bad if name == "gradient_clip" else (1e-3, bad)})  # type: ignore[arg-type]


def test_settings_that_cannot_train_are_refused(task: Task) -> None:
    for wrong in ({"steps": 0}, {"learning_rate": (0.0,)}, {"weight_decay": ()}):
        with pytest.raises(ConfigError, match="must be at least 1|needs one or more"):
            FitSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gradient_clip must be positive and finite, or None, got 0.0"):
        FitSettings(gradient_clip=0.0)
    uncut = tuple(replace(fold, train=fold.train + fold.validation, validation=()) for fold in task.folds)
    with pytest.raises(ProtocolError, match="no validation part"):
        fit(LayerMixHead(), Task(task.streams, task.ids, task.labels, task.classes, uncut), QUICK)
    with pytest.raises(ConfigError, match="reads one stream, got toy, other"):
        LayerMixHead().train(
            Task({**task.streams, "other": task.streams["toy"]}, task.ids, task.labels, task.classes, task.folds),
            QUICK, lambda *_: None,
        )  # fmt: skip


def test_balanced_weights_make_a_rare_class_count_as_much(task: Task) -> None:
    rare = tuple(
        replace(fold, train=tuple(n for n in fold.train if int(n[1:]) % 3 or int(n[1:]) < 12)) for fold in task.folds
    )
    few = Task(task.streams, task.ids, task.labels, task.classes, rare)
    settings = FitSettings(steps=15, eval_every=15)
    plain, balanced = (
        np.mean([outcome.test[:, 0].mean() for outcome in LinearProbe(layer=0).train(few, chosen, lambda *_: None)])
        for chosen in (settings, replace(settings, balanced=True))
    )
    assert balanced > plain


@pytest.mark.parametrize(
    "head", [LayerMixHead(projector_dim=8, subset=(3, -3)), MeanPool(projector_dim=8, subset=(2,))]
)
def test_a_subset_of_layers_is_what_a_stream_of_those_layers_gives(tmp_path: Path, task: Task, head: Head) -> None:
    stream = task.streams["toy"]
    kept = sorted(layer % LAYERS for layer in head.subset)  # type: ignore[attr-defined]
    spec = replace(stream.spec, layers=tuple(stream.spec.layers[layer] for layer in kept))
    with StreamWriter(tmp_path / "cache", spec, "zarr", "frames") as writer:
        frames = {name: np.asarray(stream[name][kept], np.float32) for name in stream.ids}
        writer.commit([store(name, "0", 0, Features(one), spec, "frames") for name, one in frames.items()], {})
    settings = FitSettings(steps=20, batch_size=8, eval_every=10)
    whole = replace(head, subset=())  # type: ignore[type-var]
    narrow = replace(task, streams={"toy": featcache.open(tmp_path / "cache")["toy"]})
    for ours, theirs in zip(
        head.train(task, settings, lambda *_: None), whole.train(narrow, settings, lambda *_: None), strict=True
    ):
        np.testing.assert_allclose(ours.test, theirs.test, atol=1e-6)
        assert list(ours.layer_names) == list(theirs.layer_names) == [stream.spec.layers[layer] for layer in kept]


def test_a_subset_names_layers_that_are_there_once(task: Task) -> None:
    settings = FitSettings(steps=1, batch_size=8)
    with pytest.raises(UnknownNameError, match="layer for layer_mix"):
        LayerMixHead(subset=(LAYERS,)).train(task, settings, lambda *_: None)
    with pytest.raises(ConfigError, match=r"A layer occurs twice in the subset \[0, -4\] of 4 layers"):
        LayerMixHead(subset=(0, -4)).train(task, settings, lambda *_: None)


def test_what_is_not_finite_is_never_chosen_and_is_nobodys_score(task: Task) -> None:
    settings = FitSettings(steps=4, batch_size=8, eval_every=2, learning_rate=(1e38, 1e-12))
    for outcome in LinearProbe().train(task, settings, lambda *_: None):
        assert outcome.chosen["learning_rate"] == 1e-12
        assert np.isfinite(outcome.test).all()
        assert math.isnan(outcome.candidates[0].validation)
    for outcome in LinearProbe().train(task, replace(settings, learning_rate=(1e38,)), lambda *_: None):
        assert np.isnan(outcome.test).all()
