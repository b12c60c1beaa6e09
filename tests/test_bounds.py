"""Peak memory, open files and disk of extraction, verify and training do not grow with the corpus.

Each is run in a child over a corpus and over one ten times as large, and says how much memory of its own it had at most
(pages of mapped files, which the system takes back when it needs them, are not counted), and how many open files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import write_corpus

from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.stream import Features, StreamSpec

CHILD = """
import json, os, sys, threading
import featcache.plan
from featcache import Manifest
from featcache.extract import Options, extract
from featcache.streams.log_mel import LogMel
from featcache.verify import verify
from heads.fit_settings import FitSettings
from pipelines import train_heads
from pipelines.config import TrainConfig
import heads.inputs

heads.inputs._EVAL_BYTES = 4 * 2**20  # what is scored together, which a larger test part would fill sooner
featcache.plan.PART_SECONDS = 30.0
what, folder, backend = sys.argv[1:]
most, ended = {"kilobytes": 0, "files": 0}, threading.Event()

def watch():
    while not ended.wait(0.004):
        status = open("/proc/self/status").read()
        own = int(status.partition("RssAnon:")[2].split()[0])
        most["kilobytes"] = max(most["kilobytes"], own)
        most["files"] = max(most["files"], len(os.listdir("/proc/self/fd")))

threading.Thread(target=watch, daemon=True).start()
manifest, cache = Manifest.read(folder + "/m.jsonl"), folder + "/cache-" + backend
config = TrainConfig(
    head="mean_pool", streams=("wide",), folds="speaker", device="cpu", place="disk",
    fit=FitSettings(steps=20, batch_size=4, eval_every=10),
)
{
    "extract": lambda: extract(manifest, cache, LogMel(), Options(device="cpu", backend=backend)),
    "verify": lambda: verify(cache),
    "train": lambda: train_heads.run(config, manifest, cache, cache + "-run", overwrite=True),
}[what]()
ended.set()
print(json.dumps(most))
"""

# What is freed goes back to the system at once. glibc would keep blocks of up to 32 MiB for later ones, how many by
# chance (up to 70 MiB where training uses two threads): the peak would be of what it keeps, not of what is held.
ALLOCATION = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
TIMES = (1, 10)
MIB = 1024  # of the kilobytes that the system counts in


def run(what: str, folder: Path, backend: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, what, str(folder), backend], capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", **ALLOCATION},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return measured


def assert_bounded(what: str, folders: list[Path], backend: str, most_mib: int, record_property: Any) -> None:
    once, tenfold = (run(what, folder, backend) for folder in folders)
    for times, measured in zip(TIMES, (once, tenfold), strict=True):
        told = f"{measured['kilobytes'] / MIB:.0f} MiB, {measured['files']} files"
        record_property("bound", f"{what}, {backend}, {times}x: {told}")
    assert tenfold["kilobytes"] - once["kilobytes"] < most_mib * MIB, (what, once, tenfold)
    assert tenfold["files"] - once["files"] <= 4, (what, once, tenfold)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of 96 s of audio, 6 MiB as float32, and of ten times as much."""
    folders = [tmp_path_factory.mktemp(f"times-{times}") for times in TIMES]
    for folder, times in zip(folders, TIMES, strict=True):
        write_corpus(folder, [4.0] * (24 * times), speakers=4).write(folder / "m.jsonl")
    return folders


@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_extraction_takes_no_more_memory_files_or_disk_for_a_larger_corpus(
    recordings: list[Path], backend: str, record_property: Any
) -> None:
    assert_bounded("extract", recordings, backend, 16, record_property)
    cache = recordings[1] / f"cache-{backend}"
    used = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    frames = len(Manifest.read(recordings[1] / "m.jsonl")) * (1 + 4 * 16000 // 320) * 80 * 2
    assert frames < used < 1.6 * frames
    assert not (cache / ".tmp").exists()


WIDE = StreamSpec("wide", 1, "audio", {}, tuple(f"l{number}" for number in range(25)), 128, frame_shift_s=0.02)


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """A backend, and folders with a cache of 26 MiB in 7 parts, and of 256 MiB in 70."""
    folders = [tmp_path_factory.mktemp(f"wide-{times}") for times in TIMES]
    frames = np.random.default_rng(0).standard_normal((25, 150, 128)).astype(np.float32)
    for folder, times in zip(folders, TIMES, strict=True):
        utterances = [
            Utterance(f"u{number:03d}", label="ab"[number // 4 % 2], speaker=f"s{number % 4}")
            for number in range(28 * times)
        ]
        Manifest(utterances).write(folder / "m.jsonl")
        with StreamWriter(folder / f"cache-{request.param}", WIDE, request.param, "frames") as writer:
            for first in range(0, len(utterances), 4):
                stored = [
                    store(one.id, "0", 0, Features(frames), WIDE, "frames") for one in utterances[first : first + 4]
                ]
                writer.commit(stored, {})
    return request.param, folders


@pytest.mark.heavy
@pytest.mark.parametrize("what", ["verify", "train"])
def test_verify_and_training_take_no_more_memory_or_files_for_a_larger_cache(
    wide: tuple[str, list[Path]], what: str, record_property: Any
) -> None:
    backend, folders = wide
    assert_bounded(what, folders, backend, 32, record_property)
