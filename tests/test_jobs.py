"""Jobs in processes of their own: progress, failures, deaths, Ctrl-C, and the share of the cores."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from featcache.errors import ConfigError
from featcache.memory import PROCESSES
from pipelines import jobs
from pipelines.jobs import Job

Progress = Callable[[int, int], None]
Message = Callable[[str], None]
HERE = Path(__file__).parent


def write(path: Path, on_progress: Progress, on_message: Message) -> None:
    print("libraries print, and nothing breaks")
    on_progress(1, 2)
    on_message("half")
    path.write_text(f"{os.environ['OMP_NUM_THREADS']} {os.getpid()} {os.environ[PROCESSES]}")
    on_progress(2, 2)


def fail(on_progress: Progress, on_message: Message) -> None:
    raise ConfigError("There is no such thing. Name another.")


def crash(on_progress: Progress, on_message: Message) -> None:
    raise KeyError("a bug")


def die(on_progress: Progress, on_message: Message) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def meet(own: Path, other: Path, on_progress: Progress, on_message: Message) -> None:
    """Wait for another job that runs at the same time."""
    own.touch()
    deadline = time.monotonic() + 60
    while not other.exists():
        if time.monotonic() > deadline:
            raise ConfigError("the other job never came")
        time.sleep(0.01)


def wait(own: Path, on_progress: Progress, on_message: Message) -> None:
    own.write_text(str(os.getpid()))
    on_progress(0, 2)
    time.sleep(600)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_tell_how_far_they_are_and_what_they_say(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    said: list[tuple[str, str]] = []
    both = [Job(name, partial(write, tmp_path / name)) for name in ("a", "b")]
    failures = jobs.run(both, 1, lambda *told: seen.append(told), lambda *told: said.append(told))
    assert failures == {}
    assert said == [("a", "half"), ("b", "half")]
    assert [told for told in seen if told[1] == 2] == [("a", 2, 2), ("b", 2, 2)]
    threads, pids, _ = zip(*(path.read_text().split() for path in (tmp_path / "a", tmp_path / "b")), strict=True)
    assert set(threads) == {str(len(os.sched_getaffinity(0)))}
    assert len({*pids, str(os.getpid())}) == 3


def test_jobs_share_the_cores_and_the_memory(tmp_path: Path) -> None:
    both = [Job(name, partial(write, tmp_path / name)) for name in ("a", "b")]
    jobs.run(both, 2)
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    for name in ("a", "b"):
        threads, _, processes = (tmp_path / name).read_text().split()
        assert (threads, processes) == (share, "2")


def test_jobs_run_at_the_same_time(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert jobs.run([Job("1", partial(meet, one, two)), Job("2", partial(meet, two, one))], 2) == {}


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    failures = jobs.run(
        [Job("fails", fail), Job("crashes", crash), Job("dies", die), Job("works", partial(write, tmp_path / "done"))],
        2,
    )
    assert list(failures) == ["fails", "crashes", "dies"]
    assert failures["fails"] == "There is no such thing. Name another."
    assert failures["crashes"] == "KeyError: 'a bug'"
    assert failures["dies"] == "its process was ended by SIGKILL"
    assert (tmp_path / "done").exists()


def test_a_process_that_is_kept_does_one_job_after_the_other_until_one_ends_it(tmp_path: Path) -> None:
    ended: list[tuple[str, bool]] = []
    todo = [
        Job("a", partial(write, tmp_path / "a")), Job("fails", fail), Job("b", partial(write, tmp_path / "b")),
        Job("dies", die), Job("c", partial(write, tmp_path / "c")),
    ]  # fmt: skip
    failures = jobs.run(todo, 1, on_end=lambda name, failure: ended.append((name, failure is None)), keep=True)
    assert failures == {
        "fails": "There is no such thing. Name another.",
        "dies": "its process was ended by SIGKILL",
    }
    assert ended == [("a", True), ("fails", False), ("b", True), ("dies", False), ("c", True)]
    first, second, third = ((tmp_path / name).read_text().split()[1] for name in "abc")
    assert first == second != third
    assert not any(is_alive(int(pid)) for pid in (first, third))


def test_no_jobs_are_no_work() -> None:
    assert jobs.run([], 2) == {}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_children_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from functools import partial; from pathlib import Path; "
        "import test_jobs; from pipelines import jobs; "
        f"jobs.run([jobs.Job(n, partial(test_jobs.wait, Path({str(tmp_path)!r}) / n)) for n in 'ab'], 2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    pids: list[int] = []
    while len(pids) < 2 and time.monotonic() < deadline:
        pids = [int(text) for path in tmp_path.iterdir() if (text := path.read_text())]
        time.sleep(0.01)
    assert len(pids) == 2
    parent.send_signal(how)
    _, told = parent.communicate(timeout=60)
    assert (b"KeyboardInterrupt" in told) == (how == signal.SIGINT)
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_alive(pid) for pid in pids)
