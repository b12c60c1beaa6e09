"""An extraction on several devices is one extraction: the same bytes, one summary, an error told once."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from makers import write_corpus
from test_cache import tree

import featcache
from featcache import Manifest
from featcache.errors import ConfigError, StreamError
from featcache.extract import Options, Summary, plan_stream
from featcache.plan import Plan
from featcache.streams.log_mel import LogMel
from pipelines import devices, jobs
from pipelines.config import ExtractConfig
from pipelines.extract import _Bar, dry_run, run


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


def dies_early(work: Any, dead: Path, on_progress: Any, on_message: Any) -> None:
    told = 0

    def tell(text: str) -> None:
        nonlocal told
        on_message(text)
        what, values = json.loads(text)
        told += what == "done" and values[0] > 0
        if told == 3:
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    work(on_progress=on_progress, on_message=tell)


def begins_late(work: Any, dead: Path, on_progress: Any, on_message: Any) -> None:
    while not dead.exists():
        time.sleep(0.01)
    work(on_progress=on_progress, on_message=on_message)


def test_an_error_of_every_process_is_told_once(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_extract", fails)
    with pytest.raises(StreamError, match="On cpu, process 1 and cpu, process 2: the device is on fire.") as caught:
        extract(manifest, tmp_path / "cache")
    assert str(caught.value).count("on fire") == 1


def test_what_a_process_that_died_left_is_done_by_the_others_and_counted_once(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of two commits its first part and dies before its third; the other begins when it died."""

    class FirstDies(jobs.Job):
        def __init__(self, name: str, work: Any) -> None:
            super().__init__(name, partial(dies_early if name.endswith("1") else begins_late, work, tmp_path / "dead"))

    monkeypatch.setattr(jobs, "Job", FirstDies)
    monkeypatch.setattr("featcache.plan.PART_SECONDS", 150.0)  # one utterance a part
    done: list[tuple[int, float]] = []
    elsewhere: list[tuple[int, float]] = []
    plans: list[Plan] = []
    nothing: Any = lambda *_: None  # noqa: E731
    summary = devices.extract_on(
        ["cpu", "cpu"], manifest, tmp_path / "cache", LogMel(), Options(), plans.append,
        lambda *values: done.append(values), nothing, nothing, {}, lambda *values: elsewhere.append(values),
    )  # fmt: skip
    assert "did what these left. On cpu, process 1: its process was ended by SIGKILL." in caplog.text
    assert {"u000"} <= set(summary.elsewhere) <= {"u000", "u001"}  # the second was perhaps committed
    assert sorted([*summary.computed, *summary.elsewhere]) == [f"u{number:03d}" for number in range(5)]
    assert sum(count for count, _ in elsewhere) == len(summary.elsewhere)
    assert sum(count for count, _ in [*done, *elsewhere]) == 5
    assert sum(seconds for _, seconds in [*done, *elsewhere]) == pytest.approx(plans[0].audio_s)
    assert not (tmp_path / "cache" / ".tmp").exists()


def test_the_bar_of_what_was_taken_back_ends_where_all_is_done(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, _, plan = plan_stream(manifest, tmp_path / "cache", LogMel(), Options())
    with _Bar(LogMel()) as bar:
        bar.planned(plan)
        shown = bar._bar
        assert shown is not None
        whole = shown.total
        assert whole is not None
        for count in (3, 3, -2):
            bar.done(count, count * plan.audio_s / 5)
            assert shown.n <= whole
        assert shown.n == pytest.approx(whole * 4 / 5)
        bar.elsewhere(1, plan.audio_s / 5)
        assert shown.n == whole


def test_inputs_are_compared_once_for_all_processes(tmp_path: Path, manifest: Manifest) -> None:
    """What the parent compared is gone before the others begin, and they do not miss it."""
    first = Manifest(list(manifest)[:2], manifest.folder)
    extract(first, tmp_path / "cache", "cpu")
    checked: list[int] = []

    def planned(_: object) -> None:
        for utterance in first:
            manifest.audio_path(utterance).unlink()

    nothing: Any = lambda *_: None  # noqa: E731
    summary = devices.extract_on(
        ["cpu", "cpu"], manifest, tmp_path / "cache", LogMel(), Options(), planned, nothing, checked.append, nothing,
        {}, nothing,
    )  # fmt: skip
    assert (summary.present, sorted(summary.computed)) == (first.ids, ["u002", "u003", "u004"])
    assert list(summary.failures) == ["u005"]
    assert sum(checked) == 2


def test_nothing_to_compute_is_compared_once_and_starts_no_process(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Manifest([utterance for utterance in manifest if utterance.id != "u005"], manifest.folder)
    extract(first, tmp_path / "cache", "cpu")
    (manifest.folder / "u005.wav").write_bytes(b"not audio")
    nothing: Any = lambda *_: None  # noqa: E731

    def planned(_: object) -> None:
        for utterance in first:
            manifest.audio_path(utterance).unlink()

    monkeypatch.setattr(jobs, "Job", nothing)
    summary = devices.extract_on(
        ["cpu", "cpu"], manifest, tmp_path / "cache", LogMel(), Options(), planned, nothing, nothing, nothing, {},
        nothing,
    )  # fmt: skip
    assert (summary.present, summary.computed, list(summary.failures)) == (first.ids, [], ["u005"])
    assert list(featcache.open(tmp_path / "cache")["log_mel"].failures) == ["u005"]


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
