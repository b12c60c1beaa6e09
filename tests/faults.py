"""What the tests of faults share: children that extract, a record of what each fault cost, and its table.

A test gives its :class:`Cost` to pytest as a property; `conftest.py` prints all of them as one table at the end.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import featcache
from featcache import Manifest
from featcache.verify import verify

PROPERTY = "fault"

CHILD = """
import sys, signal
if sys.argv[4] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import featcache.plan
from featcache import Manifest
from featcache.errors import FeatcacheError
from featcache.extract import Options, extract
from featcache.streams.log_mel import LogMel

featcache.plan.PART_SECONDS = 6.0
manifest, cache, backend = sys.argv[1:4]
try:
    extract(Manifest.read(manifest), cache, LogMel(), Options(device="cpu", backend=backend),
            on_planned=lambda plan: print(f"planned {len(plan.items)}", flush=True),
            on_done=lambda count, seconds: print(f"done {count}", flush=True))
except FeatcacheError as error:
    print(f"error: {error}", flush=True)
    sys.exit(1)
"""
"""Extracts; says how many utterances are to be computed, and each time how many were."""


@dataclass
class Cost:
    """What one kind of fault cost, over all times that it was done.

    Attributes:
        fault: what was done.
        backend: to a cache of which backend.
        injected: how many times.
        committed: utterances that were in the cache when it struck, over all times.
        lost: of these, not there or not the same bits afterwards.
        recomputed: utterances computed more than once.
        recover_s: longest time in seconds that the next run took until it computed on.
    """

    fault: str
    backend: str
    injected: int = 0
    committed: int = 0
    lost: int = 0
    recomputed: int = 0
    recover_s: float = 0.0

    def told(self) -> tuple[str, str]:
        """Return the property that pytest keeps."""
        return PROPERTY, json.dumps(asdict(self))


def table(costs: Sequence[str]) -> str:
    """Return costs, as their tests told them, as a table."""
    rows = [("fault", "backend", "injected", "committed before", "lost", "computed again", "seconds to recover")]
    for cost in sorted((Cost(**json.loads(text)) for text in costs), key=lambda one: (one.fault, one.backend)):
        numbers = (str(number) for number in (cost.injected, cost.committed, cost.lost, cost.recomputed))
        rows.append((cost.fault, cost.backend, *numbers, f"{cost.recover_s:.2f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def start(
    manifest: Manifest, cache: Path, backend: str, full: bool = False, before: Callable[[], None] | None = None
) -> "subprocess.Popen[str]":
    """Start a child that extracts; `full` lets a file that grows too large be an error rather than a signal."""
    command = [sys.executable, "-c", CHILD, str(manifest.folder / "manifest.jsonl"), str(cache), backend]
    return subprocess.Popen(
        [*command, "full" if full else ""], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=before,
    )  # fmt: skip


def computed(told: str) -> int:
    """Return how many utterances a child computed, from what it told."""
    return sum(int(line.split()[1]) for line in told.splitlines() if line.startswith("done "))


def finish(child: "subprocess.Popen[str]") -> tuple[int, float]:
    """Wait for a child to end well; return how many utterances it computed, and after what time it began to."""
    began = time.monotonic()
    assert child.stdout is not None
    first = child.stdout.readline()
    waited = time.monotonic() - began
    told, wrong = child.communicate(timeout=300)
    assert child.returncode == 0, wrong
    assert first.startswith("planned ")
    return computed(told), waited


def check(cache: Path, truth: Mapping[str, bytes], before: set[str], cost: Cost) -> set[str]:
    """Look at a cache after a fault: count what is lost, and return what is committed.

    Args:
        cache: the cache's folder.
        truth: id to frames, of a cache that was never disturbed.
        before: ids that were committed when last looked at.
        cost: where losses are counted.
    """
    if not list(cache.glob("*/stream.json")):
        cost.lost += len(before)
        return set()
    stream = featcache.open(cache)["log_mel"]
    held = set(stream.ids)
    wrong = {name for name in held if stream[name].tobytes() != truth[name]}
    cost.lost += len(before - held) + len(wrong)
    assert verify(cache)[1] == []
    return held


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder and its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
