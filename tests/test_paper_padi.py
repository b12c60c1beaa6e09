"""Padi et al. 2022: what the presets state, both fusions by hand, and transfer from speakers to emotions."""

import math
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from makers import write_corpus
from safetensors.numpy import load_file
from test_cli import call

from featcache import Manifest, registry
from featcache.cache import open as open_cache
from featcache.errors import ConfigError, ProtocolError
from featcache.settings import build
from featcache.stream import Stream
from heads.models.finetune import Finetune
from heads.models.resnet import Resnet
from heads.order import rate_factor
from heads.runs import Run, read_run, write_run
from heads.scores import Scores
from pipelines import fuse, train_heads
from pipelines.config import extract_config, preset_names, read_preset, train_config
from pipelines.reporting import published
from pipelines.train_heads import load_head

PRESETS = [name for name in preset_names() if name.startswith("padi-")]
SPEECH = ["padi-pretrain", "padi-frozen", "padi-finetuned", "padi-scratch"]
PAPER: dict[str, Any] = yaml.safe_load((resources.files("pipelines") / "papers" / "padi2022.yaml").read_text())
CLASSES = ("angry", "sad")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_its_head_reads_the_stream_that_it_extracts(name: str) -> None:
    preset = read_preset(name)
    extract, train = extract_config(preset, [], {}, []), train_config(preset, {}, [])
    assert list(extract.streams) == list(train.streams)
    for kind, settings in extract.streams.items():
        build(registry.load("featcache.streams", kind, Stream), settings, f"stream {kind}")
    assert isinstance(load_head(train), Resnet | Finetune)
    assert train.fit.unit == "epoch"


@pytest.mark.parametrize("name", SPEECH)
def test_the_speech_presets_are_the_papers(name: str) -> None:
    preset = read_preset(name)
    config = train_config(preset, {}, [])
    assert extract_config(preset, [], {}, []).streams == {"log_mel": {"definition": "mel128_10ms"}}
    head, fit = load_head(config), config.fit
    assert isinstance(head, Resnet)
    assert (head.channels, head.blocks, head.embedding) == (32, (3, 4, 6, 3), 512)
    assert (head.chunks, head.normalise, head.copies) == ((150, 200, 250, 300), "segment", 2)
    assert head.freeze == ("convolutions" if name == "padi-frozen" else "nothing")
    assert (fit.optimiser, fit.momentum, fit.batch_size, fit.learning_rate) == ("sgd", 0.9, 32, (0.1,))
    assert fit.pretrained_rate == (1e-3 if name == "padi-finetuned" else None)
    assert config.label == ("speaker" if name == "padi-pretrain" else "label")


@pytest.mark.parametrize("name", [name for name in PRESETS if "text" not in name])
def test_the_rate_is_constant_for_8_epochs_and_halved_every_other_one(name: str) -> None:
    fit = train_config(read_preset(name), {}, []).fit
    factors = [rate_factor(fit, epoch) for epoch in range(20)]
    assert factors[:8] == [1.0] * 8
    halved = [1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 16, 1 / 16, 1 / 32, 1 / 32, 1 / 64, 1 / 64]
    assert factors[8:] == halved


def test_what_the_paper_does_not_say_of_rates_is_noted() -> None:
    notes = {key: run["notes"] for key, run in PAPER["runs"].items()}
    assert [key for key in notes if "rates" in notes[key]] == ["frozen", "finetuned"]
    assert [key for key in notes if "pretraining-recipe" in notes[key]] == ["pretrain"]
    for key in ("pretrain", "frozen", "finetuned"):
        fit = train_config(read_preset(f"padi-{key}"), {}, []).fit
        assert (fit.steps, fit.learning_rate) == (20, (0.1,))
    quarter = train_config(read_preset("padi-finetuned-laptop"), {}, []).fit
    assert (quarter.learning_rate, quarter.pretrained_rate) == ((0.1 / 4,), 1e-3 / 4)


def test_the_text_preset_is_the_papers() -> None:
    config = train_config(read_preset("padi-text"), {}, [])
    head = load_head(config)
    assert isinstance(head, Finetune)
    assert (head.freeze, head.projector_dim) == ("nothing", 0)
    assert (config.fit.optimiser, config.fit.learning_rate, config.fit.batch_size) == ("adamw", (2e-5,), 32)
    assert config.fit.weight_decay == (0.0,)  # Adam


@pytest.mark.parametrize("name", PRESETS)
def test_copies_of_a_recording_train_speech_and_repeat_no_text(name: str) -> None:
    assert train_config(read_preset(name), {}, []).copies == ("text" not in name)


@pytest.mark.parametrize("key", ["pretrain", "frozen", "finetuned", "scratch"])
def test_the_laptop_forms_differ_in_size_and_not_in_kind(key: str) -> None:
    full, laptop = (train_config(read_preset(f"padi-{key}{suffix}"), {}, []) for suffix in ("", "-laptop"))
    small = load_head(laptop)
    assert isinstance(small, Resnet)
    assert sum(value.numel() for value in small.module(1, 128, 4).parameters()) < 200_000
    assert (full.label, full.settings.get("freeze")) == (laptop.label, laptop.settings.get("freeze"))
    assert (full.fit.pretrained_rate is None) == (laptop.fit.pretrained_rate is None)
    # What one run gives to the next must fit.
    first = load_head(train_config(read_preset("padi-pretrain-laptop"), {}, []))
    assert isinstance(first, Resnet)
    ours, theirs = (head.module(1, 128, 4).convolutions.state_dict() for head in (small, first))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_the_papers_numbers_are_those_that_a_report_shows() -> None:
    values = yaml.safe_load(Path(published.__file__).with_name("published.yaml").read_text())
    known = {
        "text": "padi-text",
        "frozen": "padi-speech-frozen",
        "finetuned": "padi-speech",
        "fused-given": "padi-fused-searched",
        "fused-standardised": "padi-fused-standardised",
    }
    rows = [row for table in PAPER["tables"] for row in table["rows"] if "run" in row and "paper" in row]
    assert {row["run"] for row in rows} == set(known)
    for row in rows:
        entry = _entry(values, known[row["run"]])
        for metric, number in row["paper"].items():
            assert number["mean"] == entry["values"][metric.lower()]["value"], row["label"]


def _entry(values: Any, name: str) -> Any:
    """Return what stands under a name, wherever that is."""
    if isinstance(values, dict):
        if name in values:
            return values[name]
        return next((found for one in values.values() if (found := _entry(one, name)) is not None), None)
    return None


def test_the_rows_are_those_that_the_papers_text_prints() -> None:
    """Every row is a line of a table in the text: its numbers in the order of the page."""
    text = Path(__file__).resolve().parents[2] / "shared" / "seeds" / "003_d2174f035c36dc87.txt"
    if not text.is_file():
        pytest.skip("the papers' texts are not at hand")
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if "\t" in line]
    for table in PAPER["tables"][:-1]:
        for row in table["rows"]:
            if row.get("run") == "fused-searched":
                continue  # ours
            numbers = [float(numbers["mean"]) for numbers in row["paper"].values()]
            if "parameters" in row:
                numbers.append(row["parameters"] / 1e6)
            name = row["label"].split()[0].strip(",")
            found = [[float(one) for one in re.findall(r"\d+\.?\d*", line)] for line in lines if name in line]
            assert any(one[-len(numbers) :] == numbers for one in found), row["label"]


def test_every_note_that_the_paper_file_names_is_there_and_is_used() -> None:
    parts = [*PAPER["runs"].values(), *PAPER["fusions"].values(), *PAPER["tables"]]
    parts += [row for table in PAPER["tables"] for row in table["rows"]]
    assert {note for part in parts for note in part.get("notes", [])} == set(PAPER["notes"])
    assert {run["start"] for run in PAPER["runs"].values() if "start" in run} == {"pretrain"}


# Fusion


def scores(rows: list[tuple[str, str, list[float]]]) -> Scores:
    """Return scores of one fold from ``(id, label, probabilities)``."""
    ids, labels, probabilities = zip(*rows, strict=True)
    return Scores(ids, ("1",) * len(ids), labels, CLASSES, np.array(probabilities))


TEXT = (
    scores([("t1", "angry", [0.3, 0.7]), ("t2", "sad", [0.5, 0.5])]),
    scores([("v1", "angry", [0.2, 0.8]), ("v2", "sad", [0.1, 0.9])]),
)
SPOKEN = (
    scores([("t1", "angry", [0.8, 0.2]), ("t2", "sad", [0.4, 0.6])]),
    scores([("v1", "angry", [0.9, 0.1]), ("v2", "sad", [0.6, 0.4])]),
)


def fused(folder: Path, key: str) -> Run:
    """Fuse both runs as the paper's file says under a key."""
    how = dict(PAPER["fusions"][key])
    assert how.pop("runs") == ["text", "finetuned"]
    how.pop("notes")
    for name, (test, validation) in (("text", TEXT), ("finetuned", SPOKEN)):
        write_run(folder / name, test, validation, {"head": "x"})
    weights = how.pop("weights")
    fuse.run([folder / "text", folder / "finetuned"], weights, folder / key, **how)
    return read_run(folder / key)


def odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_first_fusion_weighs_log_posteriors_by_the_papers_weight(tmp_path: Path) -> None:
    found = fused(tmp_path, "fused-given").scores.probabilities[:, 0]
    # 0.94 ln(0.3 / 0.7) + 0.06 ln(0.8 / 0.2) = -0.796460 + 0.083178 = -0.713282
    assert found[0] == pytest.approx(logistic(-0.713282), abs=1e-6)
    assert found[0] == pytest.approx(0.328874, abs=1e-6)
    assert found[1] == pytest.approx(logistic(0.06 * odds(0.4)), abs=1e-12)


def test_the_first_fusion_searches_its_weight_on_validation(tmp_path: Path) -> None:
    run = fused(tmp_path, "fused-searched")
    assert run.config is not None
    weights = run.config["weights"]["1"]
    # v1 is right where w1 ln(0.2/0.8) + (1 - w1) ln(0.9/0.1) > 0, so below 2.19722 / 3.58352 = 0.6131; v2 where
    # w1 ln(0.9/0.1) + (1 - w1) ln(0.4/0.6) > 0, so above 0.40547 / 2.60269 = 0.1558. Within, the log loss decides.
    loss = {
        step: -math.log(logistic(2.197225 - 3.583519 * step / 100))
        - math.log(logistic(2.602690 * step / 100 - 0.405465))
        for step in range(16, 62)
    }
    best = min(loss, key=lambda step: loss[step])
    assert weights == pytest.approx([best / 100, 1 - best / 100])
    assert best == 34
    assert run.config["on_search"]["1"]["ua"] == 1.0
    expected = logistic(0.34 * odds(0.3) + 0.66 * odds(0.8))
    assert run.scores.probabilities[0, 0] == pytest.approx(expected, abs=1e-9)
    assert expected == pytest.approx(0.651780, abs=1e-6)


def test_the_second_fusion_averages_scores_standardised_on_validation(tmp_path: Path) -> None:
    # Text, validation: ln 0.2, ln 0.8, ln 0.1, ln 0.9. Their mean is -1.060132, their standard deviation 0.929726.
    # Speech: ln 0.9, ln 0.1, ln 0.6, ln 0.4; -0.958766 and 0.827134.
    for (_, holdout), mean, std in ((TEXT, -1.060132, 0.929726), (SPOKEN, -0.958766, 0.827134)):
        logs = [math.log(value) for row in holdout.probabilities.tolist() for value in row]
        assert sum(logs) / 4 == pytest.approx(mean, abs=1e-6)
        assert math.sqrt(sum((value - mean) ** 2 for value in logs) / 4) == pytest.approx(std, abs=1e-6)
    found = fused(tmp_path, "fused-standardised").scores.probabilities[:, 0]
    # The means fall out of the difference of two classes.
    expected = [
        0.5 * odds(text) / 0.929726 + 0.5 * odds(speech) / 0.827134 for text, speech in ((0.3, 0.8), (0.5, 0.4))
    ]
    assert found == pytest.approx([logistic(value) for value in expected], abs=1e-6)


# Transfer


SMALL = ["settings.channels=2", "settings.embedding=4", "settings.chunks=[8,12]", "fit.steps=2", "fit.batch_size=4"]


def train(preset: str, folder: Path, *overrides: str, name: str = "") -> dict[str, np.ndarray]:
    """Train a preset in small on the corpus in a folder, as a run of its name or another; return the weights."""
    config = train_config(read_preset(preset), {}, [*SMALL, *overrides])
    manifest = Manifest.read(folder / "corpus.jsonl")
    out = folder / (name or preset)
    train_heads.run(config, manifest, folder / "cache", out)
    return load_file(out / "weights.safetensors")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of 6 speakers in 3 sessions, their log-mels, and a run that tells apart those of each fold."""
    folder = tmp_path_factory.mktemp("padi")
    manifest = write_corpus(folder / "audio", [0.2 + 0.01 * (number % 7) for number in range(72)], speakers=6)
    rows = [
        replace(one, session=f"Ses{int(str(one.speaker)[1:]) // 2}", audio=f"audio/{one.audio}") for one in manifest
    ]
    Manifest(rows, folder=folder).write(folder / "corpus.jsonl")
    settings = ["--stream", "log_mel", "--set", "log_mel.definition=mel128_10ms"]
    call("extract", folder / "corpus.jsonl", "--cache", folder / "cache", *settings)
    assert open_cache(folder / "cache")["log_mel"].spec.dim == 128
    train("padi-pretrain-laptop", folder)
    return folder


def test_speakers_are_told_apart_among_those_of_each_training_part(corpus: Path) -> None:
    run = read_run(corpus / "padi-pretrain-laptop")
    manifest = {one.id: one for one in Manifest.read(corpus / "corpus.jsonl")}
    for fold in ("Ses0", "Ses1", "Ses2"):
        tested = [name for name, where in zip(run.scores.ids, run.scores.folds, strict=True) if where == fold]
        assert tested
        assert fold not in {manifest[name].session for name in tested}
    assert set(run.scores.classes) == {f"s{number}" for number in range(6)}


def test_frozen_runs_keep_the_convolutions_of_the_speakers(corpus: Path) -> None:
    start = f"start={corpus / 'padi-pretrain-laptop'}"
    before = load_file(corpus / "padi-pretrain-laptop" / "weights.safetensors")
    frozen = train("padi-frozen-laptop", corpus, start)
    names = [name for name in before if "/convolutions." in name]
    assert names
    assert all(np.array_equal(before[name], frozen[name]) for name in names)
    assert len(read_run(corpus / "padi-frozen-laptop").scores.ids) == 72


def test_fine_tuned_runs_move_the_convolutions_of_the_speakers_by_the_presets_rate(corpus: Path) -> None:
    """The first step of SGD is the rate times the gradient, which a second run of a known rate tells."""
    one_step = [f"start={corpus / 'padi-pretrain-laptop'}", "fit.unit=step", "fit.steps=1", "fit.eval_every=1"]
    before = load_file(corpus / "padi-pretrain-laptop" / "weights.safetensors")
    tuned = train("padi-finetuned-laptop", corpus, *one_step)
    faster = train("padi-finetuned-laptop", corpus, *one_step, "fit.pretrained_rate=0.1", name="faster")
    for name in (name for name in before if "/convolutions." in name and name.endswith("first.weight")):
        gradient = (before[name] - faster[name]) / 0.1
        assert np.abs(gradient).max() > 1e-2
        np.testing.assert_allclose(before[name] - tuned[name], 1e-3 / 4 * gradient, rtol=1e-2, atol=2e-7)
    # What is new moves at a rate of its own.
    assert all(np.array_equal(tuned[name], faster[name]) for name in tuned if "/classify." in name)


def test_fine_tuning_and_freezing_want_a_run_to_start_from(corpus: Path) -> None:
    for preset, words in (
        ("padi-finetuned-laptop", "fit.pretrained_rate is 0.00025, .* begins at random. Set start to the folder"),
        ("padi-frozen-laptop", "they begin at random. Set start to the folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(preset, corpus, name=f"{preset}-alone")


def test_a_start_that_heard_tested_utterances_is_refused(corpus: Path) -> None:
    config = train_config(read_preset("padi-pretrain-laptop"), {}, [*SMALL, "folds=stratified:80/10/10"])
    manifest = Manifest.read(corpus / "corpus.jsonl")
    train_heads.run(config, manifest, corpus / "cache", corpus / "all")
    with pytest.raises(ProtocolError, match="'all'"):
        train("padi-frozen-laptop", corpus, f"start={corpus / 'all'}")
