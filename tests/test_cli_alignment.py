"""The commands on alignments, run as a user runs them, over a corpus whose times are known from files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from makers import write_corpus
from test_cli import call, runner

from featcache import Manifest
from featcache import open as open_cache
from featcache.alignment import read
from featcache.errors import CacheError, ConfigError, UnknownNameError
from pipelines.cli import app

WORDS = {"this": "DH IH S", "is": "IH Z", "sentence": "S EH N T AH N S", "number": "N AH M B ER"}


def spoken(text: str, duration_s: float, late_s: float = 0.0) -> dict[str, list[list[object]]]:
    """Return the words of a text that have phones, evenly spread over the audio, and a little later."""
    words = [word for word in text.split() if word in WORDS]
    step = duration_s / (sum(len(WORDS[word].split()) for word in words) + 1)
    tiers: dict[str, list[list[object]]] = {"words": [], "phones": []}
    at = late_s
    for word in words:
        start = at
        for phone in WORDS[word].split():
            tiers["phones"].append([at, at + step, phone])
            at += step
        tiers["words"].append([start, at, word])
    return tiers


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder with a manifest of three utterances, and two alignments of them 10 ms apart."""
    durations_s = [1.0, 0.8, 1.2]
    manifest = write_corpus(tmp_path, durations_s)
    manifest.write(tmp_path / "m.jsonl")
    for folder, late_s in (("early", 0.0), ("late", 0.01)):
        (tmp_path / folder).mkdir()
        for utterance, duration_s in zip(manifest, durations_s, strict=True):
            tiers = spoken(utterance.text or "", duration_s, late_s)
            (tmp_path / folder / f"{utterance.id}.json").write_text(json.dumps(tiers))
    return tmp_path


def refused(*arguments: object) -> BaseException | None:
    """Return the error that a command ends with."""
    return runner.invoke(app, [str(argument) for argument in arguments]).exception


def align(corpus: Path, folder: str, code: int = 0, **settings: object) -> str:
    options = [
        f"--set={key}={value}" for key, value in {"folder": corpus / folder, "symbols": "english", **settings}.items()
    ]
    return call(
        "align", corpus / "m.jsonl", "--cache", corpus / "cache", "--aligner", "intervals", *options, code=code
    )  # fmt: skip


def test_align_keeps_times_and_phones(corpus: Path) -> None:
    output = align(corpus, "early")
    assert output.count("3 computed, 0 present, 0 failed") == 2
    cache = open_cache(corpus / "cache")
    assert [word.label for word in read(cache["alignment"], "u000").words] == ["this", "is", "sentence", "number"]
    assert cache["phones"]["u000"].shape == (1, 51, 1)
    assert align(corpus, "early").count("0 computed, 3 present") == 2


def test_align_says_what_failed_and_exits_with_3(corpus: Path) -> None:
    (corpus / "early" / "u001.json").unlink()
    output = align(corpus, "early", code=3)
    assert "failed: 'u001': " in output
    assert sorted(open_cache(corpus / "cache")["phones"].ids) == ["u000", "u002"]


def test_an_inventory_and_a_shift_can_be_chosen(corpus: Path) -> None:
    call(
        "align", corpus / "m.jsonl", "--cache", corpus / "cache", "--aligner", "intervals",
        "--set", f"folder={corpus / 'early'}", "--inventory", "occurring", "--frame-shift-ms", "10",
    )  # fmt: skip
    stream = open_cache(corpus / "cache")["phones"]
    assert stream["u000"].shape == (1, 101, 1)
    assert stream.spec.settings["inventory"][:3] == ["SIL", "UNK", "AH"]


def test_an_alignment_alone_can_be_asked_for(corpus: Path) -> None:
    call(
        "align", corpus / "m.jsonl", "--cache", corpus / "cache", "--aligner", "intervals", "--no-phones",
        "--set", f"folder={corpus / 'early'}",
    )  # fmt: skip
    assert [name.partition("-")[0] for name in open_cache(corpus / "cache")] == ["alignment"]


def test_a_preset_can_align_before_it_derives(corpus: Path) -> None:
    preset = corpus / "p.yaml"
    settings = {"aligner": "intervals", "settings": {"folder": str(corpus / "early"), "symbols": "english"}}
    preset.write_text(json.dumps({"extract": {"streams": {"phones": {}, "alignment": settings, "log_mel": {}}}}))
    arguments = ("extract", corpus / "m.jsonl", "--cache", corpus / "cache", "--preset", preset)
    planned = call(*arguments, "--dry-run")
    assert "phones is made of alignment-" in planned
    call(*arguments)
    cache = open_cache(corpus / "cache")
    assert cache["phones"]["u002"].shape[1] == cache["log_mel"]["u002"].shape[1]
    assert "phones-" in call(*arguments, "--dry-run")


def test_symbols_that_do_not_fit_are_refused_before_anything_is_aligned(corpus: Path) -> None:
    error = refused(
        "align", corpus / "m.jsonl", "--cache", corpus / "cache", "--aligner", "intervals",
        "--set", f"folder={corpus / 'early'}",
    )  # fmt: skip
    assert isinstance(error, ConfigError)
    assert "--inventory occurring" in str(error)
    assert not (corpus / "cache").exists()


def test_a_dry_run_lets_phones_wait_for_an_alignment_to_be_renewed(corpus: Path) -> None:
    align(corpus, "early")
    (corpus / "early" / "u001.json").write_text((corpus / "late" / "u001.json").read_text())
    settings = f"alignment.settings={{folder: {corpus / 'early'}, symbols: english}}"
    planned = call(
        "extract", corpus / "m.jsonl", "--cache", corpus / "cache", "--stream", "alignment", "--stream", "phones",
        "--set", "alignment.aligner=intervals", "--set", settings, "--dry-run",
    )  # fmt: skip
    assert "which is to be computed first" in planned
    assert "its alignment changed" in planned


def test_align_score_measures_the_distance(corpus: Path) -> None:
    align(corpus, "early")
    align(corpus, "late", silence="x")
    early, late = sorted(
        (name for name in open_cache(corpus / "cache") if name.startswith("alignment-")),
        key=lambda name: read(open_cache(corpus / "cache")[name], "u000").phones[0].start_s,
    )
    out = corpus / "score"
    output = call("align-score", early, late, "--cache", corpus / "cache", "--out", out)
    assert "3 utterances in both" in output
    measured = json.loads((out / "score.json").read_text())
    assert measured["phones"]["median_ms"] == pytest.approx(10, abs=1e-3)
    assert measured["phones"]["mean_ms"] == pytest.approx(10, abs=1e-3)
    assert (out / "utterances.csv").read_text().count("\n") == 4


def test_align_score_of_one_name_for_two_is_refused(corpus: Path) -> None:
    align(corpus, "early")
    align(corpus, "late", silence="x")
    error = refused("align-score", "intervals", "intervals", "--cache", corpus / "cache")
    assert isinstance(error, CacheError)
    assert "could be any of several" in str(error)


def test_keep_writes_those_that_meet_every_condition(corpus: Path) -> None:
    align(corpus, "early")
    (corpus / "early" / "u002.json").unlink()
    out = corpus / "kept.jsonl"
    arguments = ("keep", corpus / "m.jsonl", "--cache", corpus / "cache", "--out", out)
    output = call(*arguments, "--where", "duration_s>=0.9")
    assert "2 of 3 utterances kept" in output
    assert list(Manifest.read(out).ids) == ["u000", "u002"]
    call(*arguments, "--where", "duration_s >= 0.9", "--where", "duration_s<1.1")
    assert list(Manifest.read(out).ids) == ["u000"]
    for condition, kind, told in (
        ("snr>3", UnknownNameError, "Known: duration_s"),
        ("duration_s is long", ConfigError, "takes NAME>=NUMBER"),
        ("duration_s>=.", ConfigError, "takes NAME>=NUMBER"),
        ("duration_s>=-5.0.0", ConfigError, "takes NAME>=NUMBER"),
        ("duration_s>9", ConfigError, "No utterance is left"),
    ):
        error = refused(*arguments, "--where", condition)
        assert isinstance(error, kind)
        assert told in str(error)
    assert list(Manifest.read(out).ids) == ["u000"]


def test_show_draws_an_utterance(corpus: Path) -> None:
    align(corpus, "early")
    out = corpus / "u000.png"
    call("show", "u000", "--manifest", corpus / "m.jsonl", "--cache", corpus / "cache", "--out", out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_doctor_knows_this_machine() -> None:
    output = call("doctor")
    for name in ("torch", "pocketsphinx", "mfa"):
        assert name in output


def test_words_of_another_language_are_warned_of(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [2.0, 2.5])
    german = [replace(one, text="der lappen liegt auf dem eisschrank") for one in manifest]
    Manifest(german, folder=tmp_path).write(tmp_path / "m.jsonl")
    limits = ("worst_phone_fit_nats=-100", "worst_silence_fit_nats=-100", "unknown_word=mark")
    output = call(
        "align", tmp_path / "m.jsonl", "--cache", tmp_path / "cache", "--workers", "1",
        *(f"--set={setting}" for setting in limits),
    )  # fmt: skip
    assert "WARNING: in half of the utterances" in output
    assert "words were not in the dictionary" in output
