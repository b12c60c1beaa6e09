"""From intervals to frames: which interval each frame of a regular grid belongs to.

The rule is Makiuchi et al. 2021's "the phone with the longest overlap with that frame", made exact:

- Frame i is the stretch from ``i * frame_shift_s`` to ``(i + 1) * frame_shift_s``.
- A gap, between two intervals, before the first or after the last up to the end of the audio, competes as an interval
  of its own; two gaps in one frame do not add up. Time after the end of the audio belongs to nobody.
- At a tie the earlier one wins.

Times are rounded to whole nanoseconds first, so that what ties on paper, such as times on a grid of 10 ms, ties here,
whatever sums of floating-point numbers led to it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NOTHING = -1
"""In place of an interval's number: silence, or past the end of the audio."""

_NS_PER_S = 1e9


def longest_overlap(
    intervals: Sequence[tuple[float, float]], num_frames: int, frame_shift_s: float, end_s: float
) -> NDArray[np.int64]:
    """Return the number of the interval that each frame overlaps longest with.

    Args:
        intervals: starts and ends in seconds, in order. Where two overlap all the same, the earlier one has the time.
        num_frames: frames wanted.
        frame_shift_s: length of a frame, in seconds.
        end_s: end of the audio, in seconds; intervals are cut there.

    Returns:
        ``(frames,)`` numbers of intervals; :data:`NOTHING` where silence overlaps longest or nothing does.
    """
    end = _ns(end_s)
    times = _ns(np.array(intervals, np.float64).reshape(-1, 2)).clip(0, end)
    latest = np.maximum.accumulate(times[:, 1]) if len(times) else times[:, 1]
    starts = np.maximum(times[:, 0], np.concatenate([[0], latest[:-1]])[: len(times)])
    # Edges at which the owner of the time changes: gap, interval, gap, ..., gap, and then the end of the audio.
    edges = np.empty(2 * len(times) + 2, np.int64)
    edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = 0, starts, np.maximum(starts, latest), end
    owners = np.full(2 * len(times) + 1, NOTHING, np.int64)
    owners[1::2] = np.arange(len(times))

    grid = _ns(np.arange(num_frames + 1) * frame_shift_s)
    # Cut at all edges, of owners and of frames, a piece of time lies in one frame and has one owner.
    cuts = np.union1d(edges, grid)
    cuts = cuts[cuts <= min(end, grid[-1])]
    lengths = np.diff(cuts)
    owner = owners[np.searchsorted(edges, cuts[:-1], side="right") - 1]
    frame = np.searchsorted(grid, cuts[:-1], side="right") - 1
    # By frame, then longest first, then earliest first: the first of each frame is its own.
    order = np.lexsort((cuts[:-1], -lengths, frame))
    of_frame, first = np.unique(frame[order], return_index=True)
    labels = np.full(num_frames, NOTHING, np.int64)
    labels[of_frame] = owner[order][first]
    return labels


def _ns(times_s: np.ndarray | float) -> NDArray[np.int64]:
    """Return times in whole nanoseconds."""
    return np.rint(np.asarray(times_s) * _NS_PER_S).astype(np.int64)
