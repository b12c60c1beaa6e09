"""Dictionaries in the CMU dictionary's form."""

from pathlib import Path

from featcache import sphinx_dictionary


def test_variants_stress_and_remarks_are_understood(tmp_path: Path):
    path = tmp_path / "own.dict"
    path.write_text("\ufeff;;; made by hand\nDash  D AE1 SH\n\ndash(2)  D AA1 SH # rare\ndon't D OW N T\n", "utf-8")
    assert sphinx_dictionary.read(str(path)) == {"dash": ["D AE SH", "D AA SH"], "don't": ["D OW N T"]}


def test_own_words_replace_all_of_the_others_pronunciations(tmp_path: Path):
    wheel = tmp_path / "wheel.dict"
    wheel.write_text("a AH\na(2) EY\nb B IY\n")
    merged = sphinx_dictionary.merged(wheel, {"a": ["AA", "AO", "AA"], "c": ["S IY"]}, tmp_path / "merged.dict")
    assert merged.read_text().splitlines() == ["b B IY", "a AA", "a(2) AO", "c S IY"]
