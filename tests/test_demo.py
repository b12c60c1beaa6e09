"""The demo corpus: bytes that repeat, truth that is true, and emotions that show without deciding."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from featcache import demo_speakers, espeak, registry, settings
from featcache.corpora.demo import Demo
from featcache.corpus import EMOTIONS, Corpus
from featcache.demo_sentences import CARRIERS, EMOTIONAL
from featcache.errors import ConfigError, CorpusError, MissingExtraError
from featcache.manifest import Manifest, Utterance

pytest.importorskip("espeakng_loader")

SAMPLE_RATE_HZ = 16000
NUM_EACH = 3
LABELS = {"angry", "happy", "neutral", "sad"}
GENERATE = "import sys; from featcache.corpora.demo import Demo; Demo(int(sys.argv[2])).manifest(sys.argv[1])"

GENERATE_AND_DIE = """
import os, pathlib, sys
from featcache.corpora.demo import Demo

rename, left = pathlib.Path.replace, int(sys.argv[2])

def replace(path, target):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    return rename(path, target)

pathlib.Path.replace = replace
Demo(1).manifest(sys.argv[1])
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    Demo(NUM_EACH).manifest(folder)
    return folder


@pytest.fixture(scope="module")
def manifest(root: Path) -> Manifest:
    return Demo(NUM_EACH).manifest(root)


def _tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _truth(manifest: Manifest, utterance: Utterance) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads((manifest.folder / utterance.extra["phones"]).read_text(encoding="utf-8"))
    return truth


def _samples(manifest: Manifest, utterance: Utterance) -> np.ndarray:
    samples, rate = soundfile.read(manifest.audio_path(utterance))
    assert rate == SAMPLE_RATE_HZ
    return samples


def _level_db(samples: np.ndarray) -> float:
    return 10 * np.log10(np.mean(samples**2) + 1e-12)


def _pauses(truth: dict[str, Any]) -> list[tuple[float, float]]:
    """Stretches of silence as (start_s, end_s), adjacent pause phones as one."""
    merged: list[tuple[float, float]] = []
    for start_s, end_s, label in truth["phones"]:
        if not label.startswith(espeak.PAUSE):
            continue
        if merged and merged[-1][1] == start_s:
            start_s = merged.pop()[0]
        merged.append((start_s, end_s))
    return merged


def test_another_process_generates_the_same_bytes(root: Path, tmp_path: Path):
    # glibc fills fresh memory with a pattern: a voice that reads unwritten memory would show here.
    environment = {**os.environ, "MALLOC_PERTURB_": "170", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", GENERATE, str(tmp_path / "corpus"), str(NUM_EACH)]
    subprocess.run(command, check=True, env=environment)
    assert _tree(tmp_path / "corpus") == _tree(root)


def test_a_smaller_corpus_is_contained_in_a_larger_one(root: Path, tmp_path: Path):
    Demo(1).manifest(tmp_path)
    small, large = _tree(tmp_path), _tree(root)
    assert set(small) < set(large)
    assert all(content == large[name] for name, content in small.items())


def test_another_seed_gives_other_recordings(root: Path, tmp_path: Path):
    Demo(1, seed=1).manifest(tmp_path)
    other, ours = _tree(tmp_path), _tree(root)
    recordings = [name for name in other if name.endswith(".wav")]
    assert len(recordings) == 40
    assert all(other[name] != ours[name] for name in recordings)


@pytest.mark.parametrize("files", [0, 2, 3, 30], ids=["stamp", "recording", "truth", "later"])
def test_a_killed_generation_is_completed_by_the_next(root: Path, tmp_path: Path, files: int):
    folder = tmp_path / "corpus"
    process = subprocess.run([sys.executable, "-c", GENERATE_AND_DIE, str(folder), str(files)], check=False)
    assert process.returncode == 9
    assert len(_tree(folder)) == files
    assert list(folder.rglob(".tmp-*"))
    Demo(1).manifest(folder)
    assert _tree(folder) == {name: content for name, content in _tree(root).items() if not re.search("demo0[^1]", name)}


def test_only_damaged_and_missing_utterances_are_spoken_again(tmp_path: Path):
    manifest = Demo(1).manifest(tmp_path)
    before = _tree(tmp_path)
    cut, lost, unreadable, kept = (manifest[index] for index in range(4))
    manifest.audio_path(cut).write_bytes(manifest.audio_path(cut).read_bytes()[:1000])
    (tmp_path / lost.extra["phones"]).unlink()
    (tmp_path / unreadable.extra["phones"]).write_bytes(b'{"num_samples": 12')
    written = manifest.audio_path(kept).stat().st_mtime_ns
    Demo(1).manifest(tmp_path)
    assert _tree(tmp_path) == before
    assert manifest.audio_path(kept).stat().st_mtime_ns == written


def test_a_complete_corpus_is_read_without_the_engine(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert len(Demo(NUM_EACH).manifest(root)) == 40 * NUM_EACH


def test_generating_without_the_engine_names_the_extra_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"featcache\[demo\]"):
        Demo(1).manifest(tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CorpusError, match="not of the demo corpus"):
        Demo(1).manifest(tmp_path)
    assert _tree(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("number", [NUM_EACH, NUM_EACH + 1])
def test_a_corpus_of_another_seed_is_not_mixed_in(root: Path, number: int):
    before = _tree(root)
    with pytest.raises(CorpusError, match="made with seed 0, not 5"):
        Demo(number, seed=5).manifest(root)
    assert _tree(root) == before


def test_a_corpus_of_another_engine_is_not_mixed_in(tmp_path: Path):
    Demo(1).manifest(tmp_path)
    stamp = tmp_path / "demo.json"
    stamp.write_text(re.sub(r"espeak-ng [\d.]+", "espeak-ng 9.9", stamp.read_text()))
    assert len(Demo(1).manifest(tmp_path)) == 40
    with pytest.raises(CorpusError, match=r"espeak-ng 9\.9"):
        Demo(2).manifest(tmp_path)


def test_a_root_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match="cannot be made"):
        Demo(1).manifest(tmp_path / "file")


def test_a_damaged_stamp_is_refused(tmp_path: Path):
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(CorpusError, match="missing or damaged"):
        Demo(1).manifest(tmp_path)


def test_settings_are_checked_by_name_and_range():
    demo = registry.load("featcache.corpora", "demo", Corpus)
    assert settings.build(demo, {"utterances_per_emotion": "2"}, "corpus demo") == Demo(2)
    with pytest.raises(ConfigError, match="utterances_per_emotion of 1 or more"):
        settings.build(demo, {"utterances_per_emotion": 0}, "corpus demo")


def test_every_session_has_both_speakers_with_every_emotion(manifest: Manifest):
    counts = Counter((item.session, item.speaker, item.label) for item in manifest)
    assert len(counts) == 5 * 2 * 4
    assert set(counts.values()) == {NUM_EACH}
    assert {item.label for item in manifest} == LABELS <= set(EMOTIONS)
    speakers = defaultdict(set)
    for item in manifest:
        speakers[item.session].add((item.speaker, item.extra["gender"]))
    assert sorted(speakers) == ["Ses01", "Ses02", "Ses03", "Ses04", "Ses05"]
    for session, found in speakers.items():
        assert found == {(f"{session}F", "female"), (f"{session}M", "male")}


def test_rows_look_like_iemocap_and_say_that_they_are_synthetic(root: Path, manifest: Manifest):
    for item in manifest:
        assert re.fullmatch(r"Ses0[1-5][FM]_demo\d\d_[FM]\d{3}", item.id)
        assert item.id.startswith(str(item.speaker))
        assert item.extra["synthetic"] is True
        assert item.extra["corpus_label"] == str(item.label)[:3]
        assert manifest.audio_path(item).is_file()
    assert "never report results on it as results on human speech" in (root / "README.txt").read_text()


def test_the_manifest_survives_its_file(manifest: Manifest, root: Path):
    manifest.write(root / "manifest.jsonl")
    try:
        assert list(Manifest.read(root / "manifest.jsonl", root=root)) == list(manifest)
    finally:
        (root / "manifest.jsonl").unlink()


def test_phones_tile_the_recording_and_words_lie_on_them(manifest: Manifest):
    for item in manifest:
        truth, samples = _truth(manifest, item), _samples(manifest, item)
        phones, words = truth["phones"], truth["words"]
        assert truth["num_samples"] == len(samples)
        assert phones[0][0] == 0.0
        assert phones[-1][1] == len(samples) / SAMPLE_RATE_HZ
        assert all(left[1] == right[0] for left, right in pairwise(phones))
        assert all(start_s < end_s for start_s, end_s, _ in phones + words)
        assert all(left[1] <= right[0] for left, right in pairwise(words))
        spoken = [phone for phone in phones if not phone[2].startswith(espeak.PAUSE)]
        assert {word[0] for word in words} <= {phone[0] for phone in spoken}
        assert {word[1] for word in words} <= {phone[1] for phone in spoken}
        assert (words[0][0], words[-1][1]) == (spoken[0][0], spoken[-1][1])


def test_the_words_of_the_truth_spell_the_text(manifest: Manifest):
    for item in manifest:
        truth = _truth(manifest, item)
        assert truth["text"] == item.text
        assert " ".join(word for _, _, word in truth["words"]) == re.sub(r"[.,!?]", "", str(item.text))


def test_recordings_last_as_long_as_turns_of_a_dialogue_and_never_clip(manifest: Manifest):
    for item in manifest:
        samples = _samples(manifest, item)
        assert 1.5 <= len(samples) / SAMPLE_RATE_HZ <= 4.5
        assert 0.05 < np.abs(samples).max() < 0.99


def test_silence_is_faint_noise_and_never_digital_zero(manifest: Manifest):
    margin = round(0.003 * SAMPLE_RATE_HZ)  # the resampler rings for a few milliseconds
    for item in manifest:
        samples = _samples(manifest, item)
        for start_s, end_s in _pauses(_truth(manifest, item)):
            pause = samples[round(start_s * SAMPLE_RATE_HZ) + margin : round(end_s * SAMPLE_RATE_HZ) - margin]
            assert -68 < _level_db(pause) < -64


def test_truth_that_is_20_ms_off_would_put_speech_into_the_pauses(manifest: Manifest):
    margin_s = 0.003
    excess_db: dict[float, list[float]] = {-0.02: [], 0.0: [], 0.02: []}
    for item in manifest:
        samples = _samples(manifest, item)
        for start_s, end_s in _pauses(_truth(manifest, item)):
            for shift_s, found in excess_db.items():
                start = max(0, round((start_s + margin_s + shift_s) * SAMPLE_RATE_HZ))
                stop = round((end_s - margin_s + shift_s) * SAMPLE_RATE_HZ)
                found.append(_level_db(samples[start:stop]) + 66)
    assert np.median(excess_db[0.0]) < 1
    # Late truth meets the onsets after leads and pauses inside; early truth the endings before pauses.
    assert np.percentile(excess_db[0.02], 75) > 6
    assert np.percentile(excess_db[-0.02], 75) > 6


def test_nearly_all_of_the_energy_lies_in_words(manifest: Manifest):
    for item in manifest:
        samples = _samples(manifest, item)
        spoken = sum(
            float(np.sum(samples[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)] ** 2))
            for start_s, end_s, _ in _truth(manifest, item)["words"]
        )
        assert spoken > 0.99 * np.sum(samples**2)


def test_manners_order_loudness_rate_and_brightness_as_in_human_speech(manifest: Manifest):
    level_db, phones_a_second, slope = defaultdict(list), defaultdict(list), defaultdict(list)
    for item in manifest:
        truth, samples = _truth(manifest, item), _samples(manifest, item)
        spoken = [phone for phone in truth["phones"] if not phone[2].startswith(espeak.PAUSE)]
        level_db[item.label].append(_level_db(samples))
        phones_a_second[item.label].append(len(spoken) / sum(end_s - start_s for start_s, end_s, _ in spoken))
        slope[item.label].append(np.mean(samples[1:] * samples[:-1]) / np.mean(samples**2))
    for quality in (level_db, phones_a_second):
        assert np.mean(quality["angry"]) > np.mean(quality["neutral"]) > np.mean(quality["sad"])
    assert np.mean(slope["angry"]) < np.mean(slope["neutral"]) < np.mean(slope["sad"])
    # The manners overlap: loudness alone does not tell the emotion of an utterance.
    assert min(level_db["angry"]) < max(level_db["neutral"])
    assert min(level_db["neutral"]) < max(level_db["sad"])


def test_ten_speakers_have_ten_voices():
    voices = [speaker.voice for speaker in demo_speakers.SPEAKERS]
    assert len(set(voices)) == 10
    assert len({voice.partition("+")[2] for voice in voices}) == 10


def test_text_tells_the_emotion_of_three_utterances_in_five():
    lines = list(Demo(10)._lines())
    is_carrier = [line.text in CARRIERS for line in lines]
    assert np.mean(is_carrier) == pytest.approx(0.4)
    for label in LABELS:
        assert np.mean([line.text in CARRIERS for line in lines if line.label == label]) == pytest.approx(0.4)


def test_sessions_share_carriers_and_no_other_sentence():
    sessions = defaultdict(set)
    for line in Demo(10)._lines():
        if line.text not in CARRIERS:
            sessions[line.text].add(line.speaker.session)
            assert line.text in EMOTIONAL[line.label][line.speaker.session - 1]
    assert all(len(found) == 1 for found in sessions.values())


def test_every_sentence_is_written_once():
    written = [text for groups in EMOTIONAL.values() for group in groups for text in group] + list(CARRIERS)
    assert len(written) == len(set(written)) == 4 * 5 * 6 + 20
