import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers import tone, write_corpus
from matplotlib.image import imread
from matplotlib.text import Text

from featcache import Manifest
from featcache.alignment import Alignment, Interval
from featcache.errors import CacheError, ConfigError, UnknownNameError
from featcache.symbols import CLASSES
from pipelines import align, picture
from pipelines.reporting.svg import style
from pipelines.reporting.utterance import COLOURS, Track, draw

HIM = Alignment(
    (Interval(0.1, 0.35, "see"), Interval(0.4, 0.9, "him$_{x}$")),
    (
        Interval(0.1, 0.22, "S"), Interval(0.22, 0.35, "IY1"), Interval(0.4, 0.41, "HH"), Interval(0.41, 0.53, "IH0"),
        Interval(0.53, 0.8, "M"), Interval(0.8, 0.9, "[NOISE]"),
    ),
    unknown_words=("see",),
)  # fmt: skip


def texts(figure):
    return [found.get_text() for found in figure.findobj(Text) if found.get_text()]


def drawn(seconds, tracks, text="see him", note=""):
    with style():
        return draw(tone(seconds), "u1", text, tracks, note)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest and a cache with two alignments of its first utterance, 50 ms apart, and one of its second."""
    folder = tmp_path_factory.mktemp("picture")
    manifest = write_corpus(folder / "corpus", [1.0, 1.2, 0.5])
    manifest.write(folder / "m.jsonl")
    for late_s, ids in ((0.0, ("u000", "u001")), (0.05, ("u000",))):
        lines = ["id,tier,start_s,end_s,label"]
        for name in ids:
            for tier, intervals in (("words", HIM.words), ("phones", HIM.phones)):
                lines += [f"{name},{tier},{start + late_s},{end + late_s},{label}" for start, end, label in intervals]
        (folder / f"{late_s}.csv").write_text("\n".join(lines) + "\n")
        silence = '["", "sil"]' if late_s else '["sil"]'
        settings = [f"file={folder / f'{late_s}.csv'}", "symbols=english", f"silence={silence}"]
        align.run(manifest, folder / "cache", "intervals", settings, None, {})
    return folder


def test_every_class_has_a_colour():
    assert set(COLOURS) == set(CLASSES.values()) | {"unknown", "event", "other"}
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_words_phones_and_classes_are_named():
    shown = texts(drawn(1.0, [Track("aligner", HIM, "english")]))
    for label in ("u1", "see him", "see", "him$_{x}$", "IH0", "M", "aligner", "mel", "vowel", "event", "seconds"):
        assert label in shown
    assert "stop" not in shown
    assert "HH" not in shown  # 10 ms have no room for it


def test_each_alignment_has_its_rows_and_one_without_words_has_one():
    alone = drawn(1.0, [Track("one", HIM, "english")])
    both = drawn(1.0, [Track("one", HIM, "english"), Track("two", Alignment((), HIM.phones), "other")])
    assert (len(alone.axes), len(both.axes)) == (4, 5)
    assert both.get_size_inches()[1] > alone.get_size_inches()[1]
    assert "other" in texts(both)


def test_phones_in_symbols_of_their_own_have_no_class():
    shown = texts(drawn(1.0, [Track("one", HIM, "other")]))
    assert {"other", "event"} <= set(shown)
    assert not {"vowel", "fricative", "nasal"} & set(shown)


def test_a_note_is_wrapped_and_not_cut():
    reason = "no alignment: " + " ".join(f"Sentence number {number} says what is wrong." for number in range(12))
    figure = drawn(0.5, [], note=reason)
    assert " ".join(" ".join(texts(figure)).split()).count(reason) == 1
    places = [ax.get_position() for ax in figure.axes]
    assert all(upper.y0 > lower.y1 for upper, lower in zip(places, places[1:], strict=False))  # noqa: RUF007
    assert places[-1].y0 > 0
    short = drawn(0.5, [], note="no alignment")
    assert figure.get_size_inches()[1] > short.get_size_inches()[1]
    assert max(len(line) for line in "\n".join(texts(drawn(0.5, [], note="x" * 5000))).splitlines()) < 110


def test_the_figure_grows_with_the_utterance_to_a_limit_and_then_goes_on_below():
    sizes = [drawn(seconds, [], note="none").get_size_inches() for seconds in (0.01, 1.0, 6.0, 30.0)]
    assert sizes[0][0] == sizes[1][0] < sizes[2][0] < sizes[3][0] == 20
    assert sizes[3][1] > 3 * sizes[2][1]
    assert [len(drawn(seconds, [], note="none").axes) for seconds in (6.0, 30.0)] == [3, 12]


def test_no_row_reaches_another_or_the_edge():
    figure = drawn(20.0, [Track("one", HIM, "english")], text="word " * 300)
    places = [ax.get_position() for ax in figure.axes]
    assert all(0 < place.y0 < place.y1 < 1 and 0 < place.x0 < place.x1 < 1 for place in places)
    assert all(upper.y0 > lower.y1 for upper, lower in zip(places, places[1:], strict=False))  # noqa: RUF007
    assert max(len(text) for text in texts(figure)) < 300


def test_all_alignments_of_an_utterance_are_drawn(corpus):
    out = picture.run(corpus / "m.jsonl", "u000", corpus / "cache", out=corpus / "all.svg")
    shown = out.read_text()
    # Two of one aligner are told apart by their digests.
    assert shown.count(">intervals<") == 2
    alone = picture.run(corpus / "m.jsonl", "u001", corpus / "cache", out=corpus / "one.svg").read_text()
    assert alone.count(">intervals<") == 1


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_the_same_picture_is_the_same_bytes(corpus, form):
    first, second = (
        picture.run(corpus / "m.jsonl", "u001", corpus / "cache", out=corpus / f"{number}.{form}").read_bytes()
        for number in (1, 2)
    )
    assert first == second
    if form == "png":
        pixels = imread(corpus / "1.png")
        assert pixels.shape[1] == 9 * 130
        assert np.median(pixels[..., :3]) == 1  # on white


def test_without_an_alignment_the_picture_says_so(corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    (corpus / "empty").mkdir(exist_ok=True)
    for cache, why in (
        (None, "there is no cache"),
        (Path("nowhere"), "there is no cache"),
        (Path("empty"), "'featcache align' makes one"),
        (Path("cache"), "has no row"),
    ):
        out = picture.run(Path("m.jsonl"), "u002", cache, out=Path("none.svg"))
        assert f"no alignment{'' if 'makes' in why else ':'}" in out.read_text()
        assert why in out.read_text().replace("&apos;", "'")
    assert picture.run(Path("m.jsonl"), "u002", None) == Path("u002.png")


def test_a_very_long_id_gives_a_file_name_that_fits(corpus, monkeypatch, tmp_path):
    ids = ["a/" + "b" * 500, "a/" + "b" * 501, "字" * 200, "🙂\N{MATHEMATICAL FRAKTUR SMALL A}" * 100, "x" * 120]
    manifest = Manifest.read(corpus / "m.jsonl")
    rows = [replace(manifest[0], id=name) for name in ids]
    Manifest(rows, folder=manifest.folder).write(corpus / "long.jsonl")
    monkeypatch.chdir(tmp_path)
    made = [picture.run(corpus / "long.jsonl", name, None) for name in ids]
    assert len(set(made)) == len(ids)
    assert all(path.is_file() and len(path.name.encode()) < 143 for path in made)
    assert made[0].name.startswith("a_" + "b" * 78 + "-")
    assert made[-1].name == "x" * 120 + ".png"


def test_what_cannot_be_drawn_is_told(corpus):
    manifest, cache = corpus / "m.jsonl", corpus / "cache"
    with pytest.raises(UnknownNameError, match="u999"):
        picture.run(manifest, "u999", cache)
    one = next(path.name for path in cache.glob("alignment-*"))
    with pytest.raises(CacheError, match="'u002' could not be computed"):
        picture.run(manifest, "u002", cache, [one], corpus / "x.png")
    with pytest.raises(CacheError, match="could be any of several"):
        picture.run(manifest, "u000", cache, ["intervals"], corpus / "x.png")
    with pytest.raises(CacheError, match="no cache"):
        picture.run(manifest, "u000", corpus / "nowhere", ["intervals"], corpus / "x.png")
    for out in ("x.gif", "x", "."):
        with pytest.raises(ConfigError, match=r"\.png, \.svg, \.pdf"):
            picture.run(manifest, "u000", cache, out=corpus / out)
    assert not (corpus / "x.png").exists()


def test_a_real_alignment_is_drawn_with_most_of_its_labels(shared_data):
    folder = shared_data / "alignment" / "librivox"
    name = "sense_and_sensibility_01_austen_64kb-0870"
    spoken = json.loads((folder / f"{name}.phone.json").read_text())
    words = [word for word in spoken["w"] if not word["t"].startswith("<")]
    phones = [phone for word in words for phone in word["w"]]
    found = Alignment(
        *(tuple(Interval(one["b"], one["b"] + one["d"], one["t"]) for one in tier) for tier in (words, phones))
    )
    figure = drawn(7.1, [Track("pocketsphinx", found, "english")], spoken["t"])
    shown = texts(figure)
    assert sum(shown.count(label) for label in {phone["t"] for phone in phones}) > 0.95 * len(phones)
