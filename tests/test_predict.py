"""Prediction from files: what a run said of an utterance, it says again; and whatever cannot be predicted is named."""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
from makers import tone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from speech_task import make_task
from test_cli import call
from typer.testing import CliRunner

import featcache
from featcache import FeatcacheError, Manifest, Utterance
from featcache.errors import CheckpointError, ConfigError, ScoresError, UnknownNameError
from heads.fit_settings import FitSettings
from heads.models.encoder_decoder import EncoderDecoder
from heads.models.svm import Machine, Svm
from heads.runs import read_run
from pipelines.cli_runs import app
from pipelines.restore import restore
from pipelines.run_folders import plain, write_training

pytest.importorskip("opensmile")

runner = CliRunner()
NUM = 18
STEPS = ["--set", "fit.steps=6", "--set", "fit.eval_every=3"]


def tell(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Run a command on runs and return its standard output and standard error."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    if result.exit_code != code:
        raise AssertionError(f"exit code {result.exit_code}, expected {code}\n{result.output}") from result.exception
    return result.stdout, result.stderr


def refused(*arguments: object) -> FeatcacheError:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, FeatcacheError), result.output
    return result.exception


def predicted(*arguments: object, code: int = 0) -> dict[str, dict[str, float]]:
    """Run predict and return id to class to probability."""
    output, _ = tell("predict", *arguments, "--form", "jsonl", code=code)
    rows = [json.loads(line) for line in output.splitlines()]
    return {row["id"]: row["probabilities"] for row in rows}


class Corpus:
    """Recordings of three speakers and two sessions, with a cache; runs are trained when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache, self.path = folder, folder / "cache", folder / "manifest.jsonl"
        utterances = []
        for number in range(NUM):
            loudness = (0.3, 1.0, 4.0)[number % 3]
            samples = tone(0.3 + 0.02 * (number % 4), seed=number) * loudness
            soundfile.write(folder / f"u{number:02d}.wav", samples, 16000, subtype="FLOAT")
            utterances.append(
                Utterance(
                    f"u{number:02d}", f"u{number:02d}.wav", label=("loud", "mild", "soft, quiet")[number % 3],
                    speaker=f"sö{number // 3 % 3}", session=f"S{number // 3 % 3}",
                )
            )  # fmt: skip
        self.manifest = Manifest(utterances, folder)
        self.manifest.write(self.path)
        streams = [part for name in ("log_mel", "speaker", "ge2e_states", "egemaps") for part in ("--stream", name)]
        call("extract", self.path, "--cache", self.cache, *streams)

    def run(self, name: str, head: str, *options: object, stream: str = "log_mel") -> Path:
        out = self.folder / "runs" / name
        if not out.exists():
            streams = [part for one in stream.split("+") for part in ("--stream", one)]
            call(
                "train-heads", self.path, "--cache", self.cache, "--head", head, *streams, "--folds", "speaker",
                *STEPS, "--out", out, *options,
            )  # fmt: skip
        return out

    def wav(self, number: int) -> Path:
        return self.folder / f"u{number:02d}.wav"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def probe(corpus: Corpus) -> Path:
    return corpus.run("linear_probe", "linear_probe", stream="ge2e_states")


TINY = [
    *("--set", "settings.window=8", "--set", "settings.bottleneck=4", "--set", "settings.factor=4"),
    *("--set", "settings.channels=12", "--set", "settings.classifier_dim=16", "--set", "settings.reconstruct=false"),
]
SMALL = {
    "window": 8, "bottleneck": 4, "factor": 4, "channels": 12, "phone_channels": 8, "phone_dim": 3,
    "decoder_channels": 8, "decoder_dim": 6, "post_net_channels": 8, "classifier_dim": 16,
}  # fmt: skip
HEADS: dict[str, tuple[str, str, list[str]]] = {
    "linear_probe": ("linear_probe", "ge2e_states", []),
    "mix_std": ("layer_mix", "ge2e_states", ["--set", "settings.standardise=true", "--set", "settings.std=true"]),
    "mean_pool": ("mean_pool", "ge2e_states", ["--set", "settings.projector_dim=8"]),
    "mixed": ("mean_pool", "ge2e_states", ["--set", "settings.projector_dim=8", "--set", "fit.precision=bfloat16"]),
    "mlp_probe": ("mlp_probe", "log_mel", ["--set", "settings.hidden=[8]", "--set", "settings.frames=3"]),
    "svm": ("svm", "log_mel", ["--set", "settings.C=[0.5,2.0]"]),
    "functionals": ("svm", "egemaps", []),
    "svm_linear": ("svm", "log_mel", ["--set", "settings.kernel=linear"]),
    "text_cnn": ("text_cnn", "log_mel", ["--set", "settings.widths=[8,8]", "--set", "settings.kernels=[1,4]"]),
    "cnn_longest": ("text_cnn", "log_mel", [
        "--set", "settings.widths=[8,8]", "--set", "settings.kernels=[1,4]", "--set", "settings.fixed_length=longest",
    ]),
    "encoder_decoder": ("encoder_decoder", "ge2e_states+log_mel+speaker", TINY),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_training_file_gets_the_probabilities_of_the_runs_own_scores(corpus: Corpus, name: str) -> None:
    """Of every kind of head, from the recordings alone: no cache, other ids, one file that was in no manifest."""
    head, stream, options = HEADS[name]
    scores = read_run(corpus.run(name, head, *options, stream=stream)).scores
    found = predicted(corpus.folder / "runs" / name, "--fold", "own", *(corpus.wav(number) for number in range(NUM)))
    assert list(found) == [str(corpus.wav(number)) for number in range(NUM)]
    for key, row in zip(scores.ids, scores.probabilities, strict=True):
        mine = found[str(corpus.folder / f"{key}.wav")]
        assert tuple(mine) == scores.classes
        assert np.allclose(list(mine.values()), row, rtol=0, atol=1e-6)
    # Alone, without those that it shares its speaker, or the longest length, with.
    assert predicted(corpus.folder / "runs" / name, "--fold", "own", corpus.wav(4)) == {
        str(corpus.wav(4)): pytest.approx(found[str(corpus.wav(4))], abs=1e-6)
    }
    assert np.ptp(scores.probabilities, axis=0).max() > 1e-4  # a head that says the same of all would agree with itself


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_the_arrays_of_the_svm_decide_as_scikit_learn_does(kernel: Literal["rbf", "linear"], num_classes: int) -> None:
    generator = np.random.default_rng(num_classes)
    values, labels = generator.standard_normal((90, 7)), 2 * generator.integers(0, num_classes, 90)
    options = {"class_weight": "balanced", "decision_function_shape": "ovr", "break_ties": True}
    expected = make_pipeline(StandardScaler(), SVC(C=0.7, kernel=kernel, **options)).fit(values, labels)
    found = Machine.restored(kernel, Svm(kernel=kernel)._fit(values, labels, 0.7).arrays())
    fresh = generator.standard_normal((40, 7))
    decision = expected.decision_function(fresh)
    decision = np.stack([-decision / 2, decision / 2], axis=1) if num_classes == 2 else decision
    assert np.allclose(found.decision(fresh), decision, rtol=0, atol=1e-9)
    probabilities = found.probabilities(fresh, 2 * num_classes)
    assert np.array_equal(probabilities.argmax(axis=1), expected.predict(fresh))
    assert not probabilities[:, 1::2].any()  # classes that training did not have


def test_phones_are_not_needed_to_score(tmp_path: Path) -> None:
    """The decoder of the speech model, which reads them, is for training; its run folder is written and read back."""
    task = make_task(tmp_path / "cache", [6, 8, 9, 17, 30, 5, 16, 12, 11, 23, 7, 10])
    settings = FitSettings(steps=2, eval_every=1, batch_size=4)
    head = EncoderDecoder(**SMALL)  # type: ignore[arg-type]
    outcomes = head.train(task, settings, lambda *_: None)
    record = {
        "head": "encoder_decoder", "settings": SMALL, "streams": {name: one.name for name, one in task.streams.items()},
        "fit": asdict(settings), "folds": "speaker", "classes": list(task.classes), "versions": {}, "seconds": 1.0,
        "problems": [],
    }  # fmt: skip
    write_training(tmp_path / "run", task, outcomes, plain(record))
    run = restore(tmp_path / "run")
    assert set(task.streams) - set(run.specs) == {"phones"}
    for fold, outcome in zip(task.folds, outcomes, strict=True):
        speakers = [task.speakers[at] for at in task.positions(fold.test)]
        streams = {name: task.streams[name] for name in run.specs}
        found = run.score(streams, list(fold.test), speakers, [fold.name])[fold.name]
        assert np.allclose(found, outcome.test, rtol=0, atol=1e-6)
        assert np.ptp(found, axis=0).max() > 1e-6


def test_the_run_needs_nothing_but_its_folder(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(probe, moved)
    shutil.copy(corpus.wav(4), tmp_path / "new name.wav")
    (mine,) = predicted(moved, tmp_path / "new name.wav", "--fold", "own").values()
    scores = read_run(probe).scores
    assert np.allclose(list(mine.values()), scores.probabilities[scores.ids.index("u04")], rtol=0, atol=1e-6)


def test_by_default_the_models_of_all_folds_are_averaged(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "new.wav", tone(0.5, seed=99), 16000, subtype="FLOAT")
    folds = [predicted(probe, tmp_path / "new.wav", "--fold", name) for name in ("sö0", "sö1", "sö2")]
    both = predicted(probe, tmp_path / "new.wav")
    rows = [list(next(iter(one.values())).values()) for one in (*folds, both)]
    assert np.allclose(np.mean(rows[:3], axis=0), rows[3], atol=1e-12)
    assert np.ptp(rows[:3], axis=0).max() > 1e-5
    _, message = tell("predict", probe, tmp_path / "new.wav")
    assert "trained on" not in message
    _, message = tell("predict", probe, corpus.wav(0), tmp_path / "new.wav")
    assert "1 of 2 are of the data that 'linear_probe' was trained on" in message
    assert "--fold own" in message
    error = refused("predict", probe, tmp_path / "new.wav", "--fold", "sö9")
    assert isinstance(error, UnknownNameError)
    assert "sö2" in str(error)


def test_a_file_that_is_not_of_the_run_has_no_own_fold(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "new.wav", tone(0.5, seed=99), 16000, subtype="FLOAT")
    output, message = tell("predict", probe, tmp_path / "new.wav", corpus.wav(3), "--fold", "own", code=3)
    assert "u03.wav" in output
    assert f"{tmp_path / 'new.wav'}: it is no utterance that 'linear_probe' was tested on" in message


def test_copies_of_the_runs_utterances_are_no_news_to_it(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    rows: list[Utterance] = []
    for name, original in {"c0": "u00", "c1": "u03", "c2": "c1", "other": "nobody"}.items():
        soundfile.write(tmp_path / f"{name}.wav", tone(0.5, seed=len(rows) + 50), 16000, subtype="FLOAT")
        rows.append(Utterance(name, f"{name}.wav", extra={"version_of": original}))
    Manifest(rows, tmp_path).write(tmp_path / "copies.jsonl")
    _, message = tell("predict", probe, "--manifest", tmp_path / "copies.jsonl")
    assert "3 of 4 are of the data that 'linear_probe' was trained on, or copies of it" in message
    # Each is scored by the model that had not heard its original: u00 is of the speaker sö0, u03 of sö1.
    own = predicted(probe, "--manifest", tmp_path / "copies.jsonl", "--fold", "own", code=3)
    for fold, names in {"sö0": ["c0"], "sö1": ["c1", "c2"]}.items():
        of_fold = predicted(probe, "--manifest", tmp_path / "copies.jsonl", "--fold", fold)
        for name in names:
            assert own[name] == pytest.approx(of_fold[name], abs=1e-6)
    assert "other" not in own
    # Another utterance of that name among those asked for is what they are copies of.
    stranger = Utterance("u00", "other.wav")
    Manifest([stranger, rows[0]], tmp_path).write(tmp_path / "strangers.jsonl")
    _, message = tell("predict", probe, "--manifest", tmp_path / "strangers.jsonl")
    assert "trained on" not in message


def test_what_cannot_be_read_is_named_and_the_others_are_done(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFF no audio")
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16000)
    soundfile.write(tmp_path / "short.wav", tone(0.01), 16000)
    files = [tmp_path / name for name in ("bad.wav", "silent.wav", "missing.wav", "short.wav")]
    output, message = tell("predict", probe, files[0], corpus.wav(1), *files[1:], "--form", "csv", code=3)
    rows = list(csv.reader(output.splitlines()))
    assert rows[0] == ["id", "predicted", "p_loud", "p_mild", "p_soft, quiet"]
    assert [row[0] for row in rows[1:]] == [str(corpus.wav(1))]
    for path, reason in zip(files, ("cannot be decoded", "digital silence", "no audio file", ""), strict=True):
        [line] = [line for line in message.splitlines() if line.startswith(f"{path}: ")]
        assert reason in line
    output, message = tell("predict", probe, *files, code=1)
    assert output == ""
    assert "None of the 4 could be predicted." in message


def test_an_utterance_that_the_head_cannot_score_fails_alone(corpus: Corpus, tmp_path: Path) -> None:
    run = corpus.run("cnn_longest", *_trained("cnn_longest"), stream="log_mel")
    soundfile.write(tmp_path / "long.wav", tone(1.5, seed=5), 16000, subtype="FLOAT")
    alone = predicted(run, corpus.wav(2))
    output, message = tell("predict", run, tmp_path / "long.wav", corpus.wav(2), "--form", "jsonl", code=3)
    assert json.loads(output)["probabilities"] == pytest.approx(alone[str(corpus.wav(2))], abs=1e-12)
    assert "more than the longest of training" in message


def _trained(name: str) -> Iterator[Any]:
    head, _, options = HEADS[name]
    return iter([head, *options])


def test_several_runs_are_fused_by_weights(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    svm = corpus.run("svm", *_trained("svm"))
    files = [corpus.wav(number) for number in range(4)]
    one, two = predicted(probe, *files), predicted(svm, *files)
    for weights, shares in (([], (0.5, 0.5)), (["--weights", "0.6,1.0"], (0.375, 0.625))):
        fused = predicted(probe, *files, "--with", svm, *weights)
        for name, row in fused.items():
            for label, value in row.items():
                assert value == pytest.approx(shares[0] * one[name][label] + shares[1] * two[name][label], abs=1e-12)
    assert "one weight for each run" in str(refused("predict", probe, files[0], "--weights", "1,2"))
    assert "numbers separated by commas" in str(refused("predict", probe, files[0], "--weights", "a"))


@pytest.mark.parametrize(
    "options", [["0.3,1.0"], ["0.3,1.0", "--space", "log"], ["search", "--search-on", "other-folds"]]
)
def test_a_fused_run_gives_its_own_scores(corpus: Corpus, probe: Path, tmp_path: Path, options: list[str]) -> None:
    svm = corpus.run("svm", *_trained("svm"))
    out = probe.parent / f"fused {len(options)} {options[0]}"
    call("fuse", probe, svm, "--weights", *options, "--out", out, "--overwrite")
    scores = read_run(out).scores
    found = predicted(out, "--manifest", corpus.path, "--fold", "own")
    for key, row in zip(scores.ids, scores.probabilities, strict=True):
        assert np.allclose([found[key][name] for name in scores.classes], row, rtol=0, atol=1e-6)
    change(out / "config.yaml", str((read_run(svm).config or {})["digest"]), "b")
    assert "was trained again since" in str(refused("predict", out, corpus.wav(0)))
    alone = tmp_path / "alone"
    shutil.copytree(out, alone)
    assert "is not beside it" in str(refused("predict", alone, corpus.wav(0)))
    assert "Give it alone" in str(refused("predict", out, corpus.wav(0), "--with", svm))


def test_a_fusion_that_is_no_weighing_is_refused(corpus: Corpus, probe: Path) -> None:
    svm = corpus.run("svm", *_trained("svm"))
    out = probe.parent / "stacked"
    call("fuse", probe, svm, "--weights", "stack", "--search-on", "other-folds", "--out", out, "--overwrite")
    error = refused("predict", out, corpus.wav(0))
    assert "fusion by stacking" in str(error)
    assert "--with" in str(error)


def test_a_speaker_is_known_again_by_name(corpus: Corpus, tmp_path: Path) -> None:
    run = corpus.run("encoder_decoder", *_trained("encoder_decoder"), stream="ge2e_states+log_mel+speaker")
    soundfile.write(tmp_path / "new.wav", tone(0.5, seed=77), 16000, subtype="FLOAT")
    new = tmp_path / "new.wav"
    (unknown,), (known,), (other,) = (
        predicted(run, new, "--fold", "sö0", *speaker).values()
        for speaker in ([], ["--speaker", "sö1"], ["--speaker", "nobody"])
    )
    assert unknown == pytest.approx(other, abs=1e-12)  # a speaker of this file alone
    assert unknown != pytest.approx(known, abs=1e-7)


def test_features_are_kept_where_a_cache_is_given(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    before = {path.name for path in corpus.cache.rglob("part-*")}
    found = predicted(probe, "--manifest", corpus.path, "--cache", corpus.cache, "--fold", "own")
    assert {path.name for path in corpus.cache.rglob("part-*")} == before  # all was there
    assert found == predicted(probe, "--manifest", corpus.path, "--cache", tmp_path / "kept", "--fold", "own")
    assert list((tmp_path / "kept").glob("ge2e_states-*/part-*.json"))


def test_tables_and_files(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    output, _ = tell("predict", probe, corpus.wav(0))
    header, _, row = output.splitlines()
    assert header.split() == ["utterance", "predicted", "loud", "mild", "soft,", "quiet"]
    assert row.startswith(str(corpus.wav(0)))
    for name in ("a.csv", "b.jsonl"):
        output, _ = tell("predict", probe, corpus.wav(0), "--out", tmp_path / name)
        assert output == f"Wrote {tmp_path / name}.\n"
    [line] = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    written = json.loads((tmp_path / "b.jsonl").read_text())
    assert line["predicted"] == written["predicted"] == max(written["probabilities"], key=written["probabilities"].get)
    assert float(line["p_soft, quiet"]) == written["probabilities"]["soft, quiet"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "there is nothing to predict"),
        (["a.wav", "--form", "xml"], "--form takes jsonl, csv, table"),
        (["a.wav", "--manifest", "m.jsonl"], "Give it alone"),
        (["a.wav", "--text", "one", "--text", "two"], "1 recordings and 2 texts"),
        (["a.wav", "a.wav"], "occur more than once"),
        (["a.wav", "--text", "one", "--text-file", "t"], "not both"),
        (["a.wav", "--text-file", "none"], "cannot be read"),
        (["--text", "one"], "Give recordings"),
        (["a.wav", "--set", "hidden_states.tap=final_norm"], "--set names hidden_states"),
        (["a.wav", "--set", "ge2e_states=3"], "give a setting of the stream"),
    ],
)
def test_what_does_not_fit_together_is_refused(probe: Path, arguments: list[str], told: str) -> None:
    assert told in str(refused("predict", probe, *arguments))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_other_features_than_those_of_training_are_refused(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    shutil.copytree(probe, tmp_path / "run")
    spec = tmp_path / "run" / "streams.json"
    digest = json.loads(spec.read_text())["streams"]["ge2e_states"]["checkpoint"]["weights_sha256"]
    change(spec, digest, "0" * 64)
    error = refused("predict", tmp_path / "run", corpus.wav(0))
    assert isinstance(error, ConfigError)
    assert f"checkpoint.weights_sha256: {'0' * 12} -> {digest[:12]}" in str(error)
    error = refused("predict", probe, corpus.wav(0), "--set", "ge2e_states.target_rms=0.5")
    assert "settings.target_rms: 0.03 -> 0.5" in str(error)


def test_another_release_of_a_library_is_told(corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.run("svm", *_trained("svm")), tmp_path / "run")
    spec = tmp_path / "run" / "streams.json"
    values = json.loads(spec.read_text())
    values["streams"]["log_mel"]["libraries"]["librosa"] = "0.0.1"
    spec.write_text(json.dumps(values))
    output, message = tell("predict", tmp_path / "run", corpus.wav(0), "--form", "csv")
    assert "libraries.librosa: 0.0.1 -> " in message
    assert len(output.splitlines()) == 2


def test_runs_of_earlier_versions_and_damaged_ones_say_so(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    def damaged(name: str, content: bytes | None) -> str:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(probe, tmp_path / "run")
        if content is None:
            (tmp_path / "run" / name).unlink()
        else:
            (tmp_path / "run" / name).write_bytes(content)
        error = refused("predict", tmp_path / "run", corpus.wav(0))
        assert isinstance(error, ScoresError | ConfigError)
        return str(error)

    assert "trained by an earlier featcache" in damaged("streams.json", None)
    assert "streams.json' is damaged" in damaged("streams.json", b'{"streams": {"a": 1}}')
    assert "streams.json' is damaged" in damaged("streams.json", b"[")
    assert "no weights.safetensors" in damaged("weights.safetensors", None)
    assert "weights.safetensors' is damaged" in damaged("weights.safetensors", b"x")
    assert "no 'config.yaml' in it" in damaged("config.yaml", None)
    assert "does not say classes" in damaged(
        "config.yaml", (probe / "config.yaml").read_bytes() + b"\nchosen: {a: 1}\n"
    )
    assert "does not say classes" in damaged("config.yaml", (probe / "config.yaml").read_bytes() + b"\nclasses: 3\n")
    assert "inputs.json' is damaged" in damaged("inputs.json", b"3")
    broken = json.loads((probe / "streams.json").read_text())
    broken["streams"]["ge2e_states"]["settings"] = 3
    assert "streams.json' is damaged" in damaged("streams.json", json.dumps(broken).encode())
    chosen = (probe / "config.yaml").read_text().partition("\nchosen:")[0] + "\nchosen: {sö0: {layer: 99}}\n"
    assert "do not fit together" in damaged("config.yaml", chosen.encode())
    assert "no such folder" in str(refused("predict", tmp_path / "nothing", corpus.wav(0)))
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(probe, tmp_path / "run")
    shutil.copy(corpus.run("svm", *_trained("svm")) / "weights.safetensors", tmp_path / "run")
    assert "The weights are not of the head" in str(refused("predict", tmp_path / "run", corpus.wav(0)))


def test_a_run_on_what_files_do_not_give_is_refused(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    shutil.copytree(probe, tmp_path / "run")
    change(tmp_path / "run" / "streams.json", '"input": "audio"', '"input": "cache"')
    assert "made by a trained head" in str(refused("predict", tmp_path / "run", corpus.wav(0)))
    (tmp_path / "run" / "config.yaml").write_text((probe / "config.yaml").read_text() + "of_run: {folder: x}\n")
    assert "a probe on the codes of another run" in str(refused("predict", tmp_path / "run", corpus.wav(0)))


def written_texts(folder: Path) -> tuple[Path, list[str]]:
    """Write a small encoder of text and a manifest of texts; return the encoder's folder and the texts."""
    from text_makers import text_checkpoint

    texts = [f"this is sentence {number}" for number in range(12)]
    people = [
        Utterance(f"t{number}", text=text, label="ab"[number % 2], speaker=f"s{number // 2 % 3}")
        for number, text in enumerate(texts)
    ]
    Manifest(people).write(folder / "texts.jsonl")
    return text_checkpoint(folder / "small-bert"), texts


def test_a_checkpoint_that_is_elsewhere_is_named_by_set(corpus: Corpus, tmp_path: Path) -> None:
    """Text from a small encoder: the texts alone, in a file, and a folder that moved."""
    encoder, texts = written_texts(tmp_path)
    cache, run = tmp_path / "cache", tmp_path / "run"
    call("extract", tmp_path / "texts.jsonl", "--cache", cache, "--stream", "token_states",
         "--set", f"token_states.checkpoint={encoder}")  # fmt: skip
    call("train-heads", tmp_path / "texts.jsonl", "--cache", cache, "--stream", "token_states", "--folds", "speaker",
         "--head", "linear_probe", *STEPS, "--out", run)  # fmt: skip
    scores = read_run(run).scores
    shutil.move(encoder, tmp_path / "moved")
    (tmp_path / "said.txt").write_text("\n".join(texts) + "\n\n")
    error = refused("predict", run, "--text", texts[0])
    assert isinstance(error, CheckpointError)
    assert "--set token_states.checkpoint=FOLDER" in str(error)
    here = ["--set", f"token_states.checkpoint={tmp_path / 'moved'}"]
    found = predicted(run, "--text-file", tmp_path / "said.txt", *here, "--fold", "own")
    for key, row in zip(scores.ids, scores.probabilities, strict=True):
        mine = found[f"text {int(key[1:]) + 1}"]
        assert np.allclose(list(mine.values()), row, rtol=0, atol=1e-6)
    assert "Give --text" in str(refused("predict", run, corpus.wav(0), *here))


def test_an_encoder_that_was_tuned_from_ids_of_tokens_reads_new_texts(tmp_path: Path) -> None:
    encoder, texts = written_texts(tmp_path)
    cache, run = tmp_path / "cache", tmp_path / "run"
    call("extract", tmp_path / "texts.jsonl", "--cache", cache, "--stream", "tokens",
         "--set", f"tokens.checkpoint={encoder}")  # fmt: skip
    call("train-heads", tmp_path / "texts.jsonl", "--cache", cache, "--stream", "tokens", "--folds", "speaker",
         "--head", "finetune", "--set", f"settings.checkpoint={encoder}", "--set", "fit.steps=2",
         "--set", "fit.batch_size=4", "--out", run)  # fmt: skip
    scores = read_run(run).scores
    (tmp_path / "said.txt").write_text("\n".join(texts))
    here = ["--set", f"tokens.checkpoint={encoder}"]
    found = predicted(run, "--text-file", tmp_path / "said.txt", *here, "--fold", "own")
    for key, row in zip(scores.ids, scores.probabilities, strict=True):
        assert np.allclose(list(found[f"text {int(key[1:]) + 1}"].values()), row, rtol=0, atol=1e-6)


def test_a_pack_without_utterances_keeps_the_length_that_texts_are_padded_to(corpus: Corpus, tmp_path: Path) -> None:
    run = corpus.run("cnn_longest", *_trained("cnn_longest"), stream="log_mel")
    call("pack", run, "--without-utterances", "--out", tmp_path / "run.zip")
    shortest = corpus.wav(0)
    assert predicted(tmp_path / "run.zip", shortest) == predicted(run, shortest)


def test_another_recording_does_not_take_the_place_of_one_in_a_shared_cache(
    corpus: Corpus, probe: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "other.wav", tone(0.5, seed=77), 16000, subtype="FLOAT")
    Manifest([Utterance("u00", "other.wav")], tmp_path).write(tmp_path / "m.jsonl")
    before = featcache.open(corpus.cache)["ge2e_states"]["u00"].tobytes()
    error = refused("predict", probe, "--manifest", tmp_path / "m.jsonl", "--cache", corpus.cache)
    assert "holds 1 of these utterances with another input, such as 'u00'" in str(error)
    assert featcache.open(corpus.cache)["ge2e_states"]["u00"].tobytes() == before
    assert predicted(probe, "--manifest", tmp_path / "m.jsonl").keys() == {"u00"}


def test_a_spec_that_came_with_a_run_starts_no_program(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    shutil.copytree(probe, tmp_path / "run")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    path = tmp_path / "run" / "streams.json"
    values = json.loads(path.read_text())
    settings = {"aligner": "mfa", "settings": {"program": str(program)}}
    values["streams"]["ge2e_states"] |= {"kind": "alignment", "settings": settings, "checkpoint": None}
    path.write_text(json.dumps(values))
    assert "made by an alignment" in str(refused("predict", tmp_path / "run", corpus.wav(0)))
    assert not (tmp_path / "ran").exists()


def test_the_answer_replaces_no_recording(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    assert "is a recording to predict" in str(refused("predict", probe, corpus.wav(0), "--out", corpus.wav(0)))
    assert "is a folder" in str(refused("predict", probe, corpus.wav(0), "--out", tmp_path))
