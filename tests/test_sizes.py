"""What `info` says a stream takes on disk is what its files take."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from makers import write_corpus

import featcache
from featcache.commit import StreamWriter, store
from featcache.extract import Options, extract
from featcache.sizes import stream_bytes
from featcache.stream import Features, StreamSpec
from featcache.streams.ge2e_states import Ge2eStates
from featcache.streams.log_mel import LogMel


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float32"},
        {"dtype": "int8"},
        {"compress": True},
        {"dtype": "int8", "compress": True},
        {"tier": "stats"},
    ],
    ids=str,
)
def test_the_size_is_that_of_all_files(tmp_path: Path, backend: str, options: dict[str, object]) -> None:
    manifest = write_corpus(tmp_path / "corpus", [0.3, 1.2, 0.01, 0.8])  # one is too short: a failure in the index
    for stream in (LogMel(), Ge2eStates()):
        extract(manifest, tmp_path / "cache", stream, Options(device="cpu", backend=backend, **options))  # type: ignore[arg-type]
    cache = featcache.open(tmp_path / "cache")
    for name in cache:
        assert cache[name].failures
        assert stream_bytes(cache[name]) == on_disk(tmp_path / "cache" / name) > 0


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_arrays_of_any_shape_are_counted(tmp_path: Path, backend: str) -> None:
    frames = np.random.default_rng(0).standard_normal((3, 40, 5), np.float32)
    further = {"span": np.zeros((40, 2), np.int32), "token": np.zeros(40, np.int32)}
    values = {"voiced_s": np.float32(1), "functionals": np.zeros(7, np.float32)}
    forms = [
        {name: {"dtype": str(one.dtype), "shape": one.shape[start:]} for name, one in arrays.items()}
        for start, arrays in ((1, further), (0, values))
    ]
    spec = StreamSpec("made", 1, "audio", {}, ("a", "b", "c"), 5, frame_arrays=forms[0], utterance_arrays=forms[1])
    with StreamWriter(tmp_path, spec, backend, "frames") as writer:
        for name in "xy":
            features = Features(frames, further, {key: np.asarray(value) for key, value in values.items()})
            writer.commit([store(name, "0", 0, features, spec, "frames")], {})
    stream = featcache.open(tmp_path)["made"]
    assert stream_bytes(stream) == on_disk(stream.path) > 0


def test_a_part_that_is_lost_counts_nothing(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", [0.3, 0.5])
    extract(manifest, tmp_path / "cache", LogMel(), Options(device="cpu"))
    stream = featcache.open(tmp_path / "cache")["log_mel"]
    [part] = stream.indices
    shutil.rmtree(stream.path / part)
    assert stream_bytes(stream) == on_disk(stream.path) > 0
