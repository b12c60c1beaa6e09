"""Every benchmark runs, in its smallest size, and gives rows with the same columns; the figures are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES


@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("alignment", "wrong_texts")])
def test_a_benchmark_runs(tmp_path: Path, name: str) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    rows = written["results"][name]
    assert rows
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert written["machine"]["quick"] is True
    assert all(str(value) in done.stdout for value in rows[0].values())
