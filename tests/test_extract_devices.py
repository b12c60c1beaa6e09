"""An extraction on several devices is one extraction: the same bytes, one summary, an error told once."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from makers import write_corpus
from test_cache import tree

from featcache import Manifest
from featcache.errors import ConfigError, StreamError
from featcache.extract import Summary
from pipelines import devices, jobs
from pipelines.config import ExtractConfig
from pipelines.extract import dry_run, run


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    made = write_corpus(tmp_path / "corpus", [200.0, 200.0, 200.5, 200.0, 200.5, 0.4])  # two parts
    (made.folder / "u005.wav").write_bytes(b"not audio")
    return made


def config(device: str) -> ExtractConfig:
    return ExtractConfig(streams={"log_mel": {}}, device=device)


def extract(manifest: Manifest, cache: Path, device: str = "cpu,cpu") -> Summary:
    [summary] = run(config(device), manifest, cache)
    return summary


def test_two_devices_make_the_cache_of_one_and_one_summary(tmp_path: Path, manifest: Manifest) -> None:
    alone, together = extract(manifest, tmp_path / "alone", "cpu"), extract(manifest, tmp_path / "together")
    assert together == alone
    assert tree(tmp_path / "together") == tree(tmp_path / "alone")
    again = extract(manifest, tmp_path / "together")
    assert (again.computed, len(again.present), list(again.failures)) == ([], 5, ["u005"])
    assert tree(tmp_path / "together") == tree(tmp_path / "alone")


def test_a_device_that_does_not_exist_is_named_before_anything_runs(tmp_path: Path, manifest: Manifest) -> None:
    for wrong in ("cpu,cpux", "cpu,", "cpu,cuda:99"):
        with pytest.raises(ConfigError, match="There is no device"):
            extract(manifest, tmp_path / "cache", wrong)
    assert not (tmp_path / "cache").exists()


def test_a_plan_counts_the_devices(tmp_path: Path, manifest: Manifest) -> None:
    [[one], _], [[two], _] = (dry_run(config(device), manifest, tmp_path / "cache") for device in ("cpu", "cpu,cpu"))
    assert one.seconds is not None
    assert two.seconds == pytest.approx(one.seconds / 2)


def fails(*_: Any, on_progress: Any, on_message: Any) -> None:
    raise StreamError("the device is on fire.")


def dies(*_: Any, on_progress: Any, on_message: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_of_every_process_is_told_once(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_extract", fails)
    with pytest.raises(StreamError, match="On cpu, process 1 and cpu, process 2: the device is on fire.") as caught:
        extract(manifest, tmp_path / "cache")
    assert str(caught.value).count("on fire") == 1


def test_what_a_process_that_died_left_is_done_by_the_others(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class FirstDies(jobs.Job):
        def __init__(self, name: str, work: Any) -> None:
            super().__init__(name, partial(dies) if name.endswith("1") else work)

    monkeypatch.setattr(jobs, "Job", FirstDies)
    summary = extract(manifest, tmp_path / "cache")
    assert len(summary.computed) == 5
    assert "other processes did what these left. On cpu, process 1: its process was ended by SIGKILL" in caplog.text


def test_an_interrupt_stops_every_process_and_leaves_nothing_aside(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.extract._Bar.done", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(manifest, tmp_path / "cache")
    assert not (tmp_path / "cache" / ".tmp").exists()
    monkeypatch.undo()
    again = extract(manifest, tmp_path / "cache", "cpu")
    assert sorted([*again.computed, *again.present]) == [f"u{number:03d}" for number in range(5)]
    extract(manifest, tmp_path / "undisturbed", "cpu")
    assert tree(tmp_path / "cache") == tree(tmp_path / "undisturbed")
