"""TextGrids are read in every form Praat writes; what is not whole is an error and never half an alignment."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from praatio import textgrid as praat

from featcache.alignment import Interval
from featcache.errors import StreamError
from featcache.textgrids import parse_textgrid, read_textgrid

WORDS = [(0.0, 0.1, ""), (0.1, 0.4, "hello"), (0.4, 0.5, "sil"), (0.5, 0.9, 'say "oh"'), (0.9, 1.0, "<eps>")]
PHONES = [(0.0, 0.1, "SIL"), (0.1, 0.25, "HH"), (0.25, 0.4, "OW1"), (0.4, 0.5, "sp"), (0.5, 0.9, "spn"), (0.9, 1.0, "")]


def text_of(tiers: dict[str, list[tuple[float, float, str]]], short: bool = False) -> str:
    """Return a TextGrid as Praat's manual describes it, made without the library under test."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    lines += ["0", "1", "<exists>", str(len(tiers))] if short else ["xmin = 0 ", "xmax = 1 ", "tiers? <exists> "]
    lines += [] if short else [f"size = {len(tiers)} ", "item []: "]
    for number, (name, entries) in enumerate(tiers.items(), 1):
        head = [f'"{name}"', "0", "1", str(len(entries))]
        labels = ["name = ", "xmin = ", "xmax = ", "intervals: size = "]
        if short:
            lines += ['"IntervalTier"', *head]
        else:
            lines += [f"    item [{number}]:", '        class = "IntervalTier" ']
            lines += [f"        {label}{value} " for label, value in zip(labels, head, strict=True)]
        for index, (start_s, end_s, label) in enumerate(entries, 1):
            quoted = '"' + label.replace('"', '""') + '"'
            if short:
                lines += [str(start_s), str(end_s), quoted]
            else:
                lines += [f"        intervals [{index}]:", f"            xmin = {start_s} "]
                lines += [f"            xmax = {end_s} ", f"            text = {quoted} "]
    return "\n".join(lines) + "\n"


def written(folder: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / "one.TextGrid"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_form_and_encoding_gives_the_same(tmp_path: Path, short: bool, encoding: str, newline: str) -> None:
    text = text_of({"words": WORDS, "phones": PHONES}, short).replace("\n", newline)
    grid = read_textgrid(written(tmp_path, text, encoding))
    assert grid.words == (Interval(0.1, 0.4, "hello"), Interval(0.5, 0.9, 'say "oh"'))
    assert [phone.label for phone in grid.phones] == ["HH", "OW1", "spn"]
    assert grid.max_time_s == 1.0


def test_latin1_and_other_scripts_are_read(tmp_path: Path) -> None:
    tiers = {"words": [(0.0, 1.0, "schön")], "phones": [(0.0, 1.0, "ø")]}
    assert read_textgrid(written(tmp_path, text_of(tiers), "latin-1")).words[0].label == "schön"
    tiers = {"words": [(0.0, 1.0, "日本 😀")], "phones": [(0.0, 1.0, "t͡ɕ")]}
    assert read_textgrid(written(tmp_path, text_of(tiers), "utf-16")).words[0].label == "日本 😀"


def test_real_output_is_read_as_praatio_reads_it(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted((shared_data / "alignment" / "mfa" / "aligned").rglob("*.TextGrid"))
    assert len(paths) == 240
    for path in paths:
        grid = read_textgrid(path)
        tiers = praat.openTextgrid(str(path), includeEmptyIntervals=False)
        for name, found in (("words", grid.words), ("phones", grid.phones)):
            assert [tuple(entry) for entry in tiers.getTier(name).entries] == list(found)
        assert grid.max_time_s == tiers.maxTimestamp
    tiers.save(str(tmp_path / "short.TextGrid"), "short_textgrid", includeBlankSpaces=True)
    assert read_textgrid(tmp_path / "short.TextGrid") == grid


def test_tiers_are_found_by_name_whoever_speaks(tmp_path: Path) -> None:
    assert read_textgrid(written(tmp_path, text_of({"Words": WORDS, "PHONES": PHONES}))).phones
    assert read_textgrid(written(tmp_path, text_of({"spk 1 - words": WORDS, "spk 1 - phones": PHONES}))).words
    both = text_of({"A - words": WORDS, "A - phones": PHONES, "B - words": WORDS[:1], "B - phones": PHONES[:1]})
    with pytest.raises(StreamError, match="2 tiers that 'words' may mean.*'B - phones'"):
        read_textgrid(written(tmp_path, both))
    assert read_textgrid(tmp_path / "one.TextGrid", "A - words", "A - phones").words
    assert read_textgrid(written(tmp_path, text_of({"segments": PHONES})), None, "segments").words == ()


def test_a_missing_tier_is_an_error_that_lists_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, text_of({"ORT": WORDS, "MAU": PHONES}))
    with pytest.raises(StreamError, match=r"no tier 'words'. Its tiers are: 'ORT', 'MAU'"):
        read_textgrid(path)
    assert read_textgrid(path, "ORT", "MAU").words[0].label == "hello"
    assert len(read_textgrid(path, "ORT", "MAU", silence=frozenset()).phones) == len(PHONES)


def test_a_tier_of_points_is_an_error(tmp_path: Path) -> None:
    points = (
        '    item [2]:\n        class = "TextTier" \n        name = "phones" \n        xmin = 0 \n        xmax = 1 \n'
        '        points: size = 1 \n        points [1]:\n            number = 0.5 \n            mark = "x" \n'
    )
    with pytest.raises(StreamError, match="'phones' holds points"):
        read_textgrid(written(tmp_path, text_of({"words": WORDS}) + points))


@pytest.mark.parametrize("short", [False, True])
def test_a_file_that_was_cut_off_is_never_taken_for_a_shorter_one(tmp_path: Path, short: bool) -> None:
    whole = text_of({"words": WORDS, "phones": PHONES}, short)
    expected = read_textgrid(written(tmp_path, whole))
    lines = whole.splitlines(keepends=True)
    for kept in range(len(lines)):
        path = written(tmp_path, "".join(lines[:kept]))
        with pytest.raises(StreamError):
            read_textgrid(path)
    assert read_textgrid(written(tmp_path, whole)) == expected


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"RIFF....WAVE", b'{"words": []}', b"[" * 10000, b"ooBinaryFile\x08TextGrid", b"\xff\xfe\x00",
     b'File type = "ooTextFile"\nObject class = "TextGrid"\n', b'"ooTextFile" "TextGrid" item [ item ['],
)  # fmt: skip
def test_what_is_no_textgrid_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(StreamError, match=r"one\.TextGrid"):
        read_textgrid(written(tmp_path, content))


def test_content_is_read_as_its_file_is_and_the_path_is_only_a_name(tmp_path: Path) -> None:
    path = written(tmp_path, text_of({"words": WORDS, "phones": PHONES}), "utf-16")
    assert parse_textgrid(path.read_bytes(), Path("/none/x.TextGrid")) == read_textgrid(path)
    with pytest.raises(StreamError, match=r"^/none/x\.TextGrid is not a TextGrid"):
        parse_textgrid(b"", Path("/none/x.TextGrid"))


def test_a_file_that_is_not_there_or_a_folder_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.TextGrid", tmp_path):
        with pytest.raises(StreamError, match="cannot be read"):
            read_textgrid(path)


def test_times_that_are_no_numbers_are_errors(tmp_path: Path) -> None:
    for wrong in ("nan", "inf", "x"):
        text = text_of({"words": WORDS, "phones": PHONES}, short=True).replace("0.25", wrong)
        with pytest.raises(StreamError, match="time in seconds"):
            read_textgrid(written(tmp_path, text))


PIECES = ['"', "\n", "item [", "1e9", "-", "", "\0", "é", "[", "="]
EDITS = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 60), st.sampled_from(PIECES)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, short=st.booleans(), encoding=st.sampled_from(["utf-8", "utf-16"]))
def test_any_damage_gives_intervals_or_a_clear_error(
    tmp_path: Path, edits: list[tuple[int, int, str]], short: bool, encoding: str
) -> None:
    text = text_of({"words": WORDS, "phones": PHONES}, short)
    for place, length, new in edits:
        place %= len(text) + 1
        text = text[:place] + new + text[place + length :]
    path = written(tmp_path, text, encoding)
    found: tuple[Interval, ...] = ()
    with suppress(StreamError):
        grid = read_textgrid(path)
        found = grid.words + grid.phones
    assert all(isinstance(start_s + end_s, float) and label for start_s, end_s, label in found)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400), header=st.booleans())
def test_any_bytes_give_a_clear_error(tmp_path: Path, content: bytes, header: bool) -> None:
    start = b'File type = "ooTextFile"\nObject class = "TextGrid"\n' if header else b""
    with pytest.raises(StreamError):
        read_textgrid(written(tmp_path, start + content))
