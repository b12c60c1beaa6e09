"""Laws of worker processes: who asks gets an answer or learns how the process died; none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featcache.errors import ConfigError
from featcache.workers import Died, Workers


def doubling(argument: str) -> Callable[[int], object]:
    """Double; 0 to -5 do worse."""
    if argument == "unusable":
        raise ConfigError("It is unusable.")
    if argument == "broken":
        raise RuntimeError("It is broken.")

    def answer(request: int) -> object:
        if request == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if request == -1:
            os.write(1, b"noise on stdout")
            os.write(2, b"noise on stderr")
            print("more noise")
        if request == -2:
            return os.getpid()
        if request == -3:
            time.sleep(60)
        if request == -4:
            os.write(2, b"no memory\nis left\n\n")
            os._exit(3)
        if request == -5:
            raise RuntimeError("A defect.")
        return request * 2

    return answer


@contextmanager
def working(number: int) -> Iterator[Workers[int, object]]:
    workers: Workers[int, object] = Workers(number, doubling, "")
    try:
        yield workers
    finally:
        workers.close()


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


def test_replies_are_in_order_however_many_work() -> None:
    for number in (1, 3):
        with working(number) as workers:
            assert workers.map([]) == []
            assert workers.map(list(range(1, 40))) == list(range(2, 80, 2))


def test_a_death_costs_its_own_request_alone() -> None:
    for number in (1, 2):
        with working(number) as workers:
            replies = workers.map([1, 0, 2, 0, 3])
            assert [str(reply) for reply in replies] == ["2", "was ended by SIGKILL", "4", "was ended by SIGKILL", "6"]
            assert workers.map([4]) == [8]


def test_the_last_words_of_a_death_are_told() -> None:
    with working(1) as workers:
        told, raised = workers.map([-4, -5])
    assert isinstance(told, Died)
    assert isinstance(raised, Died)
    assert str(told) == "ended with exit code 3, with 'is left'"
    assert str(raised) == "ended with exit code 1, with 'RuntimeError: A defect.'"


def test_what_a_process_prints_mixes_with_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with working(1) as workers:
        assert workers.map([-1, 5]) == [-2, 10]
    assert capfd.readouterr() == ("", "")


def test_a_start_that_fails_is_told() -> None:
    with pytest.raises(ConfigError, match=r"^It is unusable\.$"):
        Workers(2, doubling, "unusable")
    with pytest.raises(ConfigError, match="cannot start: it ended with exit code 1, with 'RuntimeError: It is broken"):
        Workers(2, doubling, "broken")


def test_ctrl_c_in_a_process_is_ignored_and_closing_ends_it() -> None:
    with working(1) as workers:
        (pid,) = workers.map([-2])
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGINT)
        assert workers.map([-2]) == [pid]
    assert gone(pid)


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_workers import doubling
from featcache.workers import Workers

workers = Workers(2, doubling, "")
print(*workers.map([-2]), flush=True)
workers.map([-3, -3])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_at_work_end_with_their_parent(how: signal.Signals) -> None:
    """Without close being called: a parent that is interrupted leaves it to its end."""
    script = PARENT.format(tests=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.send_signal(how)
        assert parent.wait(20) != 0
    assert gone(pid)


def test_a_module_beside_the_user_shadows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise ImportError('the wrong json')")
    monkeypatch.chdir(tmp_path)
    with working(1) as workers:
        assert workers.map([1]) == [2]
