"""Importers of alignments made elsewhere: one contract, real files, and whatever else a file may hold."""

import csv
import json
import math
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import Manifest, Utterance, registry
from featcache.aligner import Aligner
from featcache.alignment import Alignment, Interval, checked
from featcache.alignment_files import FileAligner
from featcache.audio import decode
from featcache.corpora.emodb import EmoDb
from featcache.errors import ConfigError, StreamError
from featcache.settings import build
from featcache.stream import Speech

IMPORTERS = ("gentle", "intervals", "textgrid", "xlabel")


def words(*rows: tuple[str, float, float, str]) -> list[dict[str, Any]]:
    """Return Gentle's words: text, start, end, phones with their durations; end 0 is not found."""
    found: list[dict[str, Any]] = []
    for text, start, end, phones in rows:
        word: dict[str, Any] = {"word": text, "case": "success" if end else "not-found-in-audio"}
        if end:
            pairs = [phone.split(":") for phone in phones.split()]
            listed = [{"phone": phone, "duration": float(duration)} for phone, duration in pairs]
            word |= {"alignedWord": text.lower(), "start": start, "end": end, "phones": listed}
        found.append(word)
    return found


def gentle(transcript: str, *rows: tuple[str, float, float, str]) -> bytes:
    listed, place = words(*rows), 0
    for word in listed:
        word["startOffset"] = transcript.index(str(word["word"]), place)
        place = word["endOffset"] = word["startOffset"] + len(str(word["word"]))
    return json.dumps({"transcript": transcript, "words": listed}).encode()


def textgrid(end_s: float = 1.0, tier: str = "phones", label: str = "AH0", word: str = "a") -> bytes:
    tiers = "".join(
        f'"IntervalTier"\n"{name}"\n0\n{end_s}\n3\n0\n0.25\n""\n0.25\n0.5\n"{text}"\n0.5\n{end_s}\n"sil"\n'
        for name, text in (("words", word), (tier, label))
    )
    return f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n{end_s}\n<exists>\n2\n{tiers}'.encode()


CONTENT = {
    "gentle": gentle("Go on", ("Go", 0.1, 0.3, "g_B:0.08 ow_E:0.12"), ("on", 0.4, 0.6, "aa_B:0.1 n_E:0.1")),
    "intervals": b"tier,start_s,end_s,label\nwords,0.1,0.4,go\nphones,0.1,0.2,g\nphones,0.2,0.4,ow\nphones,0.4,1,sil\n",
    "textgrid": textgrid(),
    "xlabel": b"signal x\nseparator ;\nnfields 1\n#\n 0.1 -1 _t\n 0.15 -1 !t\t+asp\n 0.2 -1 a\t\t2\n 0.4 -1 .\n",
}
ENDINGS = {"gentle": ".json", "intervals": ".csv", "textgrid": ".TextGrid", "xlabel": ".lablaut"}


def make(name: str, **chosen: object) -> FileAligner:
    aligner = build(registry.load("featcache.aligners", name, Aligner), chosen, f"aligner {name}")
    assert isinstance(aligner, FileAligner)
    return aligner


def read(
    folder: Path, name: str, content: bytes, duration_s: float = 1.0, text: str = "", **chosen: object
) -> Alignment | StreamError:
    """Return what an importer makes of a file, checked as the stream does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"u1{ENDINGS[name]}").write_bytes(content)
    one = Utterance("u1", audio="u1.wav", speaker="s1", text=text)
    aligner = make(name, folder=str(folder), **chosen).bind(Manifest([one], folder=folder))
    speech = Speech("u1", "s1", np.zeros(round(16000 * duration_s), np.float32), 16000, text)
    return run(aligner, one, speech)


def run(aligner: FileAligner, utterance: Utterance, speech: Speech) -> Alignment | StreamError:
    try:
        file = aligner.attachment(utterance).value
    except StreamError as error:
        return error
    (outcome,) = aligner.session(1, Path("logs")).align([Speech(**{**vars(speech), "attachment": file})])
    if isinstance(outcome, StreamError):
        return outcome
    assert set(outcome.quality) == set(aligner.quality_names)
    try:
        return checked(outcome, speech.duration_s)
    except StreamError as error:
        return error


def good(outcome: Alignment | StreamError) -> Alignment:
    assert isinstance(outcome, Alignment), outcome
    return outcome


def said(intervals: tuple[Interval, ...]) -> list[tuple[float, float, str]]:
    return [(round(start, 4), round(end, 4), label) for start, end, label in intervals]


# One contract, every importer.


@pytest.mark.parametrize("name", IMPORTERS)
def test_an_importer_reads_its_file(tmp_path: Path, name: str) -> None:
    alignment = good(read(tmp_path, name, CONTENT[name]))
    assert alignment.phones
    assert all(0 <= start < end <= 1 for start, end, _ in alignment.phones)


@pytest.mark.parametrize("name", IMPORTERS)
def test_an_importer_needs_no_text_and_where_files_lie_is_no_part_of_it(name: str) -> None:
    aligner = make(name, folder="somewhere", column="phones")
    assert aligner.title
    assert not aligner.needs_text
    assert {"folder", "column", "endings"} <= set(aligner.identity().left_out)
    assert set(aligner.identity().left_out) <= {field.name for field in fields(aligner)}
    assert not set(aligner.identity().further) & {field.name for field in fields(aligner)}
    json.dumps(dict(aligner.identity().further))


@pytest.mark.parametrize("name", IMPORTERS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\xff\xfe\x00",
        b"{",
        b"[" * 200_000,
        b'{"words": 3, "phones": [[0, "x", 1]]}',
        b"[]",
        b"#\n",
        b"#\nx",
    ],
)
def test_what_is_no_such_file_is_an_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    outcome = read(tmp_path, name, content)
    assert isinstance(outcome, StreamError)
    assert "u1" in str(outcome)


@pytest.mark.parametrize("name", IMPORTERS)
def test_a_file_for_longer_audio_is_refused(tmp_path: Path, name: str) -> None:
    outcome = read(tmp_path, name, CONTENT[name], duration_s=0.15)
    assert isinstance(outcome, StreamError)
    assert "another recording" in str(outcome)
    assert "raise tolerance_s" in str(outcome)
    assert str(tmp_path / f"u1{ENDINGS[name]}") in str(outcome)


LATE = {
    "gentle": gentle("Go", ("Go", 0.1, 1.1, "g_B:0.5 ow_E:0.5")),
    "intervals": b"tier,start_s,end_s,label\nwords,0.1,1.1,go\nphones,0.1,0.6,g\nphones,0.6,1.1,ow\n",
    "textgrid": textgrid(1.1).replace(b'"sil"', b'"IY1"'),
    "xlabel": b"#\n 0.1 -1 g\n 0.6 -1 a\n 1.1 -1 .\n",
}


@pytest.mark.parametrize("name", IMPORTERS)
def test_what_ends_late_is_cut_to_the_audios_end_as_far_as_tolerated(tmp_path: Path, name: str) -> None:
    outcome = read(tmp_path, name, LATE[name])
    assert isinstance(outcome, StreamError)
    assert "raise tolerance_s" in str(outcome)
    assert "raise tolerance_s" in str(read(tmp_path, name, LATE[name], tolerance_s=0.09))
    alignment = good(read(tmp_path, name, LATE[name], tolerance_s=0.11))  # and passes the stream's narrower check
    assert alignment.phones[-1].end_s == 1.0
    assert len(alignment.phones) == 2
    assert all(word.end_s <= 1.0 for word in alignment.words)
    only_past = read(tmp_path, name, LATE[name], duration_s=0.05, tolerance_s=2)
    assert isinstance(only_past, StreamError)
    assert f"u1{ENDINGS[name]}: its alignment has no phone" in str(only_past)


@pytest.mark.parametrize("name", IMPORTERS)
@pytest.mark.parametrize("tolerance_s", [-0.1, math.inf, math.nan])
def test_a_tolerance_that_is_none_is_refused(name: str, tolerance_s: float) -> None:
    with pytest.raises(ConfigError, match="tolerance_s must be a number of seconds, 0 or more"):
        make(name, tolerance_s=tolerance_s)


@pytest.mark.parametrize("name", ["intervals", "textgrid", "xlabel"])
def test_what_is_silence_is_part_of_the_identity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = make(name).identity().further["silent"]
    assert usual
    assert "hush" in make(name, silence="hush").identity().further["silent"]
    defaults = {"xlabel": {"emodb": ("hush",), "esps": ()}, "textgrid": frozenset({"hush"})}.get(name, ("hush",))
    monkeypatch.setattr(sys.modules[type(make(name)).__module__], "SILENCE", defaults)
    assert make(name).identity().further["silent"] == ["hush"] != usual


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", IMPORTERS)
def test_no_bytes_stop_an_importer(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    content = bytearray(CONTENT[name])
    kind = data.draw(st.sampled_from(["bytes", "change", "cut", "swap"]))
    if kind == "bytes":
        content = bytearray(data.draw(st.binary(max_size=200)))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content))) :]
    elif kind == "change":
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
    else:
        new = data.draw(
            st.sampled_from([b"NaN", b"-1", b"1e999", b"null", b'"x"', b"9" * 5000, b"Infinity", b"{}", b"\n"])
        )
        old = data.draw(st.sampled_from([b"0.1", b"0.2", b"0.25", b"1", b'"g_B"', b"phones", b"words", b"0.4"]))
        content = bytearray(bytes(content).replace(old, new, data.draw(st.integers(1, 3))))
    folder = tmp_path_factory.mktemp("fuzz", numbered=True)
    outcome = read(folder, name, bytes(content))
    assert isinstance(outcome, StreamError) or outcome.phones


# TextGrid.


def mfa(shared_data: Path) -> tuple[Path, Manifest]:
    root = shared_data / "alignment" / "mfa"
    found = sorted((root / "corpus").rglob("*.wav"))
    utterances = [
        Utterance(path.stem, audio=str(path.relative_to(root)), speaker=path.parent.name, text="") for path in found
    ]
    return root, Manifest(utterances, folder=root)


def heard(manifest: Manifest, utterance: Utterance) -> Speech:
    recording = decode(manifest.audio_path(utterance), utterance.start_s, utterance.end_s)
    return Speech(
        utterance.id, utterance.speaker, recording.samples, recording.sample_rate_hz, utterance.text or ""
    )  # fmt: skip


def test_a_real_run_of_mfa_is_imported_whole_with_its_quality(shared_data: Path) -> None:
    root, manifest = mfa(shared_data)
    aligner = make("textgrid", folder=str(root / "aligned")).bind(manifest)
    assert aligner.quality_names == (
        "overall_log_likelihood", "speech_log_likelihood", "phone_duration_deviation", "max_running_short_interval",
        "snr", "intensity_deviation",
    )  # fmt: skip
    with (root / "aligned" / "alignment_analysis.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(manifest) == 240
    for utterance in manifest:
        alignment = good(run(aligner, utterance, heard(manifest, utterance)))
        assert len(alignment.words) >= 3
        assert len(alignment.phones) > len(alignment.words)
        assert alignment.quality["snr"] == float(rows[utterance.id]["snr"])
        assert math.isnan(alignment.quality["intensity_deviation"])
        assert not alignment.unknown_words


def test_a_variant_of_mfas_output_loses_only_what_is_missing(shared_data: Path, tmp_path: Path) -> None:
    from praatio import textgrid as praatio

    root, manifest = mfa(shared_data)
    shutil.copytree(root / "aligned", tmp_path / "aligned")
    some = manifest.select(manifest.ids[:8])
    folder = tmp_path / "aligned" / str(some[0].speaker)
    (folder / f"{some[0].id}.TextGrid").unlink()
    shutil.copy(folder / f"{some[2].id}.TextGrid", folder / f"{some[1].id}.TextGrid")
    grid = praatio.openTextgrid(str(folder / f"{some[3].id}.TextGrid"), includeEmptyIntervals=True)
    grid.save(str(folder / f"{some[3].id}.TextGrid"), format="short_textgrid", includeBlankSpaces=True)
    assert "ooTextFile" in (folder / f"{some[3].id}.TextGrid").read_text()
    assert "intervals [1]" not in (folder / f"{some[3].id}.TextGrid").read_text()
    analysis = tmp_path / "aligned" / "alignment_analysis.csv"
    lines = [line for line in analysis.read_text().splitlines() if not line.startswith(f"{some[4].id},")]
    analysis.write_text("\n".join(lines) + "\n")

    aligner = make("textgrid", folder=str(tmp_path / "aligned")).bind(some)
    plain = make("textgrid", folder=str(root / "aligned")).bind(some)
    outcomes = [run(aligner, utterance, heard(some, utterance)) for utterance in some]
    assert "no file" in str(outcomes[0])
    assert "Is it for another recording?" in str(outcomes[1])
    short = good(outcomes[3])
    long = good(run(plain, some[3], heard(some, some[3])))
    assert said(short.phones) == said(long.phones)
    assert said(short.words) == said(long.words)
    assert all(math.isnan(value) for value in good(outcomes[4]).quality.values())
    assert all(isinstance(outcome, Alignment) for outcome in outcomes[2:])


def test_an_unknown_word_is_one_phone_spn_and_listed(tmp_path: Path) -> None:
    alignment = good(read(tmp_path, "textgrid", textgrid(label="spn", word="zyx")))
    assert said(alignment.phones) == [(0.25, 0.5, "spn")]
    assert alignment.unknown_words == ("zyx",)


def test_a_sound_in_brackets_is_no_word(tmp_path: Path) -> None:
    alignment = good(read(tmp_path, "textgrid", textgrid(label="spn", word="[laughter]")))
    assert said(alignment.words) == said(alignment.phones) == [(0.25, 0.5, "[LAUGHTER]")]
    assert not alignment.unknown_words
    alignment = good(read(tmp_path, "textgrid", textgrid(label="spn", word="[bracketed]")))
    assert alignment.unknown_words == ("[bracketed]",)
    assert said(alignment.phones) == [(0.25, 0.5, "spn")]


@pytest.mark.parametrize("end_s", [0.9, 1.1])
def test_a_textgrid_of_another_length_is_refused_unless_tolerated(tmp_path: Path, end_s: float) -> None:
    outcome = read(tmp_path, "textgrid", textgrid(end_s))
    assert isinstance(outcome, StreamError)
    assert f"ends at {end_s:.3f} s, its audio at 1.000 s. Is it for another recording?" in str(outcome)
    good(read(tmp_path, "textgrid", textgrid(end_s), tolerance_s=0.2))
    good(read(tmp_path, "textgrid", textgrid(0.96)))


def test_a_textgrid_is_the_content_that_was_identified(tmp_path: Path) -> None:
    (tmp_path / "u1.TextGrid").write_bytes(textgrid(label="AH0"))
    one = Utterance("u1", audio="u1.wav")
    aligner = make("textgrid", folder=str(tmp_path)).bind(Manifest([one], folder=tmp_path))
    file = aligner.attachment(one).value
    (tmp_path / "u1.TextGrid").write_bytes(textgrid(label="IY1"))
    (outcome,) = aligner.session(1, tmp_path).align([Speech("u1", None, np.zeros(16000, np.float32), 16000, "", file)])
    assert [phone.label for phone in good(outcome).phones] == ["AH0"]


def test_the_length_of_a_recording_is_checked_as_far_as_a_span_tells(tmp_path: Path) -> None:
    (tmp_path / "rec.TextGrid").write_bytes(textgrid(1.0))
    wrong = "Is it for another recording?"
    for start_s, end_s, length_s, fits in ((0.2, 0.6, 0.4, True), (0.2, None, 0.8, True), (0.2, None, 0.6, False),
                                           (0.4, 1.2, 0.8, False)):  # fmt: skip
        one = Utterance("turn", audio="rec.wav", start_s=start_s, end_s=end_s)
        aligner = make("textgrid", folder=str(tmp_path)).bind(Manifest([one], folder=tmp_path))
        outcome = run(aligner, one, Speech("turn", None, np.zeros(round(16000 * length_s), np.float32), 16000, ""))
        assert (wrong not in str(outcome)) == fits
        if fits:
            assert good(outcome).phones[0].end_s == pytest.approx(0.3)


def test_tiers_and_silence_are_settings(tmp_path: Path) -> None:
    content = textgrid(tier="segments", label="aː")
    assert "has no tier 'phones'" in str(read(tmp_path, "textgrid", content))
    alignment = good(read(tmp_path, "textgrid", content, phones_tier="segments", words_tier="", silence="SIL"))
    assert alignment.words == ()
    assert [label for *_, label in alignment.phones] == ["", "aː"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"nothing,here\n1,2\n", "no column 'file'"),
        (b"", "no column 'file'"),
        (b"file,snr\n\xff,1\n", "cannot be read"),
    ],
)
def test_a_damaged_analysis_is_named(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "alignment_analysis.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=match):
        read(tmp_path, "textgrid", CONTENT["textgrid"])


def test_rows_of_other_speakers_and_words_among_numbers_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "alignment_analysis.csv").write_text("file,speaker,snr,verdict\nu1,s1,3.5,good\nu1,s2,9,bad\nu2,s1,,\n")
    alignment = good(read(tmp_path, "textgrid", CONTENT["textgrid"]))
    assert alignment.quality == {"snr": 3.5}


# Gentle.


def test_phones_follow_each_other_from_their_words_start(tmp_path: Path) -> None:
    rows = (("Go", 0.1, 0.3, "g_B:0.08 sil:0.02 ow_E:0.1"), ("on", 0.4, 0.6, "oov_S:0.2"))
    alignment = good(read(tmp_path, "gentle", gentle("Go on", *rows)))
    assert said(alignment.words) == [(0.1, 0.3, "Go"), (0.4, 0.6, "on")]
    assert said(alignment.phones) == [(0.1, 0.18, "g_B"), (0.2, 0.3, "ow_E"), (0.4, 0.6, "oov_S")]
    assert alignment.unknown_words == ("on",)


def test_words_that_were_not_found_share_their_gap(tmp_path: Path) -> None:
    rows = (("a", 0, 0, ""), ("b", 0.2, 0.4, "b_S:0.2"), ("c", 0, 0, ""), ("d", 0, 0, ""), ("e", 0.8, 1.0, "iy_S:0.2"))
    alignment = good(read(tmp_path, "gentle", gentle("a b c d e", *rows)))
    assert said(alignment.phones) == [
        (0.0, 0.2, "spn"), (0.2, 0.4, "b_S"), (0.4, 0.6, "spn"), (0.6, 0.8, "spn"), (0.8, 1.0, "iy_S"),
    ]  # fmt: skip
    assert [word.label for word in alignment.words] == ["a", "b", "c", "d", "e"]
    assert alignment.unknown_words == ("a", "c", "d")


def test_a_word_without_a_gap_takes_no_time_and_is_listed(tmp_path: Path) -> None:
    rows = (("a", 0.0, 0.5, "ah_S:0.5"), ("b", 0, 0, ""), ("c", 0.5, 1.0, "s_S:0.5"))
    alignment = good(read(tmp_path, "gentle", gentle("a b c", *rows)))
    assert [word.label for word in alignment.words] == ["a", "c"]
    assert alignment.unknown_words == ("b",)


def test_bracketed_tokens_take_the_gap_where_they_stand(tmp_path: Path) -> None:
    rows = (("so", 0.2, 0.4, "s_B:0.1 ow_E:0.1"), ("so", 0.6, 0.8, "s_B:0.1 ow_E:0.1"))
    alignment = good(read(tmp_path, "gentle", gentle("so [LAUGHTER] so [BREATHING]", *rows)))
    assert said(alignment.words) == [
        (0.2, 0.4, "so"),
        (0.4, 0.6, "[LAUGHTER]"),
        (0.6, 0.8, "so"),
        (0.8, 1.0, "[BREATHING]"),
    ]
    assert [phone.label for phone in alignment.phones if phone.label.startswith("[")] == ["[LAUGHTER]", "[BREATHING]"]
    assert not alignment.unknown_words


@pytest.mark.parametrize("found", [True, False])
def test_a_token_that_gentle_read_as_a_word_is_the_token(tmp_path: Path, found: bool) -> None:
    laughter = ("laughter", 0.4, 0.6, "l_B:0.1 er_E:0.1") if found else ("laughter", 0, 0, "")
    rows = (("so", 0.2, 0.4, "s_B:0.1 ow_E:0.1"), laughter, ("so", 0.6, 1.0, "s_B:0.1 ow_E:0.3"))
    alignment = good(read(tmp_path, "gentle", gentle("so [laughter] so", *rows)))
    assert said(alignment.words)[1] == (0.4, 0.6, "[LAUGHTER]")
    assert said(alignment.phones)[2] == (0.4, 0.6, "[LAUGHTER]")
    assert not alignment.unknown_words


def test_a_token_of_two_words_is_one(tmp_path: Path) -> None:
    rows = (("so", 0.2, 0.4, "s_B:0.1 ow_E:0.1"), ("heavy", 0, 0, ""), ("breathing", 0, 0, ""))
    alignment = good(read(tmp_path, "gentle", gentle("so [heavy breathing]", *rows)))
    assert said(alignment.words)[1:] == [(0.4, 1.0, "[HEAVY BREATHING]")]


def test_tokens_of_the_manifests_text_count_where_gentle_was_given_none(tmp_path: Path) -> None:
    content = gentle("So so", ("So", 0.2, 0.4, "s_B:0.1 ow_E:0.1"), ("so", 0.6, 1.0, "s_B:0.1 ow_E:0.3"))
    alignment = good(read(tmp_path, "gentle", content, text="[BREATHING] So, [LAUGHTER] so!"))
    assert [word.label for word in alignment.words] == ["[BREATHING]", "So", "[LAUGHTER]", "so"]
    other = good(read(tmp_path, "gentle", content, text="[BREATHING] another text"))
    assert [word.label for word in other.words] == ["So", "so"]


def test_nothing_but_a_token_is_that_token_and_nothing_found_is_an_error(tmp_path: Path) -> None:
    assert said(good(read(tmp_path, "gentle", b'{"transcript": "[LAUGHTER]"}')).phones) == [(0, 1, "[LAUGHTER]")]
    outcome = read(tmp_path, "gentle", gentle("a b", ("a", 0, 0, ""), ("b", 0, 0, "")))
    assert "found none of the 2 words" in str(outcome)


def test_a_word_that_is_not_in_the_transcript_was_said(tmp_path: Path) -> None:
    heard_word = {"case": "not-found-in-transcript", "alignedWord": "uh", "start": 0.5, "end": 0.7}
    heard_word["phones"] = [{"phone": "ah_S", "duration": 0.2}]
    content = json.loads(CONTENT["gentle"])
    content["words"] = [content["words"][0], heard_word]
    assert said(good(read(tmp_path, "gentle", json.dumps(content).encode())).words)[-1] == (0.5, 0.7, "uh")


def test_words_that_meet_a_few_frames_too_late_are_trimmed_and_others_refused(tmp_path: Path) -> None:
    rows = (("a", 0.1, 0.4, "ah_S:0.3"), ("b", 0.37, 0.6, "b_B:0.02 iy_E:0.21"))
    alignment = good(read(tmp_path, "gentle", gentle("a b", *rows)))
    assert said(alignment.phones) == [(0.1, 0.4, "ah_S"), (0.4, 0.6, "iy_E")]
    outcome = read(tmp_path, "gentle", gentle("a b", ("a", 0.1, 0.6, "ah_S:0.5"), ("b", 0.2, 0.9, "b_S:0.7")))
    assert "u1.json: its word 'b' at 0.200 to 0.900 s starts before the word ahead of it has ended" in str(outcome)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"0.08", b"NaN"), (b"0.08", b"-1"), (b'"start": 0.1', b'"start": -3'), (b"0.08", b"1" + b"0" * 400),
     (b'"g_B"', b"7"), (b'"Go"', b"[1]"), (b'"duration"', b'"long"'), (b'"end": 0.3', b'"end": 0.05'),
     (b"0.08", b"true"), (b'[{"word"', b'[3, {"word"'), (b'"phones": [', b'"phones": [3, ')],
)  # fmt: skip
def test_values_of_the_wrong_kind_in_gentles_file_are_named(tmp_path: Path, old: bytes, new: bytes) -> None:
    assert CONTENT["gentle"].count(old)
    outcome = read(tmp_path, "gentle", CONTENT["gentle"].replace(old, new, 1))
    assert isinstance(outcome, StreamError)
    assert "u1.json" in str(outcome)


# xlabel.


def emodb(shared_data: Path) -> tuple[Manifest, FileAligner]:
    root = shared_data / "emodb"
    manifest = Manifest(EmoDb().utterances(root), folder=root)
    return manifest, make("xlabel", folder=str(root / "lablaut")).bind(manifest)


def stretch(speech: Speech, start_s: float, end_s: float) -> np.ndarray:
    return speech.samples[round(start_s * speech.sample_rate_hz) : round(end_s * speech.sample_rate_hz)]


def level_db(speech: Speech, start_s: float, end_s: float) -> float:
    """Return the level of a stretch over that of the whole; NaN where it is shorter than 5 ms."""
    samples = stretch(speech, start_s, end_s)
    if len(samples) < 0.005 * speech.sample_rate_hz:
        return math.nan
    return float(10 * np.log10((np.mean(samples**2) + 1e-12) / np.mean(speech.samples**2)))


def crossings_per_sample(speech: Speech, start_s: float, end_s: float) -> float:
    samples = stretch(speech, start_s, end_s)
    return float(np.mean(samples[1:] * samples[:-1] < 0)) if len(samples) > 80 else math.nan


def test_emodbs_hand_times_fit_their_audio_and_leave_silence_at_its_edges(shared_data: Path) -> None:
    manifest, aligner = emodb(shared_data)
    failed: dict[str, str] = {}
    edges, vowels, sibilance = [], [], []
    for utterance in manifest:
        speech = heard(manifest, utterance)
        outcome = run(aligner, utterance, speech)
        if isinstance(outcome, StreamError):
            failed[utterance.id] = str(outcome)
            continue
        checked(outcome, speech.duration_s, tolerance_s=0.0)
        edges += [level_db(speech, 0.0, outcome.phones[0].start_s)]
        edges += [level_db(speech, outcome.phones[-1].end_s, speech.duration_s)]
        vowels += [level_db(speech, *phone[:2]) for phone in outcome.phones if phone.label == "a"]
        sibilance += [crossings_per_sample(speech, *phone[:2]) for phone in outcome.phones if phone.label == "s"]
    # One file of the release holds a header and no label.
    assert list(failed) == ["08a01Wa"]
    assert "holds a header and no label" in failed["08a01Wa"]
    assert len(manifest) == 339
    assert np.nanmedian(edges) < -30
    assert np.nanpercentile(edges, 95) < -15
    # Were the times ends, as the format has it, these would be about -7 dB and 0.1.
    assert np.nanmedian(vowels) > 1
    assert np.nanmedian(sibilance) > 0.4


def rows(*lines: str) -> bytes:
    return ("separator ;\nnfields 1\n#\n" + "".join(f"    {line}\n" for line in lines)).encode()


def test_marks_are_left_out_and_parts_of_a_stop_are_one_phone(tmp_path: Path) -> None:
    content = rows(
        "0.10  -1 _d\t-sth", "0.15 125 !d", "0.20  -1 a\t+lar\t3", "0.25  -1 \t-lar", "0.30  -1 -sth",
        "0.35  -1 t\t+sth", "0.40  -1 !", "0.45  -1 tasp", "0.50  -1 t", "0.55  -1 p +asp", "0.60  -1 !b+na",
        "0.65  -1 (gef", "0.70  -1 I    2", "0.80  -1 .\t-ges",
    )  # fmt: skip
    alignment = good(read(tmp_path, "xlabel", content))
    assert alignment.words == ()
    assert said(alignment.phones) == [
        (0.1, 0.2, "d"), (0.2, 0.35, "a"), (0.35, 0.5, "t"), (0.5, 0.55, "t"), (0.55, 0.6, "p"), (0.6, 0.65, "b"),
        (0.7, 0.8, "I"),
    ]  # fmt: skip


def test_a_mark_ahead_of_the_first_phone_belongs_to_nothing(tmp_path: Path) -> None:
    alignment = good(read(tmp_path, "xlabel", rows("0.1 -1 \t+beh", "0.2 -1 a", "0.3 -1 .")))
    assert said(alignment.phones) == [(0.2, 0.3, "a")]


def test_files_whose_times_are_ends_are_noticed_and_read_as_such_when_told(tmp_path: Path) -> None:
    content = rows("0.1 26 H#", "0.2 26 dcl", "0.25 26 d;second field", "0.4 26 ax-h", "0.5 26 ")
    outcome = read(tmp_path, "xlabel", content)
    assert "set style=esps" in str(outcome)
    alignment = good(read(tmp_path, "xlabel", content, style="esps"))
    assert said(alignment.phones) == [(0.1, 0.2, "dcl"), (0.2, 0.25, "d"), (0.25, 0.4, "ax-h")]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (rows("0.2 -1 a", "0.1 -1 ."), "line 5: the time 0.1 s runs backwards"),
        (rows("x -1 a", "0.1 -1 ."), "the time in line 4 is 'x'"),
        (rows("nan -1 a", "0.1 -1 ."), "the time in line 4 is 'nan'"),
        (rows("0.1"), "line 4: expected time, colour and label"),
        (rows("-0.1 -1 a", "0.1 -1 ."), "runs backwards"),
        (b"0.1 -1 a\n", "no line '#'"),
        (rows(), "a header and no label"),
        (rows("0.1 -1 ."), "has no phone"),
    ],
)
def test_faults_of_an_xlabel_file_are_named(tmp_path: Path, content: bytes, match: str) -> None:
    assert match in str(read(tmp_path, "xlabel", content))


# Plain intervals.


def test_the_demo_corpus_truth_is_read_by_its_column(tmp_path: Path) -> None:
    truth = {
        "phones": [[0.0, 0.2, "_:"], [0.2, 0.3, "D"], [0.3, 0.5, "@2"], [0.5, 1.0, "_"]],
        "words": [[0.2, 0.5, "the"]],
    }
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "u1.json").write_text(json.dumps(truth))
    one = Utterance("u1", audio="u1.wav", extra={"phones": "truth/u1.json"})
    aligner = make("intervals", column="phones", symbols="espeak").bind(Manifest([one], folder=tmp_path))
    alignment = good(run(aligner, one, Speech("u1", None, np.zeros(16000, np.float32), 16000, "")))
    assert said(alignment.phones) == [(0.2, 0.3, "D"), (0.3, 0.5, "@2")]
    assert said(alignment.words) == [(0.2, 0.5, "the")]
    assert aligner.symbol_set == "espeak"


def test_one_csv_holds_the_whole_corpus(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text(
        "label,id,tier,end_s,start_s,note\nb,u/2,phone,0.4,0.2,x\na,u/2,phone,0.2,0.1,x\nc,u1,phones,0.5,0.1,y\n"
        "go,u/2,word,0.4,0.1,\nz,u/2,points,0.4,0.1,\n"
    )
    utterances = [Utterance(name, audio="x.wav") for name in ("u1", "u/2", "u3")]
    manifest = Manifest(utterances, folder=tmp_path)
    aligner = make("intervals", file=str(path)).bind(manifest)
    speech = Speech("u/2", None, np.zeros(16000, np.float32), 16000, "")
    alignment = good(run(aligner, utterances[1], speech))
    assert said(alignment.phones) == [(0.1, 0.2, "a"), (0.2, 0.4, "b")]
    assert said(alignment.words) == [(0.1, 0.4, "go")]
    with pytest.raises(StreamError, match=r"all\.csv has no row whose 'id' is 'u3'"):
        aligner.attachment(utterances[2])
    before = [aligner.attachment(utterance).digest for utterance in utterances[:2]]
    path.write_text(path.read_text().replace("0.5,0.1", "0.6,0.1"))
    after = [make("intervals", file=str(path)).bind(manifest).attachment(one).digest for one in utterances[:2]]
    assert before[0] != after[0]
    assert before[1] == after[1]
    with pytest.raises(ConfigError, match="leave out 'folder' and 'column'"):
        make("intervals", file=str(path), folder=str(tmp_path)).bind(manifest)
    path.write_text("tier,start_s,end_s,label\n")
    with pytest.raises(ConfigError, match="no column 'id'"):
        make("intervals", file=str(path)).bind(manifest)
    with pytest.raises(ConfigError, match="cannot be read"):
        make("intervals", file=str(tmp_path / "none.csv")).bind(manifest)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"tier;start_s;end_s;label\n", "lacks the columns tier, start_s, end_s, label"),
        (b"tier,start_s,end_s,label\nphones,0,,a\n", "the end of 'a' is ''"),
        (b"tier,start_s,end_s,label\nphones,0\n", "a label of phones is 'None'"),
        (b"tier,start_s,end_s,label\nphones,0.5,0.2,a\n", "does not run forward in time"),
        (b"tier,start_s,end_s,label\nphones,0.1,0.3,a\nphones,0.2,0.4,b\n", "starts before the phone ahead"),
        (b"tier,start_s,end_s,label\nphones,100,300,a\n", "in another unit than seconds"),
        (b"tier,start_s,end_s,label\nwords,0.1,0.3,a\n", "has no phone"),
        (b'{"phones": [[0, 1]]}', "not [start_s, end_s, label]"),
        (b'{"phones": [[0, [], "a"]]}', "the end of 'a' is list"),
        (b'{"phones": [[0, 1e999, "a"]]}', "the end of 'a' is inf"),
        (b'{"phones": [[0, 1, 2]]}', "where text was expected"),
        (b'{"words": []}', "needs an object with the list 'phones'"),
    ],
)
def test_faults_of_plain_files_are_named(tmp_path: Path, content: bytes, match: str) -> None:
    told = str(read(tmp_path, "intervals", content))
    assert match in told
    assert str(tmp_path / "u1.csv") in told


def test_silence_is_a_setting(tmp_path: Path) -> None:
    content = b"tier,start_s,end_s,label\nphones,0,0.5,quiet\nphones,0.5,0.9,_a\nphones,0.9,1,sil\n"
    for chosen, expected in (
        ({}, ["quiet", "_a"]),
        ({"symbols": "espeak"}, ["quiet"]),
        ({"silence": "Quiet"}, ["_a", "sil"]),
    ):
        alignment = good(read(tmp_path, "intervals", content, **chosen))
        assert [label for *_, label in alignment.phones] == expected
