"""Killed at any instant, what was committed is whole, and a rerun ends at the bytes of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from makers import write_corpus

import featcache
from featcache import Manifest
from featcache.extract import Options, extract
from featcache.streams.log_mel import LogMel
from featcache.verify import verify

KILLS = 12
CHILD = """
import sys
import featcache.plan
from featcache import Manifest
from featcache.extract import Options, extract
from featcache.streams.log_mel import LogMel

featcache.plan.PART_SECONDS = 6.0
manifest, cache, backend = sys.argv[1:]
extract(Manifest.read(manifest), cache, LogMel(), Options(device="cpu", backend=backend),
        on_planned=lambda plan: print("planned", flush=True))
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("corpus")
    made = write_corpus(folder, [2.0 + 0.05 * (number % 9) for number in range(90)])
    made.write(folder / "manifest.jsonl")
    return made


@pytest.mark.heavy
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_killed_extraction_loses_nothing_and_ends_at_the_same_bytes(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, backend: str, how: signal.Signals
) -> None:
    monkeypatch.setattr("featcache.plan.PART_SECONDS", 6.0)
    extract(manifest, tmp_path / "undisturbed", LogMel(), Options(device="cpu", backend=backend))
    undisturbed = featcache.open(tmp_path / "undisturbed")["log_mel"]
    cache = tmp_path / "killed"
    random_times = random.Random(0)
    committed: set[str] = set()
    landed = 0
    for _ in range(KILLS):
        arguments = [sys.executable, "-c", CHILD, str(manifest.folder / "manifest.jsonl"), str(cache), backend]
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ)
        assert child.stdout is not None
        child.stdout.readline()
        try:
            child.wait(random_times.uniform(0.0, 0.35))
        except subprocess.TimeoutExpired:
            child.send_signal(how)
            landed += 1
        child.wait()
        child.stdout.close()
        if list(cache.glob("*/stream.json")):
            stream = featcache.open(cache)["log_mel"]
            assert committed <= set(stream.ids)
            committed = set(stream.ids)
            for name in stream.ids:
                assert stream[name].tobytes() == undisturbed[name].tobytes()
            assert verify(cache)[1] == []
    assert landed > 0
    extract(manifest, cache, LogMel(), Options(device="cpu", backend=backend))
    assert tree(cache) == tree(tmp_path / "undisturbed")


@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_several_writers_at_once_leave_one_whole_cache(tmp_path: Path, manifest: Manifest, backend: str) -> None:
    cache = tmp_path / "cache"
    arguments = [sys.executable, "-c", CHILD, str(manifest.folder / "manifest.jsonl"), str(cache), backend]
    children = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert verify(cache)[1] == []
    assert featcache.open(cache)["log_mel"].ids == sorted(manifest.ids)
    assert not (cache / ".tmp").exists()
