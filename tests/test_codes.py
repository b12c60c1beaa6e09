"""Codes of a trained head in the cache: what they are, when they are computed again, and who notices a change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from speech_task import features, make_task

import featcache
from featcache import Manifest, Utterance
from featcache.cache import CachedStream
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError, ScoresError
from featcache.speakers import speaker_means
from featcache.stream import Features
from featcache.verify import coverage, verify
from heads import codes
from heads.codes import export_codes
from heads.fit_settings import FitSettings
from heads.models.encoder_decoder import EncoderDecoder
from heads.models.layer_mix import LayerMix
from heads.runs import read_run
from heads.task import Task
from pipelines import codes as pipeline
from pipelines import train_heads
from pipelines.config import TrainConfig, recorded_config

TINY = EncoderDecoder(
    window=8, bottleneck=4, factor=4, channels=12, phone_channels=8, phone_dim=3, decoder_channels=8, decoder_dim=6,
    post_net_channels=8, classifier_dim=16,
)  # fmt: skip
LENGTHS = [6, 8, 9, 17, 30, 5, 16, 12, 11, 23, 7, 10]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return make_task(tmp_path / "cache", LENGTHS)


def weights_of(task: Task, seed: int = 0) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    module = TINY.module(**TINY.shapes(task))
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def test_codes_are_those_of_the_module_on_consecutive_windows(task: Task, tmp_path: Path) -> None:
    weights = weights_of(task)
    name = export_codes(TINY, task, "s0", weights, tmp_path / "cache", dtype="float32")
    stream = featcache.open(tmp_path / "cache")[name]
    module = TINY.module(**TINY.shapes(task)).eval()
    module.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    people = [Utterance(key, speaker=speaker) for key, speaker in zip(task.ids, task.speakers, strict=True)]
    means = speaker_means(task.streams["speaker"], people)
    for number, (key, length) in enumerate(zip(task.ids, LENGTHS, strict=True)):
        hidden = features(number, length)["toy"]
        windows = -(-length // 8)
        padded = np.zeros((4, windows * 8, 6), np.float32)
        padded[:, :length] = hidden
        speaker = torch.from_numpy(means[str(task.speakers[number])])[None]
        with torch.no_grad():
            parts = [
                module.codes(torch.from_numpy(padded[None, :, first : first + 8]), speaker)[0]
                for first in range(0, windows * 8, 8)
            ]
        expected = torch.cat(parts).numpy()
        assert stream[key].shape == (1, windows * 2, 8)
        assert np.allclose(stream[key][0], expected, atol=1e-6)
    assert (stream.spec.settings["blocks"], stream.spec.frame_shift_s) == (2, 4 * 0.02)
    assert verify(tmp_path / "cache")[1] == []


def test_what_is_there_is_not_computed_again(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(task)
    first = export_codes(TINY, task, "s0", weights, tmp_path / "cache")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "cache").rglob("*")) if path.is_file()}

    def never(*_: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(codes, "_encode", never)
    counted: list[int] = []
    assert export_codes(TINY, task, "s0", weights, tmp_path / "cache", on_done=counted.append) == first
    assert sum(counted) == len(LENGTHS)
    after = {path: path.read_bytes() for path in sorted((tmp_path / "cache").rglob("*")) if path.is_file()}
    assert before == after


def test_a_stopped_export_ends_at_the_same_bytes(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(task)
    monkeypatch.setattr(codes, "_GROUP", 5)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    name = export_codes(TINY, task, "s0", weights, whole)

    def stop(count: int) -> None:
        if count == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_codes(TINY, task, "s0", weights, broken, on_done=stop)
    assert export_codes(TINY, task, "s0", weights, broken) == name
    files = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    others = {path.relative_to(broken): path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    assert len(list((whole / name).glob("part-*.json"))) == 3
    assert files == others


@pytest.mark.parametrize("change", ["weights", "settings", "dtype"])
def test_what_decides_the_codes_is_in_their_name(task: Task, tmp_path: Path, change: str) -> None:
    weights = weights_of(task)
    name = export_codes(TINY, task, "s0", weights, tmp_path / "cache")
    head, other, dtype = TINY, dict(weights), "float32"
    if change == "weights":
        other["mix.alpha"] = weights["mix.alpha"] + np.float32(1e-3)
    elif change == "settings":
        head = replace(TINY, dropout=0.25)
    else:
        dtype = "float16"
    assert export_codes(head, task, "s0", other, tmp_path / "cache", dtype=dtype) != name


def change_stream(folder: Path, task: Task, kind: str, number: int) -> None:
    """Store other frames of one utterance, as after its audio changed."""
    name = task.ids[number]
    stream = task.streams[kind]
    frames = np.array(stream[name]) + np.float32(0.25)
    with StreamWriter(folder, stream.spec, "zarr", "frames") as writer:
        writer.commit([store(name, "1", 1, Features(frames), stream.spec, "frames")], {})


@pytest.mark.parametrize(("kind", "also"), [("toy", []), ("speaker", ["u000", "u001"])])
def test_a_changed_source_is_noticed_and_mended(task: Task, tmp_path: Path, kind: str, also: list[str]) -> None:
    folder = tmp_path / "cache"
    weights = weights_of(task)
    name = export_codes(TINY, task, "s0", weights, folder)
    before = {key: featcache.open(folder)[name][key].copy() for key in task.ids}
    change_stream(folder, task, kind, 2)  # u000 to u002 are one speaker's
    opened = featcache.open(folder)
    manifest = Manifest([Utterance(key) for key in task.ids])
    [row] = [one for one in coverage(opened, manifest, inputs=False) if one.stream == name]
    assert list(row.changed) == ["u002"]
    assert "toy-" in row.changed["u002"]
    fresh = replace(task, streams={key: opened[stream.name] for key, stream in task.streams.items()})
    assert export_codes(TINY, fresh, "s0", weights, folder) == name
    stream = CachedStream(folder / name)
    differing = [key for key in task.ids if not np.array_equal(stream[key], before[key])]
    assert differing == [*also, "u002"]
    assert {key: stream.locate(key).entry.generation for key in differing} == dict.fromkeys(differing, 1)
    [row] = [one for one in coverage(featcache.open(folder), manifest, inputs=False) if one.stream == name]
    assert not row.changed


def test_heads_without_codes_and_weights_of_others_are_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'layer_mix' has no codes"):
        export_codes(LayerMix(), replace(task, streams={"toy": task.streams["toy"]}), "s0", {}, tmp_path / "other")
    with pytest.raises(ScoresError, match="not of the head"):
        export_codes(replace(TINY, bottleneck=2), task, "s0", weights_of(task), tmp_path / "other")


PEOPLE = [Utterance(f"u{number:03d}", label="abc"[number % 3], speaker=f"s{number // 3 % 4}") for number in range(24)]


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Manifest, Path]:
    """A run that was trained from a cache, and its manifest."""
    return train(Manifest(PEOPLE), tmp_path)


def train(manifest: Manifest, tmp_path: Path) -> tuple[Manifest, Path]:
    """Return a manifest, and a run that was trained on it."""
    make_task(tmp_path / "cache", [10 + number % 9 for number in range(24)], unlike=True)
    config = TrainConfig(
        head="encoder_decoder", streams=("toy", "log_mel", "speaker", "phones"), folds="speaker",
        settings={
            "window": 8, "bottleneck": 4, "factor": 4, "channels": 12, "phone_channels": 8, "phone_dim": 3,
            "decoder_channels": 8, "decoder_dim": 6, "post_net_channels": 8, "classifier_dim": 16,
        },
        fit=FitSettings(steps=4, eval_every=2, batch_size=4), device="cpu",
    )  # fmt: skip
    train_heads.run(config, manifest, tmp_path / "cache", tmp_path / "run")
    return manifest, tmp_path / "run"


def test_a_run_gives_a_stream_for_each_fold(trained: tuple[Manifest, Path], tmp_path: Path) -> None:
    manifest, folder = trained
    seen: list[tuple[int, int]] = []
    names = pipeline.run(folder, manifest, tmp_path / "cache", on_progress=lambda *done: seen.append(done))
    assert list(names) == ["s0", "s1", "s2", "s3"]
    assert len(set(names.values())) == 4
    assert seen[-1] == (96, 96)
    check_codes(folder, featcache.open(tmp_path / "cache")[names["s1"]], "s1")


def check_codes(folder: Path, stream: CachedStream, fold: str) -> None:
    """Check that the classifier on exported codes gives the probabilities that the run scored."""
    run = read_run(folder)
    head = train_heads.load_head(recorded_config(run.config or {}))
    assert isinstance(head, EncoderDecoder)
    module = head.module(4, 6, 3, num_mels=5, speaker_dim=3, num_phones=7).eval()
    weights = pipeline.read_weights(folder)[fold]
    module.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    rows = [number for number, name in enumerate(run.scores.folds) if name == fold]
    assert rows
    for row in rows:
        found = torch.from_numpy(np.array(stream[run.scores.ids[row]][0], np.float32)).view(-1, 2 * 8)
        with torch.no_grad():
            probabilities = torch.softmax(module.classify(found), dim=1).mean(dim=0)
        assert np.allclose(probabilities.numpy(), run.scores.probabilities[row], atol=1e-6)


def test_a_run_with_copies_and_its_codes_read_means_of_originals(tmp_path: Path) -> None:
    originals = PEOPLE[:12]
    copies = [
        Utterance(one.id, extra={"version_of": other.id}) for one, other in zip(PEOPLE[12:], originals, strict=True)
    ]
    manifest, folder = train(Manifest([*originals, *copies]), tmp_path)
    cache = featcache.open(tmp_path / "cache")
    means = speaker_means(cache["speaker"], originals)
    kept = load_file(folder / "context.safetensors")
    assert {name: mean.tolist() for name, mean in kept.items()} == {
        f"speaker/{name}": mean.tolist() for name, mean in means.items()
    }
    names = pipeline.run(folder, manifest, tmp_path / "cache")
    stream = featcache.open(tmp_path / "cache")[names["s1"]]
    assert copies[0].id in stream
    check_codes(folder, stream, "s1")
    # Codes that were exported with other means are computed again.
    task = replace(make_task(tmp_path / "other", [9] * 24), copies=frozenset(one.id for one in copies))
    assert set(codes._digests(task)).isdisjoint(codes._digests(replace(task, copies=frozenset())))


def test_another_manifest_or_damaged_weights_are_refused(trained: tuple[Manifest, Path], tmp_path: Path) -> None:
    manifest, folder = trained
    fewer = Manifest(list(manifest)[1:])
    with pytest.raises(ConfigError, match="lacks 1 of the run's 24 utterances, such as 'u000'"):
        pipeline.run(folder, fewer, tmp_path / "cache")
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ScoresError, match="is damaged"):
        pipeline.run(folder, manifest, tmp_path / "cache")
    path.unlink()
    with pytest.raises(ScoresError, match=r"has no weights\.safetensors"):
        pipeline.run(folder, manifest, tmp_path / "cache")
