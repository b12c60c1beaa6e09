import csv
import json

import pytest
from makers import write_corpus

from featcache.errors import CacheError, ConfigError, StreamError
from pipelines import align, align_score

PHONES = [(0.1, 0.22, "S"), (0.22, 0.35, "IY1"), (0.4, 0.46, "HH"), (0.46, 0.53, "IH0"), (0.53, 0.65, "M")]
WORDS = [(0.1, 0.35, "see"), (0.4, 0.65, "him")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Three alignments of a corpus: one, one that is later (more so in u002) and lacks u000, one in other symbols."""
    folder = tmp_path_factory.mktemp("score")
    manifest = write_corpus(folder / "corpus", [1.0] * 4)
    late_s = {"u001": 0.03, "u002": 0.15, "u003": 0.03}
    for form, ids, labels in (
        ("csv", {"u000": 0, "u001": 0, "u002": 0}, {}),
        ("late", late_s, {}),
        ("odd", late_s, {"M": "ø"}),
    ):
        lines = ["id,tier,start_s,end_s,label"]
        for name, late in ids.items():
            for tier, intervals in (("words", WORDS), ("phones", PHONES)):
                lines += [
                    f"{name},{tier},{start + late},{end + late},{labels.get(label, label)}"
                    for start, end, label in intervals
                ]
        (folder / f"{form}.csv").write_text("\n".join(lines) + "\n")
        silence = json.dumps(["sil", form])  # a setting that tells them apart
        align.run(
            manifest,
            folder / "cache",
            "intervals",
            [f"file={folder / form}.csv", "symbols=english", f"silence={silence}"],
            None,
            {},
        )
    return folder / "cache"


def named(cache, form):
    """Return the full name of the alignment made with a setting."""
    [found] = [path.parent for path in cache.glob("*/stream.json") if form in path.read_text()]
    return found.name


def test_two_alignments_are_compared_utterance_by_utterance(cache, tmp_path):
    a, b = named(cache, '"csv"'), named(cache, '"late"')
    said = align_score.run(a, b, cache, tmp_path / "out")
    assert f"A: {a} (intervals)" in said
    assert "2 utterances in both" in said
    assert "Only in A (1): u000" in said
    assert "Only in B (1): u003" in said
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (score["a"], score["b"], score["frame_shift_ms"]) == (a, b, 20)
    assert score["phones"]["num_matched"] == 10
    assert score["phones"]["mean_ms"] == pytest.approx(90)
    with (tmp_path / "out" / "utterances.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["u002", "u001"]  # the worst first
    assert [float(row["median_ms"]) for row in rows] == pytest.approx([150, 30])


def test_a_folder_is_named_as_well_as_a_stream(cache):
    a, b = named(cache, '"csv"'), named(cache, '"late"')
    said = align_score.run(a, b, cache)
    assert align_score.run(str(cache / a), f"{cache / b}/", None) == said
    itself = align_score.run(a, a, cache, frame_shift_ms=10)
    assert "100.0 %" in itself
    assert "Only in" not in itself


def test_what_cannot_be_compared_is_told(cache, tmp_path):
    a, odd = named(cache, '"csv"'), named(cache, '"odd"')
    with pytest.raises(StreamError, match=r"'u001' cannot be compared in .*'ø' stands for none of the inventory"):
        align_score.run(a, odd, cache)
    with pytest.raises(CacheError, match="could be any of several"):
        align_score.run(a, "intervals", cache)
    with pytest.raises(CacheError, match="no alignment 'mfa'"):
        align_score.run(a, "mfa", cache)
    with pytest.raises(ConfigError, match="no folder of a stream"):
        align_score.run(a, a, None)
    with pytest.raises(ConfigError, match="at least 1"):
        align_score.run(a, a, cache, frame_shift_ms=0)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="name of a folder"):
        align_score.run(a, a, cache, tmp_path / "file")
