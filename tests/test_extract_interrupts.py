"""Ctrl-C and SIGTERM end an extraction soon, whatever it is at, and leave nothing that runs on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from makers import write_corpus
from test_cache import tree

from featcache import Manifest
from featcache.streams.log_mel import LogMel
from pipelines import jobs
from pipelines.cli import app
from pipelines.config import ExtractConfig
from pipelines.extract import run

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    made = write_corpus(tmp_path / "corpus", [0.5] * 12)
    made.write(tmp_path / "corpus" / "manifest.jsonl")
    return made


def extract(manifest: Manifest, cache: Path) -> None:
    run(ExtractConfig(streams={"log_mel": {}}, device="cpu", batch_size=2), manifest, cache)


def strike(how: signal.Signals) -> None:
    """Send a real signal to this process, whose main thread runs the test."""
    os.kill(os.getpid(), how)
    time.sleep(0)  # handlers run between two instructions


def never(*_: Any) -> None:
    raise AssertionError("it went on")


@pytest.mark.parametrize("how", SIGNALS)
def test_a_signal_while_inputs_are_compared_ends_it_before_a_model_is_loaded(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    extract(Manifest(list(manifest)[:6], manifest.folder), tmp_path / "cache")
    before = tree(tmp_path / "cache")
    signals = iter([how])
    monkeypatch.setattr("pipelines.extract._Bar.checked", lambda *_: [strike(one) for one in signals])
    monkeypatch.setattr("pipelines.extract._Bar.planned", never)
    monkeypatch.setattr(LogMel, "load", never)
    with pytest.raises(KeyboardInterrupt):
        extract(manifest, tmp_path / "cache")
    assert tree(tmp_path / "cache") == before


def test_a_signal_that_was_swallowed_ends_it_at_the_next_comparison(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(Manifest(list(manifest)[:6], manifest.folder), tmp_path / "cache")

    signals = iter([signal.SIGINT])

    def swallowed(*_: object) -> None:
        try:
            for one in signals:
                strike(one)
        except KeyboardInterrupt:  # as a callback of C code does
            return

    monkeypatch.setattr("pipelines.extract._Bar.checked", swallowed)
    monkeypatch.setattr("pipelines.extract._Bar.planned", never)
    with pytest.raises(KeyboardInterrupt):
        extract(manifest, tmp_path / "cache")


@pytest.mark.parametrize("how", SIGNALS)
def test_a_signal_while_a_model_is_loaded_ends_it_and_leaves_nothing(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    def load(*_: object) -> None:
        strike(how)
        never()

    monkeypatch.setattr(LogMel, "load", load)
    with pytest.raises(KeyboardInterrupt):
        extract(manifest, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_signal_while_a_model_runs_ends_it_after_the_batch(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = LogMel.load
    batches = []

    def loaded(self: LogMel, *arguments: Any) -> Any:
        extractor = load(self, *arguments)
        real = extractor.extract

        def batch(inputs: Any) -> Any:
            strike(signal.SIGINT)
            batches.append(len(inputs))
            return real(inputs)

        object.__setattr__(extractor, "extract", batch)
        return extractor

    monkeypatch.setattr(LogMel, "load", loaded)
    with pytest.raises(KeyboardInterrupt):
        extract(manifest, tmp_path / "cache")
    assert batches == [1]  # log-mels are computed one by one
    assert "Stopping after this batch" in capsys.readouterr().err


def test_a_signal_while_what_others_did_is_counted_ends_it(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(*_: object) -> None:
        monkeypatch.undo()
        extract(manifest, tmp_path / "cache")
        monkeypatch.setattr("pipelines.extract._Bar.elsewhere", elsewhere)

    def elsewhere(_: object, count: int, __: float) -> None:
        if count:
            counted.append(count)
            strike(signal.SIGINT)

    counted: list[int] = []
    monkeypatch.setattr("pipelines.extract._Bar.planned", planned)
    with pytest.raises(KeyboardInterrupt):
        extract(manifest, tmp_path / "cache")
    assert counted == [1]


def holds(folder: Path, on_progress: Any, on_message: Any) -> None:
    """Load a model for ever, and tell nothing."""
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(600)


def main(folder: str) -> None:
    """Run the command in a process of its own; its children load for ever."""

    class Holds(jobs.Job):
        def __init__(self, name: str, work: Callable[..., Any]) -> None:
            super().__init__(name, partial(holds, Path(folder)))

    jobs.Job = Holds  # type: ignore[misc]
    app(["extract", f"{folder}/corpus/manifest.jsonl", "--cache", f"{folder}/cache", "--stream", "log_mel",
         "--device", "cpu,cpu"])  # fmt: skip


@pytest.mark.parametrize("how", SIGNALS)
def test_a_signal_to_all_processes_ends_several_devices_at_once(
    tmp_path: Path, manifest: Manifest, how: signal.Signals
) -> None:
    """As a terminal sends Ctrl-C, and Slurm or systemd SIGTERM."""
    command = f"import sys; sys.path[:] = {sys.path!r}; import test_extract_interrupts as t; t.main({str(tmp_path)!r})"
    parent = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        while len(children := list(tmp_path.glob("*.pid"))) < 2:
            assert parent.poll() is None
            time.sleep(0.01)
        os.killpg(parent.pid, how)
        told = parent.communicate(timeout=300)[1]
    finally:
        parent.kill()
    assert parent.returncode == 130, told
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(int(child.stem), 0)
    assert not (tmp_path / "cache" / ".tmp").exists()
