"""Laws of the pocketsphinx aligner, and its named failures."""

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache import registry, sphinx
from featcache.aligner import Aligner
from featcache.aligners import pocketsphinx as plugin
from featcache.aligners.pocketsphinx import Pocketsphinx
from featcache.alignment import UNKNOWN, Alignment, checked
from featcache.audio import decode
from featcache.corpus import Corpus
from featcache.errors import ConfigError, StreamError
from featcache.extract import Options, extract
from featcache.settings import build
from featcache.stream import Speech
from featcache.streams.alignment import AlignmentStream

KIDS, DOGS = "Kids are talking by the door.", "Dogs are sitting by the door."
Answer = Callable[[tuple[np.ndarray, str]], Alignment | StreamError]
ORIGINAL = sphinx.start
LIBRIVOX = "alignment/librivox/sense_and_sensibility_01_austen_64kb-{}"


def speech(path: Path, text: str, **changes: object) -> Speech:
    recording = decode(path)
    return replace(Speech(path.stem, None, recording.at_rate(16000), 16000, text), **changes)


def reader(shared_data: Path, number: str = "0880") -> Speech:
    stem = shared_data / LIBRIVOX.format(number)
    return speech(stem.with_suffix(".wav"), stem.with_suffix(".txt").read_text())


def run(batch: list[Speech], workers: int = 1, **settings: object) -> list[Alignment | StreamError]:
    session = Pocketsphinx(**settings).session(workers, Path("unused"))
    try:
        return list(session.align(batch))
    finally:
        session.close()


def good(batch: list[Speech], **settings: object) -> list[Alignment]:
    found = run(batch, **settings)
    assert not [item for item in found if isinstance(item, StreamError)]
    return found


def labels(alignment: Alignment) -> tuple[str, str]:
    return " ".join(word.label for word in alignment.words), " ".join(phone.label for phone in alignment.phones)


def refusal(outcome: Alignment | StreamError) -> str:
    assert isinstance(outcome, StreamError)
    return str(outcome)


def test_it_is_found_by_name_and_its_settings_are_checked():
    assert registry.load("featcache.aligners", "pocketsphinx", Aligner) is Pocketsphinx
    assert Pocketsphinx.name() == "pocketsphinx"
    assert build(Pocketsphinx, {"worst_phone_fit_nats": "-9"}, "aligner").worst_phone_fit_nats == -9.0
    with pytest.raises(ConfigError, match="unknown_word"):
        build(Pocketsphinx, {"unknown_word": "skip"}, "aligner")


def test_librivox_agrees_with_the_phones_of_pocketsphinxs_authors(shared_data: Path):
    batch = [reader(shared_data, number) for number in ("0870", "0880", "0890", "0920", "0930")]
    for item, alignment in zip(batch, good(batch), strict=True):
        path = shared_data / "alignment" / "librivox" / f"{item.id}.phone.json"
        truth = [(phone["b"], phone["b"] + phone["d"], phone["t"])
                 for word in json.loads(path.read_text())["w"] for phone in word["w"]]  # fmt: skip
        middles = np.arange(0.01, item.duration_s, 0.02)
        ours, theirs = (
            [next((label for start, end, label in intervals if start <= middle < end), "SIL") for middle in middles]
            for intervals in (alignment.phones, truth)
        )
        assert np.mean([a == b for a, b in zip(ours, theirs, strict=True)]) >= 0.97
        assert checked(alignment, item.duration_s) == alignment
        assert tuple(alignment.quality) == Pocketsphinx().quality_names
        assert alignment.quality["phone_fit_nats"] > -4
        assert alignment.quality["unknown_share"] == 0
        for word in alignment.words:
            inside = [p for p in alignment.phones if word.start_s <= p.start_s and p.end_s <= word.end_s]
            assert (inside[0].start_s, inside[-1].end_s) == (word.start_s, word.end_s)


def test_shouted_and_whispered_speech_is_aligned_and_other_texts_are_refused(shared_data: Path):
    paths = sorted((shared_data / "ravdess").glob("*/*.wav"))[::40]
    texts = [KIDS if path.stem.split("-")[4] == "01" else DOGS for path in paths]
    good([speech(path, text) for path, text in zip(paths, texts, strict=True)])
    wrong = "He was not an ill disposed young man, unless to be rather cold hearted is to be ill disposed."
    for outcome in run([speech(path, wrong) for path in paths[:3]]):
        assert re.search(r"phone_fit_nats is -[\d.]+, and the least allowed is -9 \(0 is best\)", refusal(outcome))
        assert re.search(r"rushed_share is 0\.\d+, unknown_share is 0", refusal(outcome))
        assert "set worst_phone_fit_nats lower" in refusal(outcome)


def test_white_noise_is_refused() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 48000).astype(np.float32)
    assert "phone_fit_nats is" in refusal(run([Speech("noise", None, noise, 16000, KIDS)])[0])


def test_a_text_that_lacks_what_is_said_is_refused(shared_data: Path):
    item = reader(shared_data, "0870")
    assert "silence_fit_nats" in refusal(run([replace(item, text="and mister")], worst_phone_fit_nats=-99)[0])


def test_results_depend_on_the_utterance_alone(shared_data: Path):
    batch = [reader(shared_data, number) for number in ("0880", "0930")]
    batch += [replace(batch[0], text="He was not a grobbly [NOISE] young man"), replace(batch[1], text="")]
    batch += [replace(batch[0], text="He was not an ill gribbly young man")]
    loose = {"worst_phone_fit_nats": -99.0, "worst_silence_fit_nats": -99.0}
    alone = [run([item], **loose)[0] for item in batch]

    def same(found: list[Alignment | StreamError], expected: list[Alignment | StreamError]) -> bool:
        return [repr(item) for item in found] == [repr(item) for item in expected]

    assert same(run(batch, **loose), alone)
    assert same(run(batch[::-1], **loose), alone[::-1])
    assert same(run([*batch, *batch], workers=2, **loose), [*alone, *alone])


def test_words_outside_the_dictionary_are_guessed_or_marked(shared_data: Path):
    item = replace(reader(shared_data), text="He was not an illdispozed young man")
    pytest.importorskip("espeakng_loader")
    (guessed,) = good([item])
    assert guessed.unknown_words == ("illdispozed",)
    assert guessed.quality["unknown_share"] == pytest.approx(1 / 7)
    assert "D IH S P OW Z D Y" in labels(guessed)[1]
    (marked,) = good([item], unknown_word="mark", worst_phone_fit_nats=-99.0, worst_silence_fit_nats=-99.0)
    assert marked.unknown_words == ("illdispozed",)
    spoken = next(word for word in marked.words if word.label == "illdispozed")
    assert [p for p in marked.phones if p.start_s == spoken.start_s] == [spoken._replace(label=UNKNOWN)]


def test_a_missing_espeak_marks_and_is_part_of_the_identity(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(sphinx, "start", lacking_espeak)
    item = replace(reader(shared_data), text="He was not an illdispozed young man")
    (alignment,) = good([item], worst_phone_fit_nats=-99.0, worst_silence_fit_nats=-99.0)
    assert UNKNOWN in labels(alignment)[1].split()
    assert Pocketsphinx().identity().libraries["espeak-ng"] == "not installed"


def lacking_espeak(settings: sphinx.Settings) -> Answer:
    sys.modules["espeakng_loader"] = None  # type: ignore[assignment]
    return ORIGINAL(settings)


def test_events_are_words_and_phones_of_their_own(shared_data: Path):
    item = reader(shared_data)
    noise = np.random.default_rng(0).normal(0, 0.02, 16000).astype(np.float32)
    item = replace(item, samples=np.concatenate([noise, item.samples]), text="(laughs) he was not an ill disposed man")
    (alignment,) = good([item], worst_silence_fit_nats=-99.0)
    assert alignment.words[0].label == alignment.phones[0].label == "[LAUGHTER]"
    assert alignment.words[0] == alignment.phones[0]
    assert alignment.unknown_words == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": ""}, "its text '' has no word"),
        ({"text": "12 (?!) 日本" * 40}, "too short for its text: [0-9]+ phones of at least 30 ms"),
        ({"samples": np.zeros(0, np.float32)}, "too short for its text"),
        ({"samples": np.zeros(300, np.float32), "text": "a"}, "too short for its text|cannot align"),
        ({"samples": np.full(16000, np.nan, np.float32)}, "not finite"),
        ({"sample_rate_hz": 8000}, "at 8000 Hz where 16000"),
        ({"samples": np.zeros(1920001, np.float32)}, "lasts 120.0 s.* longest allowed is 120 s.*by start_s and end_s"),
    ],
)
def test_failures_are_named_and_cost_nobody_else(shared_data: Path, changes: dict[str, object], message: str):
    item = reader(shared_data)
    before, failed, after = run([item, replace(item, **changes), item])
    assert isinstance(failed, StreamError)
    assert re.search(message, str(failed))
    assert isinstance(before, Alignment)
    assert before == after


@pytest.mark.heavy
def test_emotional_speech_is_aligned_whole(shared_data: Path, tmp_path: Path):
    """All of RAVDESS's six actors: at least 99 %, shouting and all, through the command's own engine."""
    manifest = registry.load("featcache.corpora", "ravdess", Corpus)().manifest(shared_data / "ravdess")
    summary = extract(manifest, tmp_path, AlignmentStream("pocketsphinx"), Options(device="cpu"))
    assert len(manifest) == 360
    assert len(summary.computed) >= 0.99 * len(manifest), summary.failures


def test_audio_just_long_enough_or_silent_is_aligned_or_refused_but_never_crashes(shared_data: Path):
    item = reader(shared_data)
    cut = [replace(item, samples=item.samples[:length], text="he was not") for length in range(3500, 5000, 100)]
    silent = [replace(item, samples=np.zeros(16000, np.float32))]
    clipped = [replace(item, samples=item.samples * 50)]
    for source, outcome in zip(cut + silent + clipped, run(cut + silent + clipped), strict=True):
        if isinstance(outcome, Alignment):
            assert checked(outcome, source.duration_s) == outcome
            assert all(isinstance(value, float) and not math.isinf(value) for value in outcome.quality.values())


def test_samples_are_rounded_and_clipped():
    rounded = plugin._pcm(np.array([0, 1.5, -1.5, 1 / 32768, 0.6 / 32768], np.float32))
    assert rounded.tolist() == [0, 32767, -32768, 1, 1]


def test_an_own_dictionary_adds_and_replaces_and_is_identity_by_content(shared_data: Path, tmp_path: Path):
    first, second = tmp_path / "a.dict", tmp_path / "b" / "other.dict"
    first.write_text(";;; mine\nILLDISPOZED IH1 L D IH0 S P OW1 Z D\nyoung  Y AH NG\nyoung(2)  Y UH NG\n")
    second.parent.mkdir()
    shutil.copy(first, second)
    identity = Pocketsphinx(dictionary=str(first)).identity()
    assert identity == Pocketsphinx(dictionary=str(second)).identity()
    assert identity != Pocketsphinx().identity()
    assert "dictionary" in identity.left_out
    item = replace(reader(shared_data), text="He was not an illdispozed young man")
    (alignment,) = good([item], dictionary=str(first))
    assert alignment.unknown_words == ()
    assert "IH L D IH S P OW Z D" in labels(alignment)[1]


@pytest.mark.parametrize(
    ("content", "message"), [("word\n", "Line 1 of the dictionary .* is 'word'"), ("wrd W QX D\n", "lacks one of")]
)
def test_a_dictionary_that_does_not_fit_is_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "my.dict"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        Pocketsphinx(dictionary=str(path)).session(1, tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Pocketsphinx(dictionary=str(tmp_path / "none.dict")).identity()


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="has no file 'mdef'"):
        Pocketsphinx(model=str(tmp_path)).identity()
    with pytest.raises(ConfigError, match="cannot load the acoustic model"):
        Pocketsphinx(model=str(tmp_path)).session(1, tmp_path)


def test_a_model_is_identity_by_content(tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(sphinx.model_folder(None), copy)
    ours = Pocketsphinx().identity()
    assert Pocketsphinx(model=str(copy)).identity() == ours
    assert Pocketsphinx(model=str(sphinx.model_folder(None))).identity() == ours
    (copy / "feat.params").write_text("-lowerf 100\n")
    assert Pocketsphinx(model=str(copy)).identity().checkpoint["name"] == "another"


def test_a_longer_limit_computes_nothing_anew():
    assert "longest_s" in Pocketsphinx(longest_s=300).identity().left_out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_costs_only_its_utterance(shared_data: Path, monkeypatch: pytest.MonkeyPatch, workers: int):
    item = reader(shared_data)
    (fine,) = good([item])
    monkeypatch.setattr(sphinx, "start", dying_of_poison)
    outcomes = run([item, replace(item, text="poison"), item], workers)
    assert outcomes[0] == outcomes[2] == fine
    assert "the process that aligned it was ended by SIGKILL, twice. Is there enough memory" in refusal(outcomes[1])


def dying_of_poison(settings: sphinx.Settings) -> Answer:
    align = ORIGINAL(settings)

    def answer(request: tuple[np.ndarray, str]) -> Alignment | StreamError:
        if request[1] == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return align(request)

    return answer


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_lack_of_memory_inside_the_library_is_a_failure_of_its_utterance(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
):
    item = reader(shared_data)
    long = replace(item, samples=np.tile(item.samples, 10), text=item.text * 10)
    monkeypatch.setattr(sphinx, "start", starving)
    before, failed, after = run([item, long, item])
    assert isinstance(before, Alignment)
    assert before == after
    assert "the process that aligned it ended with exit code" in refusal(failed)
    assert "alloc" in refusal(failed)


def starving(settings: sphinx.Settings) -> Answer:
    align = ORIGINAL(settings)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 32 * 2**20,) * 2)
    return align


SCRIPT = """
print("top level")
from pathlib import Path
from featcache.aligners.pocketsphinx import Pocketsphinx
from featcache.audio import decode
from featcache.stream import Speech

samples = decode(Path({path!r})).at_rate(16000)
session = Pocketsphinx().session(2, Path("unused"))
found = session.align([Speech(str(number), None, samples, 16000, {text!r}) for number in range(3)])
session.close()
print(*(type(item).__name__ for item in found))
"""


@pytest.mark.parametrize("piped", [False, True])
def test_a_script_needs_no_guard(shared_data: Path, tmp_path: Path, piped: bool):
    path = shared_data / LIBRIVOX.format("0880.wav")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=str(path), text=reader(shared_data).text))
    command = [sys.executable, "-" if piped else str(script)]
    told = subprocess.run(
        command, input=script.read_text() if piped else "", capture_output=True, text=True, check=True
    )
    assert told.stdout == "top level\nAlignment Alignment Alignment\n"
    assert told.stderr == ""
