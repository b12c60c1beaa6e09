"""``featcache finetune``: from recordings to encoders, their features, and heads that read those of their own fold."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from makers import speech_checkpoint, write_corpus
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import featcache
from featcache import registry
from featcache.checkpoints import load_model, resolve
from featcache.errors import CacheError, CheckpointError, ConfigError, FeatcacheError
from featcache.families import open_family
from featcache.manifest import Manifest
from featcache.settings import build
from featcache.stream import Stream
from featcache.tuned import PROVENANCE, RECORD, read_tuned
from heads.models.finetune import Finetune
from heads.runs import read_run
from pipelines import cli
from pipelines.config import recorded_config, train_config
from pipelines.finetune import OWN_OUTPUT, Finetuned, default_preset, extraction, next_commands, run
from pipelines.pack import pack, unpack
from pipelines.restore import restore

runner = CliRunner()
FIT = ("--set", "fit.steps=4", "--set", "fit.eval_every=2", "--set", "fit.batch_size=4")
FOLDS = ("s0", "s1")


class Place:
    """A corpus of two speakers, a small random encoder, a cache, and a fine-tuning run named ``ft``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_corpus(folder / "corpus", [0.3 + 0.01 * number for number in range(16)]).write(folder / "m.jsonl")
        self.checkpoint = speech_checkpoint(folder / "base")
        self.call("extract", "--stream", "conv_features", "--dtype", "float32",
                  "--set", f"conv_features.checkpoint={self.checkpoint}")  # fmt: skip
        self.told = self.finetune("ft")
        self.call("extract", "--stream", "hidden_states", "--set",
                  f"hidden_states.checkpoint={folder / 'runs' / 'ft' / 'encoders'}")  # fmt: skip

    def call(self, command: str, *options: object, code: int = 0) -> str:
        """Run a command on the manifest and the cache, and return what it said."""
        arguments = [command, self.folder / "m.jsonl", "--cache", self.folder / "cache", *options]
        result = runner.invoke(cli.app, [str(argument) for argument in arguments])
        if result.exit_code != code:
            raise AssertionError(f"exit code {result.exit_code}\n{result.output}") from result.exception
        return result.output

    def fails(self, command: str, *options: object) -> str:
        """Run a command that fails with an error of this project, and return its sentence."""
        arguments = [command, self.folder / "m.jsonl", "--cache", self.folder / "cache", *options]
        result = runner.invoke(cli.app, [str(argument) for argument in arguments])
        assert isinstance(result.exception, FeatcacheError), result.output
        return str(result.exception)

    def finetune(self, name: str, *options: object, code: int = 0) -> str:
        return self.call(
            "finetune",
            "--stream",
            "conv_features",
            "--out",
            self.folder / "runs" / name,
            *FIT,
            "--set",
            f"settings.checkpoint={self.checkpoint}",
            *options,
            code=code,
        )

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def encoder(self, fold: str, name: str = "ft") -> Path:
        return self.folder / "runs" / name / "encoders" / fold


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("finetune"))


def test_every_fold_has_a_checkpoint_that_transformers_loads_and_that_knows_what_it_learnt_from(place: Place) -> None:
    folds = json.loads((place.folder / "runs" / "ft" / "folds.json").read_text())["folds"]
    base = load_model(resolve(str(place.checkpoint)), "cpu").state_dict()
    for fold in FOLDS:
        found = resolve(str(place.encoder(fold)))
        record = found.tuned
        assert record is not None
        assert (record.run, record.fold, record.before) == ("ft", fold, ())
        assert (list(record.train), list(record.validation)) == (folds[fold]["train"], folds[fold]["validation"])
        assert set(record.audio) == {*record.train, *record.validation}
        model = load_model(found, "cpu").state_dict()
        changed = {name for name, value in model.items() if not bool((value == base[name]).all())}
        assert changed
        assert not any(name.startswith("feature_extractor") for name in changed)
    assert "--set hidden_states.checkpoint=" in place.told
    assert "--stream hidden_states@ft" in place.told


def test_the_features_of_each_fold_are_its_encoders_and_carry_its_record(place: Place) -> None:
    family = open_family(featcache.open(place.folder / "cache"), "hidden_states@ft")
    assert set(family.members) == set(FOLDS)
    for fold, stream in family.members.items():
        assert stream.tuned == read_tuned(place.encoder(fold) / PROVENANCE)
        assert len(stream) == 16
    first, second = (family.members[fold]["u000"] for fold in FOLDS)
    assert not np.allclose(first, second)
    again = place.call("extract", "--stream", "hidden_states", "--set",
                       f"hidden_states.checkpoint={place.folder / 'runs' / 'ft'}")  # fmt: skip
    assert again.count("0 computed, 16 present") == 2


def test_heads_train_on_their_own_folds_features_and_predict_from_recordings(place: Place) -> None:
    out = place.folder / "runs" / "head"
    place.call("train-heads", "--stream", "hidden_states@ft", "--head", "linear_probe", "--out", out, *FIT)
    scores = read_run(out).scores
    assert set(restore(out).models) == set(FOLDS)
    words = [place.folder / "corpus" / f"{name}.wav" for name in scores.ids]
    result = runner.invoke(cli.app, [str(word) for word in ("predict", out, *words, "--fold", "own", "--form", "csv")])
    assert result.exit_code == 0, result.output
    rows = [line.split(",") for line in result.stdout.splitlines() if line][1:]
    found = np.array([[float(value) for value in row[-len(scores.classes) :]] for row in rows])
    np.testing.assert_allclose(found, scores.probabilities, atol=2e-3)


def test_another_folds_features_are_refused(place: Place) -> None:
    name = open_family(featcache.open(place.folder / "cache"), "hidden_states@ft").members["s0"].name
    told = place.fails("train-heads", "--stream", name, "--head", "linear_probe", "--out", place.folder / "x", *FIT)
    assert "fold 's1'" in told
    assert "hidden_states@ft" in told
    assert not (place.folder / "x").exists()


def test_a_checkpoint_that_learnt_is_not_trained_further_for_what_it_knows(place: Place) -> None:
    place.call("extract", "--stream", "waveform")  # which has no checkpoint of its own: the head's is looked at
    options = ("--stream", "waveform", "--set", f"settings.checkpoint={place.encoder('s0')}", *FIT)
    told = place.fails("finetune", "--out", place.folder / "runs" / "again", *options)
    assert "the checkpoint 's0' of the head has learnt from" in told
    place.call("finetune", "--out", place.folder / "runs" / "again", *options, "--allow", "tuned")
    record = read_tuned(place.encoder("s1", "again") / PROVENANCE)
    assert [one.run for one in record.everything()] == ["again", "ft"]


def test_the_encoders_of_another_run_of_the_name_are_told_from_those_that_a_head_was_trained_on(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, file = tmp_path / "lp", tmp_path / "packed.zip"
    place.call("train-heads", "--stream", "hidden_states@ft", "--head", "linear_probe", "--out", out, *FIT)
    pack(out, file)
    assert f"{file} reads fine-tuned encoders of 'ft', which are not in it" in caplog.text
    assert "--set hidden_states.checkpoint=RUN/encoders" in caplog.text

    def refusal(run: Path, *options: str) -> str:
        words = ("predict", run, place.folder / "corpus" / "u000.wav", *options)
        result = runner.invoke(cli.app, list(map(str, words)))
        assert isinstance(result.exception, ConfigError), result.output
        return str(result.exception)

    told = refusal(file)
    assert told.startswith("The run 'packed' reads the stream hidden_states-")
    assert "beside 'packed' there are none of that run" in told
    assert "/featcache-run-" not in told
    again = tmp_path / "again" / "ft"
    place.finetune(str(again), "--set", "fit.seed=3")
    digests = [read_tuned(folder / "encoders" / "s0" / PROVENANCE).digest for folder in (again, place.runs / "ft")]
    for encoders in (again / "encoders", again / "encoders" / "s0"):
        told = refusal(file, "--set", f"hidden_states.checkpoint={encoders}")
        assert "is of another run named 'ft'" in told
        assert f"(digest {digests[0]} here, {digests[1]} there)" in told
        assert not re.search(r"[0-9a-f]{17}", told)
    assert runner.invoke(cli.app, ["predict", str(file), str(place.folder / "corpus" / "u000.wav"), "--set",
                                   f"hidden_states.checkpoint={place.runs / 'ft'}"]).exit_code == 0  # fmt: skip


def test_a_fused_run_finds_the_encoders_beside_it_whoever_brought_its_runs(place: Place, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("one", "two")]
    for seed, out in enumerate(runs):
        place.call("train-heads", "--stream", "hidden_states@ft", "--head", "linear_probe", "--out", out, *FIT,
                   "--set", f"fit.seed={seed}")  # fmt: skip
    words = ["fuse", *runs, "--weights", "1,1", "--out", tmp_path / "both"]
    assert runner.invoke(cli.app, list(map(str, words))).exit_code == 0
    pack(tmp_path / "both", tmp_path / "both.zip")
    unpack(tmp_path / "both.zip", place.runs / "unpacked-both")
    unpack(tmp_path / "both.zip", tmp_path / "far" / "away")
    sound = str(place.folder / "corpus" / "u000.wav")
    assert runner.invoke(cli.app, ["predict", str(place.runs / "unpacked-both"), sound]).exit_code == 0
    result = runner.invoke(cli.app, ["predict", str(tmp_path / "far" / "away"), sound])
    assert "beside 'away' there are none of that run" in str(result.exception)


def test_a_second_run_of_the_name_goes_by_its_digest_wherever_it_is_told(place: Place, tmp_path: Path) -> None:
    place.finetune("twin")
    out = tmp_path / "twin"
    options = ("--set", "fit.seed=4")
    place.call("extract", "--stream", "hidden_states", "--set", f"hidden_states.checkpoint={place.runs / 'twin'}")
    told = place.finetune(str(out), *options)
    digest = read_tuned(out / "encoders" / "s0" / PROVENANCE).digest
    assert f"--stream hidden_states@{digest}" in told
    assert "--stream hidden_states@twin" in place.finetune("twin", "--extract", "hidden_states")
    told = place.finetune(str(out), *options, "--extract", "hidden_states")
    assert f"--stream hidden_states@{digest}" in told
    assert f"--stream hidden_states@{digest}" in place.finetune(str(out), *options)
    refused = place.fails("train-heads", "--stream", "hidden_states@twin", "--out", tmp_path / "x", *FIT)
    first = read_tuned(place.encoder("s0", "twin") / PROVENANCE).digest
    assert [line.split(":")[0].strip() for line in refused.splitlines()[1:]] == [
        f"hidden_states@{digest}", f"hidden_states@{first}"
    ]  # fmt: skip
    assert refused.count("folds s0, s1, learnt from 16 utterances (hidden_states-") == 2


def test_streams_of_other_encoders_are_told_together_and_digests_are_cut(place: Place) -> None:
    place.finetune("more", "--extract", "hidden_states")
    told = place.call("extract", "--stream", "hidden_states", "--set", f"hidden_states.checkpoint={place.checkpoint}")
    [line] = [line for line in told.splitlines() if "it is not" in line]
    assert re.search(r"it is not the \d+ streams of fine-tuned encoders \(.*ft, .*more.*\): other checkpoints", line)
    folder = place.encoder("s0", "more")
    own = place.call("extract", "--stream", "hidden_states", "--set", f"hidden_states.checkpoint={folder}",
                     "--set", "hidden_states.tap=final_norm", "--dtype", "float32")  # fmt: skip
    [same_fold] = [line for line in own.splitlines() if "it is not hidden_states-" in line]
    assert "checkpoint." not in same_fold  # the encoder that it was not fine-tuned from is another on purpose
    assert "dtype: float16 -> float32" in same_fold
    base = speech_checkpoint(place.folder / "other", seed=1)
    other = place.call("extract", "--stream", "hidden_states", "--set", f"hidden_states.checkpoint={base}")
    assert re.search(r"checkpoint.weights_sha256: [0-9a-f]{12} -> [0-9a-f]{12}", other)
    assert not re.search(r"[0-9a-f]{13}", other)


def test_what_is_extracted_is_what_was_pooled(place: Place) -> None:
    told = place.finetune("ft")
    assert "--set hidden_states.tap=final_norm --set hidden_states.layers=last" in told
    config = extraction({}, ["hidden_states", "token_states", "ge2e_states"], place.runs / "ft")
    assert config is not None
    assert {kind: {name: value for name, value in values.items() if name != "checkpoint"}
            for kind, values in config.streams.items()} == {
        "hidden_states": {"tap": "final_norm", "layers": "last"},
        "token_states": {"layers": "last", "special_tokens": True},
        "ge2e_states": {},
    }  # fmt: skip
    for kind, settings in OWN_OUTPUT.items():  # which the streams have
        build(registry.load("featcache.streams", kind, Stream), {"checkpoint": "x", **settings}, kind)
    done = Finetuned(Any, {}, "token_states", "ft", "0" * 16)  # type: ignore[arg-type]
    text = next_commands(done, Path("m"), place.folder, Path("o"))
    assert "--set token_states.layers=last --set token_states.special_tokens=true" in text


def test_saved_encoders_have_the_mode_of_all_other_files(place: Place, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    expected = (tmp_path / "plain").stat().st_mode
    place.finetune("modes")
    found = {path.name: path.stat().st_mode for path in place.encoder("s1", "modes").iterdir()}
    assert "model.safetensors" in found
    assert set(found.values()) == {expected}


def test_encoders_that_are_gone_are_told_with_how_to_get_them_back(place: Place) -> None:
    place.finetune("gone")
    shutil.rmtree(place.runs / "gone" / "encoders")
    for end in ("", "encoders", "encoders/s0"):
        told = place.fails(
            "extract", "--stream", "hidden_states", "--set", f"hidden_states.checkpoint={place.runs / 'gone' / end}"
        )
        assert f"'{place.runs / 'gone'}' is the folder of a run" in told
        assert "the same command saves its encoders again" in told
    assert "Already there" in place.finetune("gone")
    assert place.encoder("s0", "gone").is_dir()


def test_folds_whose_encoder_is_missing_are_told_when_the_others_are_extracted(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.finetune("short")
    shutil.rmtree(place.encoder("s1", "short"))
    for end in ("", "encoders"):
        caplog.clear()
        place.call("extract", "--stream", "hidden_states", "--set",
                   f"hidden_states.checkpoint={place.runs / 'short' / end}")  # fmt: skip
        assert "has no encoder of the folds s1, which its run has" in caplog.text
    caplog.clear()
    place.finetune("short")
    place.call("extract", "--stream", "hidden_states", "--set", f"hidden_states.checkpoint={place.runs / 'short'}")
    assert not caplog.text


def test_a_folder_of_folds_is_no_checkpoint_to_train_from(place: Place) -> None:
    for folder in (place.runs / "ft", place.runs / "ft" / "encoders"):
        with pytest.raises(CheckpointError, match=r"a checkpoint for each fold \(s0, s1\).*--set start=RUN"):
            resolve(str(folder))


def test_what_is_there_is_kept_and_a_kill_between_folds_goes_on(place: Place) -> None:
    before = {fold: (place.encoder(fold) / "model.safetensors").stat().st_ino for fold in FOLDS}
    assert "Already there" in place.finetune("ft")
    assert before == {fold: (place.encoder(fold) / "model.safetensors").stat().st_ino for fold in FOLDS}
    kept = (place.encoder("s1") / "model.safetensors").read_bytes()
    shutil.rmtree(place.encoder("s1"))
    (place.encoder("s0").parent / ".tmp-left").mkdir()
    assert "Already there" in place.finetune("ft")
    assert (place.encoder("s1") / "model.safetensors").read_bytes() == kept
    assert (place.encoder("s0") / "model.safetensors").stat().st_ino == before["s0"]
    assert sorted(path.name for path in place.encoder("s0").parent.iterdir()) == list(FOLDS)


def test_what_is_there_is_kept_whatever_the_folder_is_called_and_the_cache_has_learnt(place: Place) -> None:
    place.finetune("early")
    before = {path.name: path.stat().st_mtime_ns for path in place.encoder("s0", "early").iterdir()}
    place.call("extract", "--stream", "log_mel")
    (place.folder / "runs" / "early").rename(place.folder / "runs" / "late")
    shutil.rmtree(place.folder / "runs" / "late" / "encoders" / "s1")
    told = place.finetune("late")
    assert "Already there" in told
    assert {path.name: path.stat().st_mtime_ns for path in place.encoder("s0", "late").iterdir()} == before
    assert {read_tuned(place.encoder(fold, "late") / PROVENANCE).run for fold in FOLDS} == {"early"}
    assert "--stream hidden_states@early" in told


def test_other_weights_at_the_same_path_are_another_run(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.checkpoint, tmp_path / "base")
    place.call("extract", "--stream", "waveform")
    options = ("--stream", "waveform", "--out", tmp_path / "run", *FIT, "--set",
               f"settings.checkpoint={tmp_path / 'base'}")  # fmt: skip
    place.call("finetune", *options)
    assert "Already there" in place.call("finetune", *options)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    scaled = {name: 1.5 * values for name, values in weights.items()}
    save_file(scaled, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    assert "holds another run" in place.fails("finetune", *options)


def test_what_cannot_be_extracted_is_refused_before_anything_trains(place: Place) -> None:
    options = ("--stream", "conv_features", "--out", place.folder / "none", *FIT,
               "--set", f"settings.checkpoint={place.checkpoint}", "--extract")  # fmt: skip
    for kind in ("token_states", "log_mel"):
        assert "Extract hidden_states" in place.fails("finetune", *options, kind)
    assert "hidden_states" in place.fails("finetune", *options, "hiden_states")
    assert not (place.folder / "none").exists()


def test_predictions_say_what_the_encoders_have_learnt_from(place: Place) -> None:
    rows = (place.folder / "m.jsonl").read_text().splitlines(keepends=True)
    (place.folder / "half.jsonl").write_text("".join(rows[:8]))
    (place.folder / "rest.jsonl").write_text("".join(rows[8:]))
    out = place.folder / "runs" / "half"
    arguments = ["train-heads", place.folder / "half.jsonl", "--cache", place.folder / "cache", "--stream",
                 "hidden_states@ft", "--head", "linear_probe", "--out", out, *FIT]  # fmt: skip
    assert runner.invoke(cli.app, list(map(str, arguments))).exit_code == 0

    def predicted(name: str) -> str:
        words = ("predict", out, "--manifest", place.folder / name, "--form", "csv")
        result = runner.invoke(cli.app, list(map(str, words)))
        assert result.exit_code == 0, result.output
        return result.output

    assert "has learnt from 8 of 8" in predicted("rest.jsonl")
    told = predicted("half.jsonl")
    assert "8 of 8 are of the data that 'half' was trained on" in told
    assert "has learnt from" not in told
    packed = place.folder / "half.zip"
    pack(out, packed, without_utterances=True)
    with ZipFile(packed) as archive:
        texts = {name: archive.read(name) for name in archive.namelist()}
    assert not any(b"u000" in text for text in texts.values())
    unpack(packed, place.folder / "runs" / "unpacked")
    words = ("predict", place.folder / "runs" / "unpacked", "--manifest", place.folder / "rest.jsonl", "--form", "csv")
    result = runner.invoke(cli.app, list(map(str, words)))
    assert result.exit_code == 0, result.output


def test_a_kill_while_a_checkpoint_is_saved_leaves_none_without_its_record(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = train_config(
        {}, {"head": "finetune", "streams": ("conv_features",)},
        ["fit.steps=2", "fit.eval_every=1", "fit.batch_size=4", f"settings.checkpoint={place.checkpoint}"],
    )  # fmt: skip
    manifest = Manifest.read(place.folder / "m.jsonl")
    saved = Finetune.save_encoder

    def killed(self: Finetune, task: Any, weights: Any, folder: Path) -> None:
        saved(self, task, weights, folder)
        if folder.name == "s1":
            raise KeyboardInterrupt

    monkeypatch.setattr(Finetune, "save_encoder", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, manifest, place.folder / "cache", tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut" / "encoders").iterdir()] == ["s0"]
    monkeypatch.undo()
    done = run(config, manifest, place.folder / "cache", tmp_path / "cut")
    assert done.trained.skipped
    assert all((folder / PROVENANCE).is_file() for folder in done.encoders.values())


def test_training_again_with_other_settings_leaves_no_encoder_of_the_old_run(place: Place) -> None:
    place.finetune("other")
    first = read_tuned(place.encoder("s0", "other") / PROVENANCE)
    with pytest.raises(AssertionError, match="exit code 1"):
        place.finetune("other", "--set", "fit.seed=3")
    told = place.finetune("other", "--set", "fit.seed=3", "--overwrite")
    assert f"--overwrite: the encoders of 'other' (digest {first.digest}) in" in told
    assert read_tuned(place.encoder("s0", "other") / PROVENANCE).digest != first.digest


def test_extract_makes_the_features_right_away(place: Place) -> None:
    told = place.finetune("both", "--extract", "hidden_states")
    assert "--stream hidden_states@both" in told
    assert set(open_family(featcache.open(place.folder / "cache"), "hidden_states@both").members) == set(FOLDS)


def test_a_head_without_an_encoder_is_refused(place: Place) -> None:
    assert "trains no encoder" in place.fails(
        "finetune", "--stream", "conv_features", "--head", "mean_pool", "--out", place.folder / "x"
    )


def test_features_whose_record_is_lost_get_it_back_by_the_same_extract(place: Place) -> None:
    stream = open_family(featcache.open(place.folder / "cache"), "hidden_states@ft").members["s1"]
    kept = (stream.path / RECORD).read_bytes()
    (stream.path / RECORD).unlink()
    with pytest.raises(CacheError, match="run the same extract again"):
        open_family(featcache.open(place.folder / "cache"), "hidden_states@ft")
    told = place.call("extract", "--stream", "hidden_states", "--set",
                      f"hidden_states.checkpoint={place.encoder('s1')}")  # fmt: skip
    assert "0 computed, 16 present" in told
    assert (stream.path / RECORD).read_bytes() == kept


def test_a_damaged_checkpoint_is_told_by_name(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.encoder("s0"), tmp_path / "s0")
    (tmp_path / "s0" / PROVENANCE).unlink()
    told = place.fails("extract", "--stream", "hidden_states", "--set", f"hidden_states.checkpoint={tmp_path / 's0'}")
    assert "what it has learnt from is lost" in told


def test_without_a_preset_the_encoder_trains_slowly_for_some_epochs(place: Place) -> None:
    fit = recorded_config(read_run(place.folder / "runs" / "ft").config or {}).fit
    assert (fit.unit, fit.steps, fit.bucketed) == ("epoch", 4, True)
    assert (fit.learning_rate, fit.pretrained_rate) == ((1e-3,), 2e-5)
    assert default_preset(("ge2e_mels-0123",)) == "finetune-ge2e"
    assert default_preset(("tokens",)) == default_preset(()) == "finetune"
