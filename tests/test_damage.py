"""Every file of a cache damaged in every way: it is found, dropped, and computed again to the same bytes.

The damage is done to each file in turn, in both backends. What must hold after each: an utterance reads back bit-exact
or not at all; `verify` says which part it was; `verify --repair` drops that and nothing else; the same extract brings
back the bytes of a cache that was never damaged, computing no more than the parts that were dropped.
"""

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import zarr
from makers import write_corpus
from test_cache import BACKENDS, Ramp, run, tree

import featcache
from featcache import Manifest
from featcache.errors import FeatcacheError
from featcache.verify import coverage, repair, verify
from featcache.view import View
from pipelines import verify as pipeline

VIEWS = ("all.h5", "zarr.json")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_corpus(tmp_path_factory.mktemp("corpus"), [0.3, 0.51, 0.2, 0.4])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two utterances a part."""
    monkeypatch.setattr("featcache.plan.PART_SECONDS", 0.9)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def delete(path: Path) -> None:
    path.unlink()


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: list[Callable[[Path], None]] = [flip_a_byte, truncate, empty, delete, fill_with_zeros]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_found_dropped_and_mended(
    tmp_path: Path, manifest: Manifest, backend: str, damage: Callable[[Path], None]
) -> None:
    whole = tmp_path / "whole"
    run(manifest, whole, backend=backend)
    truth = featcache.open(whole)["ramp"]
    expected = tree(whole)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(files) >= 6
    for file in files:
        cache = tmp_path / "cache"
        shutil.copytree(whole, cache)
        damage(cache / file)
        read = 0
        with suppress(FeatcacheError):  # and no other error
            stream = featcache.open(cache)["ramp"]
            for name in stream.ids:
                read += np.array_equal(stream[name], truth[name])
        _, problems = verify(cache)
        mended = [problem.file for problem in problems]
        is_view = file.name in VIEWS and len(file.parts) == 2
        if is_view:
            assert set(mended) <= {cache / file}  # derived: most damage is mended by the next extract
        elif damage is delete and file.name.startswith("part-"):
            assert problems == [] if file.suffix == ".json" else len(problems) == 1  # no index, no part
        elif damage is delete and file.name == "stream.json":
            assert [path.name for path in mended] == ["stream.json"]
        elif not problems:  # a byte that no number depends on: of HDF5's or JSON's padding
            assert read == 4, file
            assert damage is flip_a_byte
        else:
            assert len(set(mended)) == 1, file
        dropped = repair(cache, problems)
        assert len(dropped) == len(set(mended))
        # A description that is gone is written by the next extract, which knows it.
        assert [problem.file.name for problem in verify(cache)[1]] == [
            name for name in [file.name] if problems and name == "stream.json"
        ]
        computed = run(manifest, cache, backend=backend).computed
        assert len(computed) <= 2
        if file.name != "stream.json" and not is_view and problems:
            assert len(computed) == 2
        found = tree(cache)
        if problems or damage is delete or is_view:
            assert found == expected, file
        after = featcache.open(cache)["ramp"]
        assert all(np.array_equal(after[name], truth[name]) for name in manifest.ids)
        shutil.rmtree(cache)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_damaged_index_is_named_and_the_other_parts_are_checked(
    tmp_path: Path, manifest: Manifest, backend: str
) -> None:
    cache = tmp_path / "cache"
    run(manifest, cache, backend=backend)
    expected = tree(cache)
    folder = featcache.open(cache)["ramp"].path
    first, second = sorted(folder.glob("part-*.json"))
    first.write_text("{")
    other = featcache.open(tmp_path / "cache")
    with pytest.raises(FeatcacheError, match=first.name):
        other["ramp"]
    assert verify(cache)[0] == 2
    second.write_text('{"format": 1}')
    count, problems = verify(cache)
    assert (count, [problem.file.name for problem in problems]) == (0, [first.name, second.name])
    repair(cache, problems)
    assert run(manifest, cache, backend=backend).computed == manifest.ids
    assert tree(cache) == expected


def test_features_of_an_earlier_input_do_not_come_back_for_those_that_were_dropped(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", [0.3, 0.51])
    cache = tmp_path / "cache"
    run(manifest, cache)
    samples, _ = soundfile.read(manifest.folder / "u001.wav", dtype="float32")
    soundfile.write(manifest.folder / "u001.wav", samples * 0.5, 16000, subtype="FLOAT")
    assert run(manifest, cache).computed == ["u001"]
    current = featcache.open(cache)["ramp"]["u001"].copy()
    part = featcache.open(cache)["ramp"].locate("u001").index.name
    path = next(path for path in (cache / Ramp().spec().name / part / "frames").rglob("0") if path.is_file())
    fill_with_zeros(path)
    lines: list[str] = []
    assert len(pipeline.run(cache, True, lines.append, mend=True)) == 1
    assert lines[-1] == f"Dropped {Ramp().spec().name}/{part}: 1 utterances; the same extract computes them again."
    stream = featcache.open(cache)["ramp"]
    assert "damaged and dropped" in stream.failures["u001"]
    with pytest.raises(FeatcacheError, match=r"lacks 1 of 2 utterances, such as 'u001' \(what was computed of it was"):
        View(stream, ["u000", "u001"])
    [row] = coverage(featcache.open(cache), manifest)
    assert (list(row.present), list(row.failed)) == (["u000"], ["u001"])
    assert run(manifest, cache).computed == ["u001"]
    stream = featcache.open(cache)["ramp"]
    assert stream.failures == {}
    assert np.array_equal(stream["u001"], current)
    assert verify(cache)[1] == []


def test_a_description_that_is_damaged_is_dropped_and_nothing_computed(tmp_path: Path, manifest: Manifest) -> None:
    cache = tmp_path / "cache"
    run(manifest, cache)
    expected = tree(cache)
    (cache / Ramp().spec().name / "stream.json").write_text("[]")
    [problem] = verify(cache)[1]
    assert "Its parts cannot be checked before" in problem.what
    assert "computes nothing" in repair(cache, [problem])[0]
    assert run(manifest, cache).computed == []
    assert tree(cache) == expected


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_other_programs_read_beside_the_numbers_is_compared_too(
    tmp_path: Path, manifest: Manifest, backend: str, full: bool
) -> None:
    cache = tmp_path / "cache"
    run(manifest, cache, backend=backend)
    expected = tree(cache)
    stream = featcache.open(cache)["ramp"]
    part = stream.locate("u000").index.name
    if backend == "zarr":
        group = zarr.open_group(str(stream.path / part), mode="r+")
        group.attrs["layers"] = ["a", "b", "x"]
    else:
        with h5py.File(stream.path / f"{part}.h5", "r+") as file:
            file["layers"][2] = "x"
    [problem] = verify(cache, full)[1]
    assert "what it says of itself to other programs changed" in problem.what
    repair(cache, [problem])
    run(manifest, cache, backend=backend)
    assert tree(cache) == expected


@pytest.mark.parametrize("compress", [True, False])
def test_changed_metadata_of_a_zarr_array_are_found(tmp_path: Path, manifest: Manifest, compress: bool) -> None:
    cache = tmp_path / "cache"
    run(manifest, cache, compress=compress)
    assert verify(cache)[1] == []
    stream = featcache.open(cache)["ramp"]
    path = stream.path / stream.locate("u000").index.name / "frames" / "zarr.json"
    path.write_text(path.read_text().replace('"layers"', '"sreyal"'))
    [problem] = verify(cache)[1]
    assert "what it says of itself to other programs changed" in problem.what
