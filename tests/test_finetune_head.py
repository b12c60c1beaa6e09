"""The head that trains an encoder: from every boundary alike, restored to the same scores, saved to the same frames."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import speech_checkpoint, tone
from test_cli import call
from text_makers import text_checkpoint

import featcache
from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError, ScoresError, StreamError
from featcache.stream import Features, Stream, StreamSpec
from featcache.streams.conv_features import ConvFeatures
from featcache.streams.ge2e_mels import Ge2eMels
from featcache.streams.hidden_states import HiddenStates
from featcache.streams.tokens import TokenIds
from featcache.streams.waveform import Waveform
from heads.fit_settings import FitSettings
from heads.folds import Fold
from heads.models.finetune import EncoderInputs, Finetune, FinetuneModule
from heads.task import Outcome, Task, Trained

IDS = tuple(f"u{number:02d}" for number in range(12))
FOLD = Fold("one", IDS[:8], IDS[6:8], IDS[8:])
SPEECH = [tone(0.2 + 0.03 * (number % 4), seed=number) for number in range(len(IDS))]
TEXTS = ["so happy today" if number % 2 else "the weather is sad" for number in range(len(IDS))]
FIT = FitSettings(steps=4, batch_size=4, eval_every=4, learning_rate=(1e-3,), select_by="wa")


def written(folder: Path, stream: Stream, inputs: list[Any], dtype: str = "float32") -> Task:
    """Extract a stream into a cache and return the task on it."""
    spec = stream.spec(dtype)
    extractor = stream.load("cpu", "float32")
    given = [extractor.extract([one])[0] for one in inputs]
    return task_of(folder, spec, [features for features in given if isinstance(features, Features)])


def task_of(folder: Path, spec: StreamSpec, given: list[Features]) -> Task:
    """Write what a stream gave into a cache and return the task on it."""
    pairs = zip(IDS, given, strict=True)
    with StreamWriter(folder, spec, "zarr", "frames") as writer:
        writer.commit([store(name, "0", 0, features, spec, "frames") for name, features in pairs], {})
    labels = np.arange(len(IDS)) % 2
    return Task({spec.kind: featcache.open(folder)[spec.kind]}, IDS, labels, ("a", "b"), (FOLD,))


def train(head: Finetune, task: Task, settings: FitSettings = FIT) -> Outcome:
    """Train the one fold."""
    [outcome] = head.train(task, settings, lambda *_: None)
    return outcome


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(speech_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory, checkpoint: str) -> Task:
    return written(tmp_path_factory.mktemp("conv"), ConvFeatures(checkpoint), SPEECH)


def test_a_run_from_a_boundary_is_that_from_the_waveform(tmp_path: Path, checkpoint: str, conv: Task) -> None:
    wave = written(tmp_path / "wave", Waveform(), SPEECH)
    hidden = written(tmp_path / "hidden", HiddenStates(checkpoint), SPEECH)
    for freeze, task, start in ((None, conv, None), (2, hidden, 2)):
        expected = train(Finetune(checkpoint, freeze=freeze), wave)
        ours = train(Finetune(checkpoint, freeze=freeze, start_layer=start), task)
        np.testing.assert_allclose(ours.test, expected.test, rtol=1e-4)
        np.testing.assert_allclose(ours.weights["classify.weight"], expected.weights["classify.weight"], rtol=1e-3)
        assert np.ptp(ours.test[:, 0]) > 1e-4  # utterances differ


def test_an_encoder_learns_what_tells_texts_apart(tmp_path: Path) -> None:
    checkpoint = str(text_checkpoint(tmp_path / "checkpoint"))
    task = written(tmp_path / "cache", TokenIds(checkpoint), TEXTS)
    outcome = train(Finetune(checkpoint), task, replace(FIT, steps=20, pretrained_rate=1e-3, learning_rate=(1e-2,)))
    assert (outcome.test.argmax(1) == task.labels[8:]).all()
    assert list(outcome.layer_names) == ["ids"]


def test_a_run_is_scored_again_from_its_weights(tmp_path: Path, checkpoint: str, conv: Task) -> None:
    head = Finetune(checkpoint, projector_dim=8, pooled_dropout=0.2)
    outcome = train(head, conv)
    scores = head.score(conv, Trained(outcome.weights))
    np.testing.assert_allclose(scores[8:], outcome.test, rtol=1e-6)
    assert not any("feature_extractor" in name for name in outcome.weights)
    broken = {name: value[:1] for name, value in outcome.weights.items()}
    with pytest.raises(ScoresError, match="not of the head 'finetune'"):
        head.score(conv, Trained(broken))


def test_the_saved_encoder_gives_the_frames_that_the_run_ended_with(
    tmp_path: Path, checkpoint: str, conv: Task
) -> None:
    head = Finetune(checkpoint)
    outcome = train(head, conv)
    head.save_encoder(conv, outcome.weights, tmp_path / "encoders" / "one")
    extractor = HiddenStates(str(tmp_path / "encoders" / "one"), tap="final_norm").load("cpu", "float32")
    given = [extractor.extract([samples])[0] for samples in SPEECH[8:]]
    means = np.stack([features.frames[-1].mean(0) for features in given if isinstance(features, Features)])
    logits = means @ outcome.weights["classify.weight"].T + outcome.weights["classify.bias"]
    expected = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    np.testing.assert_allclose(outcome.test, expected, rtol=1e-5)


def test_dropout_repeats_with_the_seed(checkpoint: str, conv: Task) -> None:
    head = Finetune(checkpoint, dropout=True, pooled_dropout=0.5)
    runs = [train(head, conv, replace(FIT, seed=seed)) for seed in (0, 0, 1)]
    assert np.array_equal(runs[0].test, runs[1].test)
    assert not np.array_equal(runs[0].test, runs[2].test)


def test_what_an_optimiser_step_costs_is_not_paid_for_what_is_frozen(checkpoint: str, conv: Task) -> None:
    head = Finetune(checkpoint, freeze=2)
    start = head.module(**head.shapes(conv)).state_dict()
    after = train(head, conv).weights
    moved = {name for name in after if not np.array_equal(after[name], start[name].numpy())}
    assert {name.split(".")[4] for name in moved if ".layers." in name} == {"2"}
    assert not any("projection" in name or "pos_conv" in name for name in moved)


def test_the_encoder_is_what_was_learnt_elsewhere(checkpoint: str, conv: Task) -> None:
    head = Finetune(checkpoint, projector_dim=4)
    module = head.module(**head.shapes(conv))
    names = set(head.pretrained(module))
    own = {name for name, _ in module.named_parameters()} - names
    assert own == {"project.weight", "project.bias", "classify.weight", "classify.bias"}
    assert all(name.startswith("encoder.model.") for name in names)


def test_only_the_layer_that_is_read_is_held(tmp_path: Path, checkpoint: str) -> None:
    task = written(tmp_path, HiddenStates(checkpoint), SPEECH)
    head = Finetune(checkpoint, start_layer=-2)
    assert head.inputs(task).view.layers == [2]
    assert list(head.layer_names(task)) == ["layer_2"]
    with pytest.raises(ConfigError, match=r"^hidden_states-.* has 4 layers, 0 .*--set settings.start_layer=N"):
        Finetune(checkpoint).train(task, FIT, lambda *_: None)


def test_long_batches_are_scored_in_pieces_of_bounded_length(
    conv: Task, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Finetune(checkpoint)
    whole = train(head, conv)
    monkeypatch.setattr("heads.models.finetune._FRAMES", 25)
    inputs = head.inputs(conv)
    assert isinstance(inputs, EncoderInputs)
    lengths = inputs.view.lengths
    chunks = inputs.chunks(torch.arange(len(IDS)))
    assert sorted(torch.cat(list(chunks)).tolist()) == list(range(len(IDS)))
    assert {len(chunk) * int(lengths[chunk].max()) <= 25 for chunk in chunks} == {True}
    assert max(map(len, chunks)) > 1
    np.testing.assert_allclose(train(head, conv).test, whole.test, rtol=1e-5)
    monkeypatch.setattr("heads.models.finetune._FRAMES", 1)
    assert {len(chunk) for chunk in head.inputs(conv).chunks(torch.arange(len(IDS)))} == {1}


def test_ids_of_tokens_are_read_exactly(tmp_path: Path) -> None:
    checkpoint = text_checkpoint(tmp_path / "checkpoint")
    spec = TokenIds(str(checkpoint)).spec()
    ids = np.array([[2**24 - 1], [2**24 - 3], [1]], np.int32)[None]
    cut = {"tokens_cut": np.asarray(0, np.int32)}
    task = task_of(tmp_path / "cache", spec, [Features(ids, utterance_arrays=cut) for _ in IDS])
    frames, lengths = Finetune(str(checkpoint)).inputs(task).batch(torch.tensor([[0, 5]]), None)
    assert frames[0, 1, 0, :, 0].long().tolist() == [2**24 - 1, 2**24 - 3, 1]
    assert lengths.tolist() == [[3, 3]]


def test_streams_that_no_encoder_starts_from_are_refused(conv: Task, checkpoint: str) -> None:
    two = replace(conv, streams={**conv.streams, "other": conv.streams["conv_features"]})
    with pytest.raises(ConfigError, match="'finetune' reads one stream, got conv_features, other"):
        Finetune(checkpoint).train(two, FIT, lambda *_: None)


def test_an_utterance_too_short_for_the_encoder_is_named(tmp_path: Path, checkpoint: str) -> None:
    speech = [*SPEECH[:3], SPEECH[3][:399], *SPEECH[4:]]
    task = written(tmp_path, Waveform(), speech)
    with pytest.raises(StreamError, match="'u03' has 399 frames in waveform-.*needs 400 for its first state"):
        Finetune(checkpoint).train(task, FIT, lambda *_: None)


def test_sizes_are_counted_without_numbers(checkpoint: str, conv: Task, tmp_path: Path) -> None:
    """As ablate counts them, which makes modules on a device that holds none."""
    mels = task_of(tmp_path, Ge2eMels().spec(), [Features(np.ones((1, 9, 40), np.float32)) for _ in IDS])
    for head, task in ((Finetune(checkpoint), conv), (Finetune(), mels)):
        with torch.device("meta"):
            module = head.module(**head.shapes(task))
        real = head.module(**head.shapes(task))
        assert {name: value.shape for name, value in module.state_dict().items()} == {
            name: value.shape for name, value in real.state_dict().items()
        }
        assert isinstance(real, FinetuneModule)
        assert hash(tuple(head.shapes(task).items()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooled_dropout": 1.0}, "pooled_dropout must be 0 to below 1"),
        ({"projector_dim": -1}, "projector_dim must be 0, for none, or a width"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Finetune(**settings)


def test_it_is_trained_by_command(tmp_path: Path, checkpoint: str) -> None:
    written(tmp_path / "cache", ConvFeatures(checkpoint), SPEECH)
    speakers = [f"s{number // 2 % 3}" for number in range(len(IDS))]
    rows = zip(IDS, speakers, strict=True)
    utterances = [Utterance(name, label="ab"[int(name[1:]) % 2], text=name, speaker=speaker) for name, speaker in rows]
    Manifest(utterances).write(tmp_path / "manifest.jsonl")
    output = call(
        "train-heads", str(tmp_path / "manifest.jsonl"), "--cache", str(tmp_path / "cache"), "--head", "finetune",
        "--stream", "conv_features", "--folds", "speaker", "--set", f"settings.checkpoint={checkpoint}",
        "--set", "settings.freeze=1", "--set", "fit.steps=2", "--set", "fit.eval_every=2",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert "pooled" in output
    assert (tmp_path / "run" / "scores.csv").is_file()
