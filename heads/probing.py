"""What probes are trained and tested on: items, their classes and their folds.

A probe asks what the codes of a trained encoder hold. Who speaks is asked as Makiuchi, Uto and Shinoda 2021, section
6.2, ask it: on the speakers that the encoder was trained on, a fifth of each one's utterances tested. Whatever else is
asked keeps the encoder's own folds, so that neither the encoder nor the probe has heard the speakers of test. Items are
of originals alone: the augmented copies that an encoder was trained with are left out of every part of a probe.

Random choices follow from digests of names and the seed, not from the order of anything.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from featcache.cache import CachedStream
from featcache.errors import ProtocolError, StreamError
from featcache.files import canonical_json
from featcache.manifest import Utterance
from heads.fold_kinds import ranking, rounded
from heads.protocol import Fold, shown
from heads.task import Outcome, Task
from heads.unfinished import Unfinished

FRAMES_OF_AN_UTTERANCE = 16
"""Most frames of one utterance that a probe of phones reads; neighbours tell little that is new."""


def speaker_dependent_fold(
    fold: Fold, speakers: Mapping[str, str | None], seed: int, test: float = 0.2, validation: float = 0.1
) -> Fold:
    """Divide what an encoder was trained on inside each speaker, so that every speaker is in every part.

    Which of a speaker's utterances go where depends on their ids, the seed, and the names of the fold and the speaker,
    not on the order of anything nor on other speakers. The published experiment chose nothing and had no validation.

    Args:
        fold: a fold of originals that the encoder was trained on; its train and validation parts are divided, and its
            test part is left out. Copies would be dealt apart from their originals: leave them out before.
        speakers: speaker of each utterance.
        seed: of the draw.
        test: share of a speaker's utterances that are tested.
        validation: share of the others that anything is chosen on.

    Returns:
        A fold of the same name, parts sorted by id. Speakers with too few utterances to be in every part are left out.

    Raises:
        ProtocolError: shares that are none; utterances without a speaker.
    """
    if not (0 < test < 1 and 0 <= validation < 1):
        raise ProtocolError(
            f"A probe needs a test share between 0 and 1 and a validation share of at least 0 and below 1, got {test} "
            f"and {validation}."
        )
    pool = sorted({*fold.train, *fold.validation})
    nameless = [name for name in pool if not speakers.get(name)]
    if nameless:
        raise ProtocolError(
            f"fold {fold.name!r}: {len(nameless)} of {len(pool)} utterances have no speaker ({shown(nameless)}), so "
            "they cannot be divided inside each speaker. Fill the manifest's column 'speaker'."
        )
    spoken: dict[str, list[str]] = {}
    for name in pool:
        spoken.setdefault(str(speakers[name]), []).append(name)
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for speaker, ids in spoken.items():
        ranked = sorted(ids, key=ranking(seed, "probe", fold.name, speaker))
        num_test = rounded(test, len(ranked))
        num_validation = rounded(validation, len(ranked) - num_test) if validation else 0
        if num_test + num_validation < len(ranked):
            parts["test"] += ranked[:num_test]
            parts["validation"] += ranked[num_test : num_test + num_validation]
            parts["train"] += ranked[num_test + num_validation :]
    return Fold(fold.name, *(tuple(sorted(parts[part])) for part in ("train", "validation", "test")))


@dataclass(frozen=True)
class FrameItem:
    """A frame that a probe classifies.

    Attributes:
        id: the utterance's id and where the frame begins, such as ``UTT@1.24s``.
        utterance: the utterance's id.
        frame: the frame of the codes that stands for that time.
        label: its phone.
    """

    id: str
    utterance: str
    frame: int
    label: str


def frame_items(
    codes: CachedStream, phones: CachedStream, ids: Sequence[str], seed: int, most: int = FRAMES_OF_AN_UTTERANCE
) -> list[FrameItem]:
    """Draw frames of utterances, each with the phone spoken there.

    The draw depends on the seed and the utterance's id and number of frames alone. A frame of phones belongs to the
    code in whose time its middle lies; frames behind the last code are never drawn.

    Args:
        codes: what the probe reads.
        phones: ids of phones (stream ``phones``).
        ids: utterances that both streams hold.
        seed: of the draw.
        most: most frames of one utterance.

    Returns:
        Items, utterance by utterance in the order given, those of one in the order of time.

    Raises:
        StreamError: frames that are not in time, or phones without an inventory.
    """
    for stream in (codes, phones):
        if not stream.spec.frame_shift_s:
            raise StreamError(f"{stream.name} has frames that are not in time, so phones cannot be laid beside them.")
    names = phone_names(phones.spec.settings, phones.name)
    shift_s = float(phones.spec.frame_shift_s or 0)
    codes_in_one = shift_s / float(codes.spec.frame_shift_s or 1)
    decimals = 3 if round(shift_s * 1000) % 10 else 2
    items: list[FrameItem] = []
    for name in ids:
        spoken = phones[name][0, :, 0]
        frames = np.floor((np.arange(len(spoken)) + 0.5) * codes_in_one).astype(np.int64)
        inside = int((frames < codes.num_frames(name)).sum())  # they never decrease
        key = blake2b(canonical_json([seed, "frames", name]), digest_size=8).digest()
        # Raw bits are the same in every release of NumPy; what Generator draws from them may change.
        order = np.random.PCG64(int.from_bytes(key)).random_raw(inside).argsort(kind="stable")
        items += [
            FrameItem(f"{name}@{at * shift_s:.{decimals}f}s", name, int(frames[at]), names[int(spoken[at])])
            for at in sorted(order[:most].tolist())
        ]
    return items


def phone_names(settings: Mapping[str, Any], stream: str) -> list[str]:
    """Return the phone that each id stands for; phones are not told apart by their position in the word.

    Args:
        settings: of a stream ``phones``.
        stream: what to call it in messages.

    Raises:
        StreamError: it has no inventory.
    """
    if "inventory" not in settings:
        raise StreamError(f"{stream} has no inventory of phones. Name a stream of kind phones.")
    symbols = [str(symbol) for symbol in settings["inventory"]]
    return [symbol.rpartition("_")[0] or symbol for symbol in symbols] if settings.get("positions") else symbols


@dataclass(frozen=True)
class Probe:
    """What the probe of one fold learns.

    Attributes:
        fold: its items.
        items: id to item, of those in the fold: an utterance, or a frame in the form of one; its label is its class.
        stream: the fold's codes.
        places: id to the utterance and the frame that an item stands for; empty where items are utterances.
    """

    fold: Fold
    items: Mapping[str, Utterance]
    stream: CachedStream
    places: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def labels(self, part: str) -> list[str]:
        """Return the classes of a part's items, in their order."""
        return [str(self.items[name].label) for name in self.fold.parts[part]]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the train part, sorted."""
        return tuple(sorted(set(self.labels("train"))))

    def task(self, device: str = "cpu", unfinished: Unfinished | None = None) -> Task:
        """Return the task over :attr:`classes`; -1 labels items of test whose class train lacks: always wrong."""
        task = _task([self], self.classes)
        places = [self.places[name] for name in task.ids] if self.places else []
        return replace(task, streams={"codes": self.stream}, device=device, places=places, unfinished=unfinished)


def make_probe(
    fold: Fold,
    utterances: Mapping[str, Utterance],
    codes: CachedStream,
    phones: CachedStream | None = None,
    seed: int = 0,
) -> Probe:
    """Return what the probe of a fold learns.

    Items of validation whose class train lacks are left out: no candidate could get them right.

    Args:
        fold: utterances; those that are not among `utterances` are left out.
        utterances: by id, with what is to be learnt as their labels.
        codes: the fold's codes.
        phones: where given, frames are classified by phone, whatever the utterances' labels.
        seed: of the frames drawn.

    Raises:
        ProtocolError: nothing is left of train or of test, or train has one class alone.
        StreamError: see :func:`frame_items`.
    """
    items, places = dict(utterances), {}
    fold = fold.within(utterances)
    if phones is not None:
        drawn = frame_items(codes, phones, sorted(name for part in fold.parts.values() for name in part), seed)
        items = {one.id: replace(utterances[one.utterance], id=one.id, label=one.label, audio=None) for one in drawn}
        places = {one.id: (one.utterance, one.frame) for one in drawn}
        frames_of: dict[str, list[str]] = {}
        for one in drawn:
            frames_of.setdefault(one.utterance, []).append(one.id)
        parts = ([item for name in part for item in frames_of.get(name, ())] for part in fold.parts.values())
        fold = Fold(fold.name, *map(tuple, parts))
    known = {items[name].label for name in fold.train}
    fold = replace(fold, validation=tuple(name for name in fold.validation if items[name].label in known))
    for part in ("train", "test"):
        if not fold.parts[part]:
            raise ProtocolError(
                f"fold {fold.name!r}: nothing is left in {part}. A probe needs utterances that have what it is to "
                "tell, and that its streams hold; for speakers, three or more of one speaker."
            )
    if len(known) < 2:
        raise ProtocolError(f"fold {fold.name!r}: all of train is {known.pop()!r}: there is nothing to tell apart.")
    used = [name for part in fold.parts.values() for name in part]
    return Probe(
        fold, {name: items[name] for name in used}, codes, {name: places[name] for name in used if name in places}
    )


def united(probes: Sequence[Probe]) -> Task:
    """Return the items of all folds as one task over the classes of all, for what is written of them; no features."""
    return _task(probes, sorted({str(item.label) for probe in probes for item in probe.items.values()}))


def _task(probes: Sequence[Probe], classes: Sequence[str]) -> Task:
    items = {name: item for probe in probes for name, item in probe.items.items()}
    ids = sorted(items)
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers.get(str(items[name].label), -1) for name in ids], np.int64)
    folds, speakers = tuple(probe.fold for probe in probes), [items[name].speaker for name in ids]
    return Task({}, ids, labels, tuple(classes), folds, speakers=speakers)


def majority_rate(train: Sequence[str], test: Sequence[str]) -> float:
    """Return the share of test items in the commonest class of train, which a probe has to beat; ties by name."""
    counts = Counter(train)
    commonest = min(counts, key=lambda label: (-counts[label], label))
    return sum(label == commonest for label in test) / len(test)


def over_classes(outcome: Outcome, own: Sequence[str], classes: Sequence[str]) -> Outcome:
    """Return an outcome over more classes, with probability 0 for those that its fold did not have.

    Args:
        outcome: of one fold, over `own`.
        own: the fold's classes.
        classes: all classes, among them the fold's.
    """
    columns = [list(classes).index(name) for name in own]

    def spread(values: np.ndarray) -> np.ndarray:
        wide = np.zeros((len(values), len(classes)))
        wide[:, columns] = values
        return wide

    return replace(outcome, test=spread(outcome.test), validation=spread(outcome.validation))
