"""Which file belongs to which utterance, and from where its times count."""

import os
from pathlib import Path

import numpy as np
import pytest

from featcache import Manifest, Utterance
from featcache import alignment_files as module
from featcache.aligners.intervals import Intervals
from featcache.alignment import Alignment, Interval
from featcache.alignment_files import AlignmentFile, FileAligner, cut, read_bytes
from featcache.errors import ConfigError, StreamError
from featcache.settings import build
from featcache.stream import Speech


def put(path: Path, phone: str = "a", start_s: float = 0.1, end_s: float = 0.2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"tier,start_s,end_s,label\nphones,{start_s},{end_s},{phone}\n")
    return path


def found(aligner: FileAligner, utterance: Utterance) -> AlignmentFile:
    attachment = aligner.attachment(utterance)
    assert attachment.digest == attachment.value.digest
    return attachment.value


def bound(folder: Path, *utterances: Utterance, **settings: object) -> Intervals:
    chosen = {"folder": str(folder / "aligned"), **settings}
    return Intervals(**chosen).bind(Manifest(utterances, folder=folder))  # type: ignore[arg-type]


def speech(name: str, file: AlignmentFile, duration_s: float = 1.0) -> Speech:
    return Speech(name, None, np.zeros(round(16000 * duration_s), np.float32), 16000, "", file)


def test_a_file_is_found_by_the_id_at_any_depth(tmp_path: Path) -> None:
    path = put(tmp_path / "aligned" / "deep" / "down" / "u1.CSV")
    one = Utterance("u1", audio="wav/other.wav")
    assert found(bound(tmp_path, one), one).path == path


def test_ids_with_slashes_are_compared_by_whole_components(tmp_path: Path) -> None:
    for speaker in ("spk1", "xspk1", "spk2"):
        put(tmp_path / "aligned" / speaker / "01.csv", speaker)
    utterances = [Utterance(f"{speaker}/01", audio="x.wav") for speaker in ("spk1", "xspk1", "spk2")]
    aligner = bound(tmp_path, *utterances)
    assert [found(aligner, one).path.parent.name for one in utterances] == ["spk1", "xspk1", "spk2"]


def test_an_id_may_be_longer_than_the_path_below_the_folder(tmp_path: Path) -> None:
    path = put(tmp_path / "aligned" / "01.csv")
    one = Utterance("corpus/spk1/01", audio="x.wav")
    assert found(bound(tmp_path, one), one).path == path


def test_the_recordings_name_is_the_second_choice(tmp_path: Path) -> None:
    one, two = Utterance("first", audio="wav/rec_a.wav"), Utterance("second", audio="wav/rec_b.flac")
    put(tmp_path / "aligned" / "rec_a.csv")
    path = put(tmp_path / "aligned" / "rec_b.csv")
    put(tmp_path / "aligned" / "first.csv")
    aligner = bound(tmp_path, one, two)
    assert found(aligner, one).path.stem == "first"
    assert found(aligner, two).path == path


def test_speaker_folders_tell_recordings_of_one_name_apart(tmp_path: Path) -> None:
    for speaker in ("spk1", "spk2"):
        put(tmp_path / "aligned" / speaker / "01.csv")
    by_audio = [Utterance(f"id{n}", audio=f"wav/spk{n}/01.wav") for n in (1, 2)]
    by_speaker = [Utterance(f"id{n}", audio=f"wav{n}/01.wav", speaker=f"spk{n}") for n in (1, 2)]
    for utterances in (by_audio, by_speaker):
        aligner = bound(tmp_path, *utterances)
        assert [found(aligner, one).path.parent.name for one in utterances] == ["spk1", "spk2"]


def test_two_files_that_cannot_be_told_apart_are_both_named(tmp_path: Path) -> None:
    put(tmp_path / "aligned" / "a" / "u1.csv")
    put(tmp_path / "aligned" / "b" / "u1.json")
    one = Utterance("u1", audio="u1.wav")
    with pytest.raises(StreamError, match=r"two files may be.*a/u1\.csv'.*b/u1\.json'"):
        bound(tmp_path, one).attachment(one)


def test_a_missing_file_says_what_was_looked_for_and_where(tmp_path: Path) -> None:
    put(tmp_path / "aligned" / "u1.csv")
    two = Utterance("u2", audio="wav/rec2.wav")
    with pytest.raises(StreamError, match=r"no file 'u2' or 'rec2' with the ending .csv or .json.*aligned.*1 such"):
        bound(tmp_path, two).attachment(two)


def test_the_file_of_another_speaker_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    put(tmp_path / "aligned" / "spk2" / "01.csv")
    utterances = [Utterance(f"id{n}", audio=f"wav/spk{n}/01.wav", speaker=f"spk{n}") for n in (1, 2)]
    aligner = bound(tmp_path, *utterances)
    assert found(aligner, utterances[1]).path.parent.name == "spk2"
    with pytest.raises(StreamError, match="fits 'id2' as well and better"):
        aligner.attachment(utterances[0])


def test_one_file_for_two_recordings_is_refused_for_both(tmp_path: Path) -> None:
    put(tmp_path / "aligned" / "01.csv")
    utterances = [Utterance(f"id{n}", audio=f"wav{n}/01.wav") for n in (1, 2)]
    aligner = bound(tmp_path, *utterances)
    for one, other in (utterances, utterances[::-1]):
        with pytest.raises(StreamError, match=f"fits '{other.id}' as well[.]"):
            aligner.attachment(one)


def test_links_in_a_circle_end_and_a_linked_copy_is_no_second_file(tmp_path: Path) -> None:
    path = put(tmp_path / "aligned" / "a" / "u1.csv")
    (tmp_path / "aligned" / "a" / "loop").symlink_to(tmp_path / "aligned", target_is_directory=True)
    (tmp_path / "aligned" / "b").mkdir()
    (tmp_path / "aligned" / "b" / "u1.csv").symlink_to(path)
    one = Utterance("u1", audio="u1.wav")
    assert found(bound(tmp_path, one), one).content == path.read_bytes()


def test_hidden_files_and_ids_that_look_like_paths_find_nothing(tmp_path: Path) -> None:
    put(tmp_path / "secret.csv")
    put(tmp_path / "aligned" / "._u1.csv")
    put(tmp_path / "aligned" / "u0.csv")
    for name in ("../secret", "u1", "._u1", "..", "/", str(tmp_path / "secret")):
        one = Utterance(name, audio="x.wav")
        with pytest.raises(StreamError, match="no file"):
            bound(tmp_path, one).attachment(one)


def test_decomposed_file_names_are_the_composed_ids(tmp_path: Path) -> None:
    put(tmp_path / "aligned" / "mu\u0308de.csv")
    one = Utterance("m\u00fcde", audio="x.wav")
    assert found(bound(tmp_path, one), one).content


def test_a_column_names_the_file(tmp_path: Path) -> None:
    path = put(tmp_path / "truth" / "x.csv")
    one = Utterance("u1", audio="u1.wav", extra={"phones": "truth/x.csv"})
    assert found(Intervals(column="phones").bind(Manifest([one], folder=tmp_path)), one).path == path
    elsewhere = Manifest([one], folder=tmp_path / "lists")
    assert found(Intervals(column="phones", folder=str(tmp_path)).bind(elsewhere), one).path == path


@pytest.mark.parametrize("value", ["../x.csv", "a/../../x.csv", "/etc/passwd", "nul\0.csv", "\ud800.csv"])
def test_a_column_must_not_lead_out_of_the_folder(tmp_path: Path, value: str) -> None:
    one = Utterance("u1", audio="u1.wav", extra={"phones": value})
    manifest = Manifest([one], folder=tmp_path / "corpus")
    put(tmp_path / "x.csv")
    with pytest.raises(StreamError, match="leads out of"):
        Intervals(column="phones").bind(manifest).attachment(one)


def test_a_column_must_not_lead_out_of_the_manifests_root_by_a_link(tmp_path: Path) -> None:
    put(tmp_path / "outside" / "x.csv")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    one = Utterance("u1", audio="u1.wav", extra={"phones": "link/x.csv"})
    folder = tmp_path / "corpus"
    assert found(Intervals(column="phones").bind(Manifest([one], folder=folder)), one).content
    with pytest.raises(StreamError, match="leads out of"):
        Intervals(column="phones").bind(Manifest([one], folder=folder, root=folder)).attachment(one)


@pytest.mark.parametrize("value", [None, "", 7, ["a"]])
def test_an_empty_column_is_an_error_of_its_utterance(tmp_path: Path, value: object) -> None:
    one = Utterance("u1", audio="u1.wav", extra={"phones": value})
    with pytest.raises(StreamError, match="column 'phones' holds"):
        Intervals(column="phones").bind(Manifest([one], folder=tmp_path)).attachment(one)


def test_settings_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    one = Utterance("u1", audio="u1.wav")
    with pytest.raises(ConfigError, match="'folder' or 'column'"):
        Intervals().bind(Manifest([one], folder=tmp_path))
    with pytest.raises(ConfigError, match="there is no folder"):
        bound(tmp_path, one)
    (tmp_path / "aligned").mkdir()
    with pytest.raises(ConfigError, match=r"holds no file that ends in \.csv or \.json"):
        bound(tmp_path, one)
    with pytest.raises(ConfigError, match="must be bound"):
        Intervals(folder="x").attachment(one)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name, reason in (("folder.csv", "no plain file"), ("pipe.csv", "no plain file"), ("none.csv", "No such file")):
        with pytest.raises(StreamError, match=rf"{name}.*{reason}"):
            read_bytes(tmp_path / name)
    put(tmp_path / "large.csv")
    with pytest.raises(StreamError, match=r"large\.csv has 0 MiB; an alignment has at most"):
        read_bytes(tmp_path / "large.csv", limit=10)
    assert module.MAX_BYTES == 50 * 2**20


def test_times_in_the_recordings_file_are_cut_to_the_span_and_shifted(tmp_path: Path) -> None:
    path = tmp_path / "aligned" / "rec.csv"
    path.parent.mkdir()
    rows = [(0.0, 1.0, "before"), (1.0, 1.6, "left"), (1.6, 2.0, "middle"), (2.0, 2.9, "right"), (2.9, 3.0, "after")]
    path.write_text("tier,start_s,end_s,label\n" + "".join(f"phones,{a},{b},{label}\n" for a, b, label in rows))
    one = Utterance("turn1", audio="wav/rec.wav", start_s=1.5, end_s=2.5)
    two = Utterance("turn2", audio="wav/rec.wav", start_s=2.5)
    aligner = bound(tmp_path, one, two)
    file = found(aligner, one)
    assert file.digest != found(aligner, two).digest
    (alignment,) = aligner.session(1, tmp_path).align([speech("turn1", file)])
    assert isinstance(alignment, Alignment)
    expected = [(0.0, 0.1, "left"), (0.1, 0.5, "middle"), (0.5, 1.0, "right")]
    assert [phone.label for phone in alignment.phones] == [label for *_, label in expected]
    assert np.allclose([phone[:2] for phone in alignment.phones], [times[:2] for times in expected])


def test_times_in_the_utterances_own_file_stay(tmp_path: Path) -> None:
    put(tmp_path / "aligned" / "turn1.csv")
    one = Utterance("turn1", audio="wav/rec.wav", start_s=1.5, end_s=2.5)
    aligner = bound(tmp_path, one)
    file = found(aligner, one)
    assert file.offset_s is None
    (alignment,) = aligner.session(1, tmp_path).align([speech("turn1", file)])
    assert isinstance(alignment, Alignment)
    assert alignment.phones == (Interval(0.1, 0.2, "a"),)


def test_a_span_whose_id_is_its_recordings_name_must_say_what_times_count_from(tmp_path: Path) -> None:
    put(tmp_path / "aligned" / "rec.csv")
    one = Utterance("rec", audio="wav/rec.wav", start_s=1.5)
    with pytest.raises(StreamError, match="times_from=utterance or times_from=recording"):
        bound(tmp_path, one).attachment(one)
    assert found(bound(tmp_path, one, times_from="utterance"), one).offset_s is None
    assert found(bound(tmp_path, one, times_from="recording"), one).offset_s == 1.5
    whole = Utterance("rec", audio="wav/rec.wav")
    assert found(bound(tmp_path, whole), whole).offset_s is None


def test_a_recordings_file_serves_its_spans_although_one_id_is_the_recordings_name(tmp_path: Path) -> None:
    path = put(tmp_path / "aligned" / "rec.csv", end_s=3.0)
    spans = [Utterance(f"t{n}", audio="wav/rec.wav", start_s=n, end_s=n + 1) for n in (0.0, 1.0)]
    whole, part = Utterance("rec", audio="wav/rec.wav"), Utterance("rec", audio="wav/rec.wav", start_s=1.5)
    for named in (whole, part):
        aligner = bound(tmp_path, *spans, named, times_from="recording")
        assert {found(aligner, one).path for one in (*spans, named)} == {path}
        assert [found(aligner, one).offset_s for one in (*spans, named)] == [0.0, 1.0, named.start_s]
    aligner = bound(tmp_path, *spans, whole)  # whose times count from the same either way
    assert [found(aligner, one).offset_s for one in (*spans, whole)] == [0.0, 1.0, None]
    for settings in ({}, {"times_from": "utterance"}):
        aligner = bound(tmp_path, *spans, part, **settings)
        for one in spans:
            with pytest.raises(StreamError, match="fits 'rec' as well and better.*set times_from=recording"):
                aligner.attachment(one)
    stranger = Utterance("other", audio="elsewhere/rec.wav")
    aligner = bound(tmp_path, *spans, stranger, whole, times_from="recording")
    with pytest.raises(StreamError, match="fits 'rec' as well and better. Name files after ids"):
        aligner.attachment(stranger)
    assert found(aligner, spans[0]).path == path


def test_a_number_is_taken_for_a_name(tmp_path: Path) -> None:
    one = Utterance("u1", audio="u1.wav", extra={"7": "2024/u1.csv"})
    path = put(tmp_path / "2024" / "u1.csv")
    assert build(Intervals, {"folder": 2024, "file": 1}, "aligner intervals") == Intervals(folder="2024", file="1")
    aligner = build(Intervals, {"column": 7}, "aligner intervals").bind(Manifest([one], folder=tmp_path))
    assert found(aligner, one).path == path
    with pytest.raises(ConfigError, match="folder: Input should be a valid string"):
        build(Intervals, {"folder": True}, "aligner intervals")


def test_cutting_keeps_what_is_wrong_for_the_check_to_see() -> None:
    backwards = Alignment((), (Interval(0.5, 0.4, "a"), Interval(0.5, 0.6, "b")))
    assert cut(backwards, 0.0, 1.0).phones == (Interval(0.5, 0.4, "a"),)
    words = Alignment((Interval(0, 1, "in"), Interval(2, 3, "out")), (), unknown_words=("in", "out"))
    assert cut(words, 0.0, 1.5).unknown_words == ("in",)


def test_the_digest_follows_the_bytes_and_not_the_place(tmp_path: Path) -> None:
    one = Utterance("u1", audio="u1.wav")
    path = put(tmp_path / "aligned" / "u1.csv")
    before = bound(tmp_path, one).attachment(one).digest
    (tmp_path / "aligned" / "sub").mkdir()
    path.rename(tmp_path / "aligned" / "sub" / "u1.csv")
    assert bound(tmp_path, one).attachment(one).digest == before
    put(tmp_path / "aligned" / "sub" / "u1.csv", "b")
    assert bound(tmp_path, one).attachment(one).digest != before
