"""Several pieces of work at once, each in a process of its own, with its share of the cores.

Light models leave most of a processor idle between their small operations, and one process with all threads is slower
than several with few. A job is a function with its arguments, pickled to a child that this module starts; the child
tells how far it is, and ends when its parent does, however that ends. Where jobs are short, a child does one after the
other: to start one and to import what it needs takes seconds.
"""

import json
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

from featcache.errors import FeatcacheError
from featcache.memory import PROCESSES

_BOOT = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import json, sys; "
    "sys.path[:] = json.loads(sys.argv[1]); from pipelines import jobs; jobs._serve()"
)
_TOLD_EVERY_S = 0.2
_SIZE = struct.Struct("<Q")


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        name: unique among the jobs of a call.
        work: called in the child as ``work(on_progress=..., on_message=...)``; its result is not used. It must be a
            function of a module, or a ``functools.partial`` of one.
    """

    name: str
    work: Callable[..., Any]


def run(
    jobs: Sequence[Job],
    at_once: int,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
    on_message: Callable[[str, str], None] = lambda *_: None,
    on_end: Callable[[str, str | None], None] = lambda *_: None,
    keep: bool = False,
) -> dict[str, str]:
    """Run jobs, in their order, a number of them at a time; one that fails does not stop the others.

    Args:
        jobs: the jobs.
        at_once: most processes at a time; cores and memory are shared out among them.
        on_progress: called with a job's name, what it has done and what there is to do; one call at a time.
        on_message: called with a job's name and a sentence; one call at a time.
        on_end: called with the name of a job that ended, and how it failed or None; one call at a time.
        keep: let a process do one job after the other, until one of them ends it; jobs must leave nothing behind in it
            that would change another.

    Returns:
        Name to a sentence, of jobs that failed.
    """
    if not jobs:
        return {}
    at_once = max(1, min(at_once, len(jobs)))
    lock = threading.Lock()
    children: list[_Child] = []
    failures: dict[str, str] = {}
    todo = iter(jobs)
    stopped = False

    def work() -> None:
        child: _Child | None = None
        try:
            while True:
                with lock:
                    job = None if stopped else next(todo, None)
                    if job is None:
                        return
                    if child is None:
                        child = _Child(at_once)
                        children.append(child)
                child.give(job)  # it may take a while to read its work, and nobody is to wait for that
                failure = None
                for reply in child.replies():
                    with lock:
                        if "progress" in reply:
                            on_progress(job.name, *reply["progress"])
                        elif "message" in reply:
                            on_message(job.name, reply["message"])
                        else:
                            failure = failures[job.name] = reply["failure"]
                if not (keep and child.alive):
                    child.end()
                    child = None
                with lock:
                    if not stopped:
                        on_end(job.name, failure)
        finally:
            if child is not None:
                child.end()

    with ThreadPoolExecutor(at_once) as pool:
        try:
            for future in [pool.submit(work) for _ in range(at_once)]:
                future.result()
        except BaseException:
            with lock:
                stopped = True
                for child in children:
                    child.kill()
            raise
    return {job.name: failures[job.name] for job in jobs if job.name in failures}


class _Child:
    """A process that does one job after the other, seen from the parent."""

    def __init__(self, at_once: int) -> None:
        path = [os.path.abspath(entry) for entry in sys.path]
        self._told = tempfile.TemporaryFile()  # noqa: SIM115  what it and its libraries print
        threads = max(1, len(os.sched_getaffinity(0)) // at_once)
        shares = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        shares[PROCESSES] = str(at_once)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told, env={**os.environ, **shares},
        )  # fmt: skip
        self._input, self._output = (cast(IO[bytes], pipe) for pipe in (self._process.stdin, self._process.stdout))
        self.alive = True

    def give(self, job: Job) -> None:
        """Send it its work."""
        self._told.seek(0)
        self._told.truncate()  # what it printed was of the job before
        work = pickle.dumps(job.work, pickle.HIGHEST_PROTOCOL)
        with suppress(OSError):  # it died: its exit says so
            self._input.write(_SIZE.pack(len(work)) + work)
            self._input.flush()

    def replies(self) -> Iterator[dict[str, Any]]:
        """Yield what the child tells of a job, and at last how it failed, if it did."""
        for line in self._output:
            reply = json.loads(line)
            if "done" in reply:
                return
            yield reply
            if "failure" in reply:
                return
        self.alive = False
        yield {"failure": self._how(self._process.wait())}

    def kill(self) -> None:
        """End it, at work or not."""
        self._process.kill()

    def end(self) -> None:
        """End it, and give back what it took."""
        self.kill()
        self._process.wait()
        for file in (self._input, self._output, self._told):
            with suppress(OSError):
                file.close()

    def _how(self, code: int) -> str:
        how = (
            f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
        )
        self._told.seek(max(0, self._told.seek(0, os.SEEK_END) - 4096))
        lines = self._told.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}, with {last[:300]!r}" if last else how


def _serve() -> None:
    """Do the jobs that come on standard input, one after the other, until it ends: what a child does."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print
    works: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(works,), daemon=True).start()

    def tell(**reply: Any) -> None:
        try:
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
        except OSError:
            os._exit(1)  # nobody listens any more

    while True:
        told_s = 0.0

        def on_progress(done: int, total: int) -> None:
            nonlocal told_s
            if done == total or time.monotonic() - told_s >= _TOLD_EVERY_S:
                told_s = time.monotonic()
                tell(progress=[done, total])

        try:
            work = pickle.loads(works.get())  # noqa: S301  of our own parent
            work(on_progress=on_progress, on_message=lambda text: tell(message=text))
        except (FeatcacheError, OSError) as error:
            tell(failure=str(error))
        except Exception as error:  # a fault of ours, or of a library
            traceback.print_exc()
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            tell(failure=f"{type(error).__name__}: {error}{notes}")
        else:
            tell(done=True)


def _listen(works: "queue.Queue[bytes]") -> None:
    """Take works from standard input, and end the process when that does: the parent is gone."""
    try:
        while size := sys.stdin.buffer.read(_SIZE.size):
            works.put(sys.stdin.buffer.read(*_SIZE.unpack(size)))
    finally:
        os._exit(1)
