"""What training begins with: another run's weights, where they compute the same; and votes that it aims at."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError, ScoresError
from featcache.stream import Features, StreamSpec
from heads.fit_settings import FitSettings
from pipelines.beginning import shares_of_votes
from pipelines.config import TrainConfig
from pipelines.restore import read_weights
from pipelines.train_heads import Preparer, run

SMALL: dict[str, Any] = {
    "channels": 2, "blocks": (1, 1), "time_strides": (1, 2), "frequency_strides": (1, 2), "embedding": 3,
    "chunks": (4, 6), "shorter": "repeat", "layer": 0,
}  # fmt: skip
SPEC = StreamSpec("log_mel", 1, "audio", {"definition": "one"}, ("a", "b"), 8, frame_shift_s=0.01, dtype="float32")
FIT = FitSettings(steps=2, eval_every=1, batch_size=4)
IDS = [f"{session}{number}" for session in "AB" for number in range(8)]


def write_stream(cache: Path, spec: StreamSpec) -> str:
    """Write a stream of noise and return its full name."""
    generator = np.random.default_rng(0)
    shape = (len(spec.layers), 7, spec.dim)
    with StreamWriter(cache, spec, "zarr", "frames") as writer:
        frames = [generator.standard_normal(shape).astype(np.float32) for _ in IDS]
        writer.commit(
            [
                store(name, f"of {name}", 0, Features(one), spec, "frames")
                for name, one in zip(IDS, frames, strict=True)
            ],
            {},
        )
    return spec.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one stream, and a run on it."""
    made = tmp_path_factory.mktemp("begun")
    write_stream(made / "cache", SPEC)
    run(config(), manifest(), made / "cache", made / "first")
    return made


def manifest() -> Manifest:
    return Manifest(
        [Utterance(name, label="xyz"[place % 3], speaker=name[0], session=name[0]) for place, name in enumerate(IDS)]
    )


def config(stream: str = SPEC.name, start: Path | str = "", fit: FitSettings = FIT, **settings: Any) -> TrainConfig:
    return TrainConfig(
        head="resnet", streams=(stream,), folds="session", fit=fit, start=str(start), settings={**SMALL, **settings}
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"time_strides": (1, 1)}, r"settings.time_strides: \(1, 2\) -> \(1, 1\)"),
        ({"frequency_strides": (1, 1), "layer": 1}, r"frequency_strides: \(1, 2\) -> \(1, 1\)"),
        ({"first_stride": (2, 2)}, r"settings.first_stride: \(1, 1\) -> \(2, 2\)"),
        ({"normalise": "none"}, "settings.normalise: segment -> none"),
        ({"layer": 1}, "settings.layer: 0 -> 1"),
    ],
)
def test_settings_with_which_the_weights_would_compute_something_else_are_refused(
    folder: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"first', which .* something else here .*{words}.*Train with what that run"):
        Preparer(manifest(), folder / "cache").prepare(config(start=folder / "first", **settings))


def test_what_one_preparer_knows_of_a_start_lets_no_other_settings_pass(folder: Path) -> None:
    preparer = Preparer(manifest(), folder / "cache")
    preparer.prepare(config(start=folder / "first"))

    def train() -> None:
        prepared = preparer.prepare(config(start=folder / "first", time_strides=(1, 1)))
        prepared.head.train(prepared.task(), FIT, lambda *_: None)

    with pytest.raises(ConfigError, match="settings.time_strides"):
        train()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (replace(SPEC, dim=6), "log_mel.dim: 8 -> 6"),
        (replace(SPEC, frame_shift_s=0.02), "log_mel.frame_shift_s: 0.01 -> 0.02"),
        (replace(SPEC, settings={"definition": "two"}), "log_mel.settings.definition: one -> two"),
        (replace(SPEC, layers=("a", "c")), "log_mel.layers: "),
        (replace(SPEC, kind="hidden_states"), "streams: log_mel -> hidden_states"),
    ],
)
def test_streams_with_which_the_weights_would_compute_something_else_are_refused(
    folder: Path, tmp_path: Path, spec: StreamSpec, words: str
) -> None:
    name = write_stream(tmp_path / "cache", spec)
    with pytest.raises(ConfigError, match=rf"first', which .* something else here \(there -> here\): {words}"):
        run(config(name, start=folder / "first"), manifest(), tmp_path / "cache", tmp_path / "out")
    assert not (tmp_path / "out" / "scores.csv").exists()


def test_what_decides_nothing_of_the_weights_may_change(folder: Path, tmp_path: Path) -> None:
    name = write_stream(tmp_path / "cache", replace(SPEC, dtype="float16", libraries={"librosa": "9"}))
    changed = config(
        name, start=folder / "first", chunks=(5,), augment="conservative", copies=1, shorter="zeros", embedding=4,
        freeze="convolutions",
    )  # fmt: skip
    run(changed, manifest(), tmp_path / "cache", tmp_path / "out")
    before, after = read_weights(folder / "first"), read_weights(tmp_path / "out")
    for fold in "AB":
        kept = [name for name in before[fold] if name.startswith("convolutions.")]
        assert all(np.array_equal(before[fold][name], after[fold][name]) for name in kept)


def test_another_head_is_refused_by_name(folder: Path) -> None:
    for head, message in (("linear_probe", "is of the head 'linear_probe', and this training of 'resnet'"),
                          ("svm", "is of the head 'svm', with whose weights no training begins")):  # fmt: skip
        other = TrainConfig(head=head, streams=(SPEC.name,), folds="session", fit=FIT)
        run(other, manifest(), folder / "cache", folder / head)
        if head == "svm":  # which keeps none
            (folder / head / "weights.safetensors").write_bytes((folder / "first" / "weights.safetensors").read_bytes())
        with pytest.raises(ConfigError, match=message):
            Preparer(manifest(), folder / "cache").prepare(config(start=folder / head))


@pytest.mark.parametrize("content", [None, "{}", '{"streams": {"log_mel": 3}}'])
def test_a_run_that_does_not_say_its_streams_is_refused(folder: Path, tmp_path: Path, content: str | None) -> None:
    for file in (folder / "first").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "streams.json").unlink()
    if content is not None:
        (tmp_path / "streams.json").write_text(content)
    told = r"(does not say what its streams|streams.json' is damaged|do not fit together)"
    with pytest.raises(ScoresError, match=told):
        Preparer(manifest(), folder / "cache").prepare(config(start=tmp_path))


def test_a_rate_of_what_was_pretrained_is_refused_where_nothing_was(folder: Path, tmp_path: Path) -> None:
    fit = replace(FIT, pretrained_rate=2e-4)
    with pytest.raises(ConfigError, match=r"fit.pretrained_rate is 0.0002, .* 'resnet' begins at random. Set start"):
        run(config(fit=fit), manifest(), folder / "cache", tmp_path / "out")
    probe = TrainConfig(head="linear_probe", streams=(SPEC.name,), folds="session", fit=fit)
    with pytest.raises(ConfigError, match="or fit.pretrained_rate to null"):
        run(probe, manifest(), folder / "cache", tmp_path / "out")
    run(config(fit=fit, start=folder / "first"), manifest(), folder / "cache", tmp_path / "out")


@pytest.mark.parametrize("most", [1e308, 5e-324, 3, 10**300])
def test_shares_of_votes_hold_however_large_votes_are(most: float) -> None:
    rows = [Utterance("a", label="x", extra={"votes": {"x": most, "y": most}}), Utterance("b", label="y")]
    shares, voted = shares_of_votes(rows, "votes", ("x", "y"), np.array([0, 1]))
    assert (shares.tolist(), voted) == ([[0.5, 0.5], [0.0, 1.0]], 1)


def test_votes_beyond_all_numbers_are_refused_by_name() -> None:
    rows = [Utterance("a", label="x", extra={"votes": {"x": 10**400}})]
    with pytest.raises(ConfigError, match="'a' has .* in the column 'votes'"):
        shares_of_votes(rows, "votes", ("x", "y"), np.array([0]))
