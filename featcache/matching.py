"""Which phone of one alignment is which phone of another: an edit alignment that knows the time.

Two sequences of the same utterance seldom hold the same phones: dictionaries differ, a word is unknown to one side.
The pairing of least total cost decides, over all pairings that keep both orders:

- a pair costs its distance in time, as a share of `reach_s`, plus 0 where the labels are the same, 1 where they are
  different but alike (phones of one class), 2 where they are not;
- what is left without a partner costs 1.5, on either side, so that two alike are sooner a pair than two left over;
- what starts more than `reach_s` apart is never a pair.

Costs are whole numbers, so ties are ties, and the result does not depend on which side comes first.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_REACH = 1_000_000  # the cost of a distance of reach_s
_LEFT_OVER = 3 * _REACH // 2
_NEVER = 1 << 40

Sound = tuple[float, str]
"""When something starts, in seconds, and its label."""


def pairs(a: Sequence[Sound], b: Sequence[Sound], reach_s: float, kind: Callable[[str], str]) -> list[tuple[int, int]]:
    """Return which of `a` is which of `b`, as pairs of numbers in ascending order.

    Args:
        a: starts and labels, in order.
        b: those of the other side.
        reach_s: the largest distance of a pair, in seconds.
        kind: label to class; labels of one class are alike.
    """
    if list(b) < list(a):
        return [(first, second) for second, first in pairs(b, a, reach_s, kind)]
    costs = _costs(a, b, reach_s, kind)
    totals = _totals(costs)
    found = []
    row, column = len(a), len(b)
    while row and column:
        if totals[row, column] == totals[row - 1, column - 1] + costs[row - 1, column - 1]:
            row, column = row - 1, column - 1
            found.append((row, column))
        elif totals[row, column] == totals[row - 1, column] + _LEFT_OVER:
            row -= 1
        else:
            column -= 1
    return found[::-1]


def _costs(a: Sequence[Sound], b: Sequence[Sound], reach_s: float, kind: Callable[[str], str]) -> NDArray[np.int64]:
    """Return what each pair costs, ``(a, b)``."""
    starts_a, starts_b = (np.array([start for start, _ in side], np.float64) for side in (a, b))
    distance = np.rint(np.abs(starts_a[:, np.newaxis] - starts_b) / reach_s * _REACH).astype(np.int64)
    labels_a, labels_b = (np.array([label for _, label in side], object) for side in (a, b))
    kinds_a, kinds_b = (np.array([kind(label) for _, label in side], object) for side in (a, b))
    same = labels_a[:, np.newaxis] == labels_b
    alike = kinds_a[:, np.newaxis] == kinds_b
    costs = distance + _REACH * np.where(same, 0, np.where(alike, 1, 2))
    return np.where(distance > _REACH, _NEVER, costs)


def _totals(costs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the least cost of pairing the first of each side, ``(a + 1, b + 1)``."""
    num_a, num_b = costs.shape
    along = _LEFT_OVER * np.arange(num_b + 1)
    totals = np.empty((num_a + 1, num_b + 1), np.int64)
    totals[0] = along
    for row in range(num_a):
        best = totals[row] + _LEFT_OVER
        best[1:] = np.minimum(best[1:], totals[row, :-1] + costs[row])
        # Leaving out any number of b's: the least of best[k] + (j - k) steps for all k up to j.
        totals[row + 1] = np.minimum.accumulate(best - along) + along
    return totals
