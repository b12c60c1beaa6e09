"""Processes that answer one request after the other, for libraries that cannot share a process, or may end it.

They are started as ``python -c``, not by :mod:`multiprocessing`, whose children run the user's script again: a script
without a guard ``if __name__ == "__main__"``, or one from standard input, works like any other. Requests and replies
are pickles, on the process's standard input and output.

A process ignores Ctrl-C, which reaches the whole group; whoever uses it stops it. It ends when its input does, so with
a parent that is killed, or once a library gives back the interpreter's lock (pocketsphinx keeps it for a whole pass
over an utterance: a fraction of a second, or 8 s where 120 s are spoken). What it or its libraries print goes to a
file that nobody sees, unless it dies: then the last line of it is told.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any, Generic, NoReturn, TypeVar, cast

from featcache.errors import ConfigError, FeatcacheError

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Argument = TypeVar("Argument")

_BOOT = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import json, sys; "
    "sys.path[:] = json.loads(sys.argv[1]); from featcache import workers; workers._serve()"
)


class Died(Exception):  # noqa: N818
    """What comes in place of a reply where the process died; the message says how, in a few words."""


class Workers(Generic[Request, Reply]):
    """A number of processes; the first starts at once, the others when they are needed.

    Args:
        number: most processes at a time.
        start: called in each process with `argument`; returns what answers requests. A function or class of a module
            that can be imported, not of a script.
        argument: anything that can be pickled.

    Raises:
        ConfigError: `start` raised a :class:`FeatcacheError`, or the process did not start.
    """

    def __init__(
        self, number: int, start: Callable[[Argument], Callable[[Request], Reply]], argument: Argument
    ) -> None:
        self._first_request = (start, argument)
        self._lock = threading.Lock()
        self._running: list[_Process] = []
        self._idle: list[_Process] = []
        self._closed = False
        try:
            self._idle.append(self._started())
        except Died as death:
            raise ConfigError(f"A process to work in cannot start: it {death}.") from None
        self._threads = ThreadPoolExecutor(number)

    def map(self, requests: Sequence[Request]) -> list[Reply | Died]:
        """Return a reply to each request, in order; how the process died where there is none.

        What died is asked once more with no other process at work, since it may have been short of memory.
        """
        futures = [self._threads.submit(self._answer, request) for request in requests]
        try:
            replies = [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            self._kill()  # else the end of this program would wait for the requests at work
            raise
        if any(isinstance(reply, Died) for reply in replies):
            self._stop()
        return [
            self._answer(request) if isinstance(reply, Died) else reply
            for request, reply in zip(requests, replies, strict=True)
        ]

    def close(self) -> None:
        """Stop every process, at work or not."""
        with self._lock:
            self._closed = True
        self._kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._stop()

    def _answer(self, request: Request) -> Reply | Died:
        try:
            process = self._take()
        except Died as death:
            return death
        try:
            reply: Reply = process.ask(request)
        except Died as death:
            self._drop(process)
            return death
        self._idle.append(process)
        return reply

    def _take(self) -> "_Process":
        try:
            return self._idle.pop()
        except IndexError:
            return self._started()

    def _started(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise Died("was stopped")
            process = _Process()
            self._running.append(process)
        try:
            failure = process.ask(self._first_request)
        except Died:
            self._drop(process)
            raise
        if failure is not None:
            self._drop(process)
            raise ConfigError(failure)
        return process

    def _drop(self, process: "_Process") -> None:
        with self._lock:
            self._running.remove(process)
        process.stop()

    def _kill(self) -> None:
        with self._lock:
            for process in self._running:
                process.kill()

    def _stop(self) -> None:
        """End the processes; none may be at work."""
        self._idle.clear()
        for process in list(self._running):
            self._drop(process)


class _Process:
    """One process, seen from the parent.

    Raises:
        Died: it cannot be started.
    """

    def __init__(self) -> None:
        path = [os.path.abspath(entry) for entry in sys.path]  # '' is the folder that this process is in
        self._told = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                # -P: nothing in the folder that the user happens to be in replaces a module of Python's own.
                [sys.executable, "-P", "-c", _BOOT, json.dumps(path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told,
            )  # fmt: skip
        except OSError as error:
            self._told.close()
            raise Died(f"could not be started: {error}") from None
        self._requests, self._replies = (cast(IO[bytes], pipe) for pipe in (self._process.stdin, self._process.stdout))

    def ask(self, request: Any) -> Any:
        """Return the reply.

        Raises:
            Died: there is none.
        """
        try:
            pickle.dump(request, self._requests, pickle.HIGHEST_PROTOCOL)
            self._requests.flush()
            return pickle.load(self._replies)  # noqa: S301
        except (OSError, EOFError, pickle.UnpicklingError):
            raise Died(self._how()) from None

    def kill(self) -> None:
        """End it; it may be answering in another thread."""
        self._process.kill()

    def stop(self) -> None:
        """End it and close its files."""
        self._process.kill()
        self._process.wait()
        for file in (self._requests, self._replies, self._told):
            with suppress(OSError):  # what was not yet written goes nowhere
                file.close()

    def _how(self) -> str:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._told.seek(max(0, self._told.seek(0, os.SEEK_END) - 4096))
        lines = self._told.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}, with {last[:200]!r}" if last else how


def _serve() -> None:
    """Answer requests until there are no more: what a process does."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print
    requests: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    try:
        _answer(requests, replies)
    except BaseException:
        _fail()


def _answer(requests: "SimpleQueue[Any]", replies: IO[bytes]) -> None:
    start, argument = requests.get()
    answer: Any = None
    reply: Any = None
    try:
        answer = start(argument)
    except FeatcacheError as error:
        reply = str(error)
    while True:
        pickle.dump(reply, replies, pickle.HIGHEST_PROTOCOL)
        replies.flush()
        reply = answer(requests.get())


def _read(requests: "SimpleQueue[Any]") -> None:
    """Read ahead, so that the end of the parent is seen during work."""
    try:
        while True:
            requests.put(pickle.load(sys.stdin.buffer))  # noqa: S301
    except EOFError:
        os._exit(0)
    except BaseException:
        _fail()


def _fail() -> NoReturn:
    sys.excepthook(*sys.exc_info())
    os._exit(1)  # an orderly end would wait for the other thread, which waits for its input
