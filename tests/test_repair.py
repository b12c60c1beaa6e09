"""What the messages tell a user to do mends what they are about, and costs no more than they say."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
import torch
import zarr
from makers import write_corpus
from test_cache import BACKENDS, Ramp, RampExtractor, run, tree

import featcache
from featcache import Manifest
from featcache.errors import CacheError, CheckpointError
from featcache.stream import Extractor
from featcache.verify import coverage, verify


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_corpus(tmp_path / "corpus", [0.3, 0.51, 0.2, 0.4])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two utterances a part."""
    monkeypatch.setattr("featcache.plan.PART_SECONDS", 0.9)


def damage(stream: featcache.CachedStream, name: str) -> str:
    """Flip a byte of an utterance's frames; return its part."""
    data = stream[name].tobytes()[:64]
    path = next(p for p in stream.path.rglob("*") if p.is_file() and p.suffix != ".json" and data in p.read_bytes())
    content = bytearray(path.read_bytes())
    content[content.index(data) + 7] ^= 1
    path.write_bytes(content)
    return stream.locate(name).index.name


@pytest.mark.parametrize("backend", BACKENDS)
def test_deleting_the_index_of_a_damaged_part_and_extracting_mends_it(
    tmp_path: Path, manifest: Manifest, backend: str
) -> None:
    run(manifest, tmp_path / "cache", backend=backend)
    whole = tree(tmp_path / "cache")
    stream = featcache.open(tmp_path / "cache")["ramp"]
    part = damage(stream, "u001")
    [problem] = verify(tmp_path / "cache")[1]
    assert f"Delete {part}.json and run the same extract again" in problem.what
    (stream.path / f"{part}.json").unlink()
    assert len(run(manifest, tmp_path / "cache", backend=backend).computed) == 2
    assert verify(tmp_path / "cache")[1] == []
    assert tree(tmp_path / "cache") == whole


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lost_description_is_written_anew_and_nothing_computed(
    tmp_path: Path, manifest: Manifest, backend: str
) -> None:
    run(manifest, tmp_path / "cache", backend=backend)
    whole = tree(tmp_path / "cache")
    (tmp_path / "cache" / Ramp().spec().name / "stream.json").unlink()
    assert run(manifest, tmp_path / "cache", backend=backend).computed == []
    assert tree(tmp_path / "cache") == whole


@pytest.mark.parametrize(("backend", "file"), [("zarr", "zarr.json"), ("hdf5", "all.h5")])
def test_a_lost_view_is_renewed_though_nothing_is_computed(
    tmp_path: Path, manifest: Manifest, backend: str, file: str
) -> None:
    run(manifest, tmp_path / "cache", backend=backend)
    whole = tree(tmp_path / "cache")
    (tmp_path / "cache" / Ramp().spec().name / file).unlink()
    assert run(manifest, tmp_path / "cache", backend=backend).computed == []
    assert tree(tmp_path / "cache") == whole


def test_a_damaged_part_does_not_stop_others_from_being_extracted(
    tmp_path: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    run(manifest.select(["u000", "u001"]), tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("part-*/zarr.json"):
        path.write_text("{")
    assert run(manifest, tmp_path / "cache").computed == ["u002", "u003"]
    assert "the views for other programs could not be written" in caplog.text
    assert len(verify(tmp_path / "cache")[1]) == 1


def test_views_list_what_is_current_and_not_what_it_replaced(tmp_path: Path, manifest: Manifest) -> None:
    for backend in BACKENDS:
        run(manifest, tmp_path / backend, backend=backend)
    samples, _ = soundfile.read(manifest.folder / "u002.wav", dtype="float32")
    soundfile.write(manifest.folder / "u002.wav", samples * 0.5, 16000, subtype="FLOAT")
    streams = {}
    for backend in BACKENDS:
        assert run(manifest, tmp_path / backend, backend=backend).computed == ["u002"]
        streams[backend] = featcache.open(tmp_path / backend)["ramp"]
    group = zarr.open_group(str(streams["zarr"].path), mode="r")
    at = group.attrs["utterances"]["u002"]
    frames = group[at["part"]]["frames"][:, at["start"] : at["start"] + at["num_frames"]]
    assert np.array_equal(frames, streams["zarr"]["u002"])
    with h5py.File(streams["hdf5"].path / "all.h5") as file:
        ids = list(file["ids"].asstr())
        assert sorted(ids) == manifest.ids
        start, count = (file[name][ids.index("u002")] for name in ("start", "num_frames"))
        assert np.array_equal(file["frames"][:, start : start + count], streams["hdf5"]["u002"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("full", [True, False])
def test_verify_compares_offsets_with_the_index(tmp_path: Path, manifest: Manifest, backend: str, full: bool) -> None:
    run(manifest, tmp_path / "cache", backend=backend)
    stream = featcache.open(tmp_path / "cache")["ramp"]
    name = next(iter(stream.indices))
    if backend == "zarr":
        zarr.open_array(str(stream.path / name / "offsets"), mode="r+")[1] += 3
    else:
        with h5py.File(stream.path / f"{name}.h5", "r+") as file:
            file["offsets"][1] += 3
    [problem] = verify(tmp_path / "cache", full)[1]
    assert "its offsets are not those of the index" in problem.what


def test_coverage_compares_recordings_with_what_was_computed(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache")
    samples, _ = soundfile.read(manifest.folder / "u002.wav", dtype="float32")
    soundfile.write(manifest.folder / "u002.wav", samples * 0.5, 16000, subtype="FLOAT")
    soundfile.write(manifest.folder / "u003.wav", samples * 0, 16000, subtype="FLOAT")
    [row] = coverage(featcache.open(tmp_path / "cache"), manifest)
    assert row.present == ["u000", "u001"]
    assert row.changed["u002"] == "its audio changed"
    assert "digital silence" in row.changed["u003"]
    [unread] = coverage(featcache.open(tmp_path / "cache"), manifest, inputs=False)
    assert unread.present == manifest.ids


def test_a_cache_opened_by_a_relative_path_outlives_a_change_of_folder(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(manifest, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    stream = featcache.open("cache")["ramp"]
    os.chdir("/")
    assert stream["u000"].shape == (3, 30, 8)


def test_a_model_that_does_not_load_leaves_no_stream_behind(tmp_path: Path, manifest: Manifest) -> None:
    class Broken(Ramp):
        def load(self, device: str, compute_dtype: str) -> Any:
            raise CheckpointError("no weights")

    with pytest.raises(CheckpointError):
        run(manifest, tmp_path / "cache", Broken())
    assert not (tmp_path / "cache").exists()


def test_what_made_a_stream_is_recorded_beside_its_identity(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache")
    values = json.loads((tmp_path / "cache" / Ramp().spec().name / "stream.json").read_text())
    assert {"featcache", "torch", "transformers"} <= set(values["made_with"])
    assert "torch" not in json.dumps(values["spec"])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_too_large_for_memory_is_tried_one_at_a_time(
    tmp_path: Path, manifest: Manifest, error: Exception
) -> None:
    class Narrow(Extractor):
        def extract(self, inputs: Any) -> Any:
            if len(inputs) > 1 or len(inputs[0]) > 8000:
                raise error
            return RampExtractor(1.0).extract(inputs)

    class Batched(Ramp):
        def load(self, device: str, compute_dtype: str) -> Any:
            return Narrow()

        def batches(self, lengths: Any, batch_size: int) -> list[list[int]]:
            return [list(range(len(lengths)))]

    summary = run(manifest, tmp_path / "cache", Batched())
    assert sorted(summary.computed) == ["u000", "u002", "u003"]
    assert "memory ran out" in summary.failures["u001"]


def test_another_fault_of_the_model_is_not_taken_for_a_bad_utterance(tmp_path: Path, manifest: Manifest) -> None:
    class Faulty(Extractor):
        def extract(self, inputs: Any) -> Any:
            raise RuntimeError("shape mismatch")

    class Wrong(Ramp):
        def load(self, device: str, compute_dtype: str) -> Any:
            return Faulty()

    with pytest.raises(RuntimeError, match="shape mismatch") as caught:
        run(manifest, tmp_path / "cache", Wrong())
    assert "while stream ramp-" in caught.value.__notes__[0]


def test_frames_that_disagree_with_the_audio_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    class Short(Ramp):
        def num_frames(self, num_samples: int) -> int:
            return num_samples // 160 + (num_samples > 8000)

    summary = run(manifest, tmp_path / "cache", Short())
    assert list(summary.failures) == ["u001"]
    assert "it got 51 frames where 8160 samples give 52" in summary.failures["u001"]


def test_a_file_in_place_of_the_cache_is_named(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheError, match="is a file. Give --cache a folder"):
        run(manifest, tmp_path / "cache")


def test_temporary_files_are_not_left_in_a_stream_by_a_kill(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache")
    left = tmp_path / "cache" / ".tmp" / "dead"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / ".tmp-1234").write_text("half an index")
    shutil.rmtree(manifest.folder / "none", ignore_errors=True)
    (manifest.folder / "u000.wav").unlink()
    run(manifest, tmp_path / "cache")
    assert not (tmp_path / "cache" / ".tmp").exists()
