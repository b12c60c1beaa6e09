"""Speakers are divided inside each one, frames get the phone that is spoken there, and nothing depends on order."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from test_mlp_probe import write_stream

import featcache
from featcache.cache import CachedStream
from featcache.commit import StreamWriter, store
from featcache.errors import ProtocolError, StreamError
from featcache.inventory import arpabet128
from featcache.manifest import Utterance
from featcache.stream import Features, StreamSpec
from heads.folds import Fold
from heads.probing import (
    frame_items,
    majority_rate,
    make_probe,
    over_classes,
    phone_names,
    speaker_dependent_fold,
    united,
)
from heads.task import Outcome


def write_phones(cache: Path, ids: dict[str, list[int]], shift_s: float = 0.02, positions: bool = True) -> CachedStream:
    """Write phone ids of utterances and return the stream."""
    settings = {"inventory": list(arpabet128().symbols), "positions": positions}
    spec = StreamSpec(
        "phones", 1, "speech", settings, ("phone",), 1, frame_shift_s=shift_s, compute_dtype="int16", dtype="int16"
    )
    with StreamWriter(cache, spec, "zarr", "frames") as writer:
        writer.commit(
            [
                store(name, "0", 0, Features(np.array(spoken, np.int16)[None, :, None]), spec, "frames")
                for name, spoken in sorted(ids.items())
            ],
            {},
        )
    return featcache.open(cache)[spec.name]


SPEAKERS = {f"u{number:03d}": f"s{number % 3}" for number in range(90)} | {
    f"v{number:03d}": "s3" for number in range(7)
}
FOLD = Fold("one", tuple(SPEAKERS)[10:], tuple(SPEAKERS)[:10], ("x0", "x1"))


def test_each_speaker_is_on_both_sides_in_80_to_20_and_the_encoders_test_part_is_left_out() -> None:
    fold = speaker_dependent_fold(FOLD, SPEAKERS, seed=0)
    assert fold.name == "one"
    assert sorted(fold.train + fold.validation + fold.test) == sorted(SPEAKERS)
    counts = {part: Counter(SPEAKERS[name] for name in ids) for part, ids in fold.parts.items()}
    # 30 utterances of each of three: 6 are tested; of the other 24 a tenth, 2.4, is 2. Of 7: 1.4 is 1; 0.6 is 1.
    assert counts["test"] == {"s0": 6, "s1": 6, "s2": 6, "s3": 1}
    assert counts["validation"] == {"s0": 2, "s1": 2, "s2": 2, "s3": 1}
    assert counts["train"] == {"s0": 22, "s1": 22, "s2": 22, "s3": 5}
    assert all(list(ids) == sorted(ids) for ids in fold.parts.values())
    wide = speaker_dependent_fold(FOLD, SPEAKERS, seed=0, test=0.5, validation=0.0)
    assert (len(wide.test), len(wide.validation)) == (15 * 3 + 4, 0)  # 3.5 is 4


def test_the_division_follows_from_seed_fold_and_speaker_alone() -> None:
    fold = speaker_dependent_fold(FOLD, SPEAKERS, seed=0)
    turned = Fold("one", FOLD.train[::-1], FOLD.validation, ())
    assert speaker_dependent_fold(turned, dict(reversed(SPEAKERS.items())), seed=0) == fold
    moved = Fold("one", FOLD.train + FOLD.validation, (), ())
    assert speaker_dependent_fold(moved, SPEAKERS, seed=0) == fold
    only = [name for name in SPEAKERS if SPEAKERS[name] in ("s1", "s3")]
    alone = speaker_dependent_fold(FOLD.within(only), SPEAKERS, seed=0)
    assert alone == fold.within(only)
    others = [
        speaker_dependent_fold(FOLD, SPEAKERS, seed=1),
        speaker_dependent_fold(Fold("two", FOLD.train, FOLD.validation, ()), SPEAKERS, seed=0),
        speaker_dependent_fold(FOLD, {name: f"{speaker}b" for name, speaker in SPEAKERS.items()}, seed=0),
    ]
    assert all(other.test != fold.test for other in others)
    tested = Counter(
        name for seed in range(200) for name in speaker_dependent_fold(FOLD, SPEAKERS, seed).test if name[0] == "u"
    )
    assert len(tested) == 90
    assert 15 < min(tested.values()) <= max(tested.values()) < 65  # 40 expected of each; 4.5 standard deviations are 25


def test_speakers_that_cannot_be_in_every_part_are_left_out_and_nameless_ones_refused() -> None:
    few = {"a0": "a", "a1": "a", "b0": "b", "b1": "b", "b2": "b", "c0": "c"}
    fold = speaker_dependent_fold(Fold("f", tuple(few), (), ()), few, seed=3)
    assert sorted(fold.train + fold.validation + fold.test) == ["b0", "b1", "b2"]
    assert all(len(ids) == 1 for ids in fold.parts.values())
    nothing_chosen = speaker_dependent_fold(Fold("f", tuple(few), (), ()), few, seed=3, validation=0.0)
    assert Counter(few[name] for name in nothing_chosen.train) == {"a": 1, "b": 2}
    with pytest.raises(ProtocolError, match=r"fold 'f': 2 of 6 utterances have no speaker \('b1', 'c0'\)"):
        speaker_dependent_fold(Fold("f", tuple(few), (), ()), {**few, "b1": None, "c0": ""}, seed=0)
    for shares in ({"test": 0.0}, {"test": 1.0}, {"validation": 1.0}):
        with pytest.raises(ProtocolError, match="A probe needs a test share between 0 and 1"):
            speaker_dependent_fold(FOLD, SPEAKERS, 0, **shares)


@pytest.mark.parametrize(
    ("shift_s", "codes_s"), [(0.02, 0.04), (0.02, 0.96), (0.02, 0.02), (0.005, 0.01), (0.04, 0.01)]
)
def test_frames_get_the_phone_that_is_spoken_in_the_middle_of_them(
    tmp_path: Path, shift_s: float, codes_s: float
) -> None:
    generator = np.random.default_rng(0)
    symbols = arpabet128().symbols
    spoken = {f"u{number}": generator.integers(0, len(symbols), 40 + 30 * number).tolist() for number in range(5)}
    phones = write_phones(tmp_path, spoken, shift_s)
    # Codes of some utterances end early, of others late, as windows do.
    num_codes = {name: max(1, round(len(ids) * shift_s / codes_s) + number - 2)
                 for number, (name, ids) in enumerate(spoken.items())}  # fmt: skip
    codes = write_stream(tmp_path, {name: np.ones((count, 2), np.float32) for name, count in num_codes.items()},
                         shift_s=codes_s)  # fmt: skip
    items = frame_items(codes, phones, sorted(spoken), seed=0, most=1000)
    found = defaultdict(list)
    for item in items:
        found[item.utterance].append((item.id, item.frame, item.label))
    for name, ids in spoken.items():
        expected = []
        for at, phone in enumerate(ids):
            # The code whose time, in whole microseconds, holds the middle of the frame.
            middle, code = round((2 * at + 1) * shift_s * 5e5), round(codes_s * 1e6)
            if middle // code < num_codes[name]:
                label = symbols[phone][:-2] if symbols[phone][-2:] in ("_B", "_I", "_E", "_S") else symbols[phone]
                time = f"{at * shift_s:.2f}" if shift_s >= 0.01 else f"{at * shift_s:.3f}"
                expected.append((f"{name}@{time}s", middle // code, label))
        assert found[name] == expected
    assert len({item.id for item in items}) == len(items)


def test_at_most_so_many_frames_are_drawn_from_seed_and_utterance_alone(tmp_path: Path) -> None:
    spoken = {f"u{number}": list(range(100)) for number in range(6)} | {"short": [3, 4]}
    phones = write_phones(tmp_path, spoken)
    codes = write_stream(tmp_path, {name: np.ones((50, 2), np.float32) for name in spoken})
    items = frame_items(codes, phones, sorted(spoken), seed=0)
    counts = Counter(item.utterance for item in items)
    assert counts == {name: 2 if name == "short" else 16 for name in spoken}
    assert [item.id for item in items if item.utterance == "short"] == ["short@0.00s", "short@0.02s"]
    ids = {name: [item.id.partition("@")[2] for item in items if item.utterance == name] for name in spoken}
    assert len({tuple(of) for name, of in ids.items()}) == len(spoken)  # each utterance has a draw of its own
    alone = frame_items(codes, phones, ["u4"], seed=0)
    assert alone == [item for item in items if item.utterance == "u4"]
    assert frame_items(codes, phones, ["u4"], seed=1) != alone
    drawn = Counter(item.label for seed in range(300) for item in frame_items(codes, phones, ["u4"], seed, most=1))
    assert len(drawn) > 30  # of the 45 that the first hundred symbols stand for


def test_phones_lose_their_position_only_where_the_inventory_has_positions() -> None:
    symbols = {"inventory": ["SIL", "ah_B", "oov_S", "a_b_I"], "positions": True}
    assert phone_names(symbols, "phones") == ["SIL", "ah", "oov", "a_b"]
    assert phone_names({**symbols, "positions": False}, "phones") == symbols["inventory"]
    with pytest.raises(StreamError, match="toy has no inventory of phones"):
        phone_names({}, "toy")


def test_frames_that_are_not_in_time_are_refused(tmp_path: Path) -> None:
    phones = write_phones(tmp_path, {"u": [1, 2]})
    codes = write_stream(tmp_path, {"u": np.ones((2, 2), np.float32)}, shift_s=None)
    with pytest.raises(StreamError, match=r"codes-\w+ has frames that are not in time"):
        frame_items(codes, phones, ["u"], seed=0)


def test_a_probe_learns_the_classes_of_train_and_is_tested_on_all(tmp_path: Path) -> None:
    codes = write_stream(tmp_path, {f"u{number}": np.ones((2, 2), np.float32) for number in range(8)})
    utterances = {f"u{n}": Utterance(f"u{n}", label=label, speaker="s") for n, label in enumerate("abbaccab")}
    fold = Fold("1", ("u0", "u1", "u2"), ("u3", "u4"), ("u5", "u6", "u7", "gone"))
    probe = make_probe(fold, utterances, codes)
    assert probe.fold == Fold("1", ("u0", "u1", "u2"), ("u3",), ("u5", "u6", "u7"))  # none can get u4, a 'c', right
    assert probe.classes == ("a", "b")
    task = probe.task()
    assert dict(zip(task.ids, task.labels.tolist(), strict=True)) == {
        "u0": 0, "u1": 1, "u2": 1, "u3": 0, "u5": -1, "u6": 0, "u7": 1,
    }  # fmt: skip
    other = make_probe(Fold("2", ("u4", "u0"), ("u5",), ("u1",)), utterances, codes)
    both = united([probe, other])
    assert both.classes == ("a", "b", "c")
    assert [both.classes[label] for label in both.labels] == [utterances[name].label for name in both.ids]
    with pytest.raises(ProtocolError, match="fold '3': nothing is left in test"):
        make_probe(Fold("3", ("u0", "u1"), (), ("gone",)), utterances, codes)
    with pytest.raises(ProtocolError, match="fold '3': all of train is 'b'"):
        make_probe(Fold("3", ("u1", "u2"), (), ("u0",)), utterances, codes)


def test_frames_stay_in_the_part_of_their_utterance(tmp_path: Path) -> None:
    phones = write_phones(tmp_path, {f"u{number}": [7, 8, 9] for number in range(4)})
    codes = write_stream(tmp_path, {f"u{number}": np.ones((3, 2), np.float32) for number in range(4)}, shift_s=0.02)
    utterances = {f"u{number}": Utterance(f"u{number}", speaker=f"s{number}") for number in range(4)}
    probe = make_probe(Fold("1", ("u2", "u0"), ("u1",), ("u3",)), utterances, codes, phones)
    for part, names in (("train", ("u2", "u0")), ("validation", ("u1",)), ("test", ("u3",))):
        expected = [f"{name}@0.0{at}s" for name in names for at in (0, 2, 4)]
        assert list(probe.fold.parts[part]) == expected
    task = probe.task()
    assert [task.places[number] for number in task.positions(["u1@0.02s", "u3@0.04s"])] == [("u1", 1), ("u3", 2)]
    assert [task.speakers[number] for number in task.positions(["u1@0.02s", "u3@0.04s"])] == ["s1", "s3"]
    symbols = arpabet128().symbols
    assert probe.labels("test") == [symbols[number].rpartition("_")[0] for number in (7, 8, 9)]


def test_the_majority_rate_is_of_the_commonest_class_of_train() -> None:
    assert majority_rate(["a", "b", "b"], ["a", "a", "b", "c"]) == 0.25
    assert majority_rate(["b", "a"], ["a", "a", "b", "c"]) == 0.5  # the first by name of two as common
    assert majority_rate(["a"], ["b"]) == 0.0


def test_classes_that_a_fold_lacks_have_probability_0() -> None:
    outcome = Outcome("1", np.array([[0.25, 0.75]]), np.array([[1.0, 0.0], [0.5, 0.5]]), {}, [])
    wide = over_classes(outcome, ("b", "d"), ("a", "b", "c", "d"))
    assert wide.test.tolist() == [[0, 0.25, 0, 0.75]]
    assert wide.validation.tolist() == [[0, 1, 0, 0], [0, 0.5, 0, 0.5]]
