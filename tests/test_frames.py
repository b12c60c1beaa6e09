import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.frames import NOTHING, longest_overlap


def by_hand(intervals_ms, num_frames, shift_ms, end_ms):
    """The rule in whole milliseconds, with nothing clever: overlaps of every owner with every frame."""
    owners, before = [], 0
    for number, (start, end) in enumerate(intervals_ms):
        owners += [(before, start, NOTHING), (start, end, number)]
        before = end
    owners.append((before, end_ms, NOTHING))
    labels = []
    for frame in range(num_frames):
        best, label = 0, NOTHING
        for start, end, number in owners:
            overlap = min(end, (frame + 1) * shift_ms, end_ms) - max(start, frame * shift_ms)
            if overlap > best:
                best, label = overlap, number
        labels.append(label)
    return labels


@st.composite
def tilings(draw):
    """Intervals in whole milliseconds: gaps and lengths drawn in turn, on a coarse grid at times so that ties occur."""
    unit = draw(st.sampled_from([1, 5, 10]))
    steps = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
    intervals, now = [], 0
    for gap, length in steps:
        intervals.append((now + gap * unit, now + (gap + length) * unit))
        now += (gap + length) * unit
    end = now + draw(st.integers(0, 30)) * unit
    return intervals, end


@settings(max_examples=400, deadline=None)
@given(tilings(), st.integers(0, 30), st.sampled_from([3, 10, 16, 20]))
def test_the_longest_overlap_is_what_a_plain_reading_of_the_rule_gives(tiling, num_frames, shift_ms):
    intervals, end = tiling
    in_seconds = [(start / 1000, stop / 1000) for start, stop in intervals]
    labels = longest_overlap(in_seconds, num_frames, shift_ms / 1000, end / 1000)
    assert labels.dtype == np.int64
    assert labels.tolist() == by_hand(intervals, num_frames, shift_ms, end)


def test_a_phone_that_fills_a_frame_has_it():
    assert longest_overlap([(0.02, 0.06)], 4, 0.02, 0.08).tolist() == [-1, 0, 0, -1]


def test_ties_go_to_the_earlier_whatever_the_rounding():
    # 0.1 + 0.2 is a little more than 0.3, so that without rounding the first frame would be the interval's.
    middle = 0.1 + 0.2
    assert longest_overlap([(0.29, middle), (middle, 0.31)], 16, 0.02, 0.32)[14:].tolist() == [NOTHING, 1]
    shifts = np.cumsum(np.full(200, 0.01))
    intervals = [(float(start), float(start + 0.01)) for start in shifts]
    # Each frame from the second on holds two phones of 10 ms: the earlier one has it.
    assert longest_overlap(intervals, 100, 0.02, 2.02).tolist() == [NOTHING, *range(1, 199, 2)]


def test_a_gap_competes_and_two_gaps_do_not_add_up():
    assert longest_overlap([(0.006, 0.012)], 1, 0.02, 0.02).tolist() == [NOTHING]
    assert longest_overlap([(0.006, 0.014)], 1, 0.02, 0.02).tolist() == [0]


def test_frames_past_the_end_are_silence_and_the_last_one_is_whose_it_begins():
    assert longest_overlap([(0.0, 0.045)], 5, 0.02, 0.045).tolist() == [0, 0, 0, NOTHING, NOTHING]
    assert longest_overlap([(0.0, 0.2)], 5, 0.02, 0.045).tolist() == [0, 0, 0, NOTHING, NOTHING]


def test_no_intervals_and_no_frames_are_fine():
    assert longest_overlap([], 3, 0.02, 1.0).tolist() == [NOTHING] * 3
    assert longest_overlap([(0.0, 1.0)], 0, 0.02, 1.0).tolist() == []
    assert longest_overlap([(0.0, 1.0)], 2, 0.02, 0.0).tolist() == [NOTHING] * 2


def test_what_overlaps_a_little_belongs_to_the_earlier():
    assert longest_overlap([(0.0, 0.03), (0.02, 0.05)], 3, 0.02, 0.06).tolist() == [0, 0, 1]
