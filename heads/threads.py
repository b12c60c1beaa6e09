"""Trainings side by side, each in a thread of its own that computes on one core.

Small heads are many small operations. Split over all cores, each of them waits for the slowest core: on a machine that
does something else besides, that takes ten times as long, and on an idle one it gains nothing over one training a core.
The numbers do not depend on how many cores there are.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from heads.head import OnProgress

T = TypeVar("T")
Work = Callable[[Callable[[int], None]], T]
"""Something to do: given what to call with the steps done, it returns a result. It draws no random numbers."""


class _Stopped(Exception):  # noqa: N818  no error: an end
    """The others stopped, or the user did."""


def run(works: Sequence[Work[T]], steps: Sequence[int], on_progress: OnProgress) -> list[T]:
    """Do all of some works, as many at a time as torch may use cores, and return their results in order.

    Args:
        works: what to do.
        steps: steps of each.
        on_progress: called with steps done and all steps, by one thread at a time.

    Raises:
        Exception: what a work that failed raised; the others stop.
    """
    lock = threading.Lock()
    done = [0] * len(works)
    stopped = threading.Event()

    def do(number: int) -> T:
        def report(steps_done: int) -> None:
            if stopped.is_set():
                raise _Stopped
            with lock:
                done[number] = steps_done
                on_progress(sum(done), sum(steps))

        try:
            report(0)  # stopped before it began
            return works[number](report)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), len(works))), initializer=_alone) as pool:
        try:
            futures = [pool.submit(do, number) for number in range(len(works))]
            for future in futures:
                future.exception()  # all have ended before any is looked at
        except BaseException:  # Ctrl-C, which only this thread sees
            stopped.set()
            raise
    torch.set_num_threads(torch.get_num_threads())  # or threads that the caller starts would have one core
    failures = [error for future in futures if (error := future.exception()) is not None]
    for error in failures:
        if not isinstance(error, _Stopped):
            raise error
    return [future.result() for future in futures]


def _alone() -> None:
    """Let this thread compute by itself; torch counts for each thread."""
    torch.set_num_threads(1)
