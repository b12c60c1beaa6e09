"""Start-up: whole processes, from nothing to their end, beside `python -c pass` and the packages that they need.

Caches of 1000 parts with 60 utterances each, 25 layers; files and byte code are in the page cache. The reference of
what opens such a cache is a process that reads its 1000 index files as JSON, and checks nothing.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.caches import UTTERANCES, many_parts
from benchmarks.timing import compare
from featcache.cache import open as open_cache

PARTS, ROUNDS = 1000, 9

_COMMAND = ("-m", "pipelines.cli")
_OPEN = "import featcache; stream = featcache.open({cache!r})['hidden_states']"
_READ = "import glob, json; [json.load(open(path, 'rb')) for path in glob.glob({cache!r} + '/*/part-*.json')]"


def run(quick: bool = False) -> list[dict[str, object]]:
    parts = 3 if quick else PARTS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = {backend: folder / backend for backend in ("zarr", "hdf5")}
        for backend, cache in caches.items():
            many_parts(cache, backend, parts)
        manifest = folder / "manifest.jsonl"
        ids = open_cache(caches["hdf5"])["hidden_states"].ids
        manifest.write_text("".join(json.dumps({"id": each, "audio": f"{each}.wav"}) + "\n" for each in ids))
        processes: dict[str, Sequence[str]] = {
            "python -c pass": ("-c", "pass"),
            "import typer": ("-c", "import typer"),
            "import numpy": ("-c", "import numpy"),
            "import torch": ("-c", "import torch"),
            "featcache --help": (*_COMMAND, "--help"),
            "featcache extract --help": (*_COMMAND, "extract", "--help"),
            "featcache train-heads --help": (*_COMMAND, "train-heads", "--help"),
        }
        for backend, cache in caches.items():
            of = f", {parts} parts, {backend}"
            opened = _OPEN.format(cache=str(cache))
            processes |= {
                f"plain JSON of the indices{of}": ("-c", _READ.format(cache=str(cache))),
                f"featcache.open{of}": ("-c", opened),
                f"its first window{of}": ("-c", f"{opened}; stream.window(stream.ids[-1], 0, 96)"),
                f"featcache info{of}": (*_COMMAND, "info", str(cache)),
                f"featcache coverage --no-inputs{of}": (
                    *_COMMAND,
                    "coverage",
                    str(cache),
                    str(manifest),
                    "--no-inputs",
                ),
            }
        contestants: dict[str, Callable[[], object]] = {
            name: partial(_process, arguments) for name, arguments in processes.items()
        }
        times = compare(contestants, rounds=2 if quick else ROUNDS)
    base = times["python -c pass"][0]
    return [
        {
            "process": name,
            "median s": round(seconds, 3),
            "spread s": round(spread, 3),
            "python -c pass": f"x {seconds / base:.1f}",
            "utterances": parts * UTTERANCES if "parts" in name else "",
        }
        for name, (seconds, spread) in times.items()
    ]


def _process(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
