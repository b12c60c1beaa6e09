"""A cache that was damaged says where; a whole one says nothing."""

from pathlib import Path

import pytest
from makers import write_corpus
from test_cache import BACKENDS, Ramp, run

import featcache
from featcache import Manifest, Utterance
from featcache.errors import CacheError
from featcache.verify import coverage, verify


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_corpus(tmp_path / "corpus", [0.3, 0.51, 0.2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"dtype": "int8"}, {"compress": True}, {"tier": "stats"}], ids=str)
def test_a_whole_cache_has_no_problem(tmp_path: Path, manifest: Manifest, backend: str, options: dict) -> None:
    run(manifest, tmp_path / "cache", backend=backend, **options)
    for full in (True, False):
        assert verify(tmp_path / "cache", full) == (3, [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_flipped_byte_of_the_data_is_found_and_named(tmp_path: Path, manifest: Manifest, backend: str) -> None:
    run(manifest, tmp_path / "cache", backend=backend)
    stream = featcache.open(tmp_path / "cache")["ramp"]
    [index] = stream.indices.values()
    data = stream["u001"].tobytes()[:64]
    path = next(p for p in stream.path.rglob("*") if p.is_file() and p.suffix != ".json" and data in p.read_bytes())
    content = bytearray(path.read_bytes())
    content[content.index(data) + 7] ^= 1
    path.write_bytes(content)
    _, problems = verify(tmp_path / "cache")
    assert [problem.where for problem in problems] == [f"{stream.name}/{index.name}"]
    assert "the bytes of 'u001' changed" in problems[0].what


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_part_is_found_even_in_fast_mode(tmp_path: Path, manifest: Manifest, backend: str) -> None:
    run(manifest, tmp_path / "cache", backend=backend)
    stream = featcache.open(tmp_path / "cache")["ramp"]
    for path in sorted(stream.path.glob("part-*"), reverse=True):
        if path.suffix != ".json":
            path.rename(tmp_path / "away")
    _, problems = verify(tmp_path / "cache", full=False)
    assert len(problems) == 1
    assert "run the same extract again" in problems[0].what
    with pytest.raises(CacheError, match="cannot be read.*run the same extract again"):
        stream["u000"]


def test_coverage_tells_present_from_failed_from_missing(tmp_path: Path, manifest: Manifest) -> None:
    (manifest.folder / "u001.wav").write_bytes(b"")
    run(manifest, tmp_path / "cache")
    wider = Manifest([*manifest, Utterance("new", "new.wav")], manifest.folder)
    [row] = coverage(featcache.open(tmp_path / "cache"), wider)
    assert row.stream == Ramp().spec().name
    assert (row.present, list(row.failed), row.missing) == (["u000", "u002"], ["u001"], ["new"])
