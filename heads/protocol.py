"""What makes a set of folds worth a number: checks for leaks and for folds that cannot be scored.

A problem is an *error* when a result would be meaningless or not what it claims: a speaker, an
utterance or a recording on both sides of a split, a class that is tested but never trained, an
empty part. It is a *warning* when a result stands but is to be read with care. Errors named in
:data:`ALLOWABLE` are sometimes what a user wants (EmoBox's EMO-DB folds share all ten speakers);
they pass when the user names them, and stay on record.

The checks know what the manifest says, and, where a caller gives digests of the audio, which recordings are
the same to the sample under different names. A copy that was encoded, cut or made louder, or one person under two
speaker names, is not visible here.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from featcache.errors import ProtocolError
from featcache.files import quoted
from featcache.manifest import Utterance
from heads.duplicates import Copy, Span, copied, copies, overlaps, shared_spans, words

_FEW_TELLING = 0.01
"""Share of tested utterances that may say a text whose label is known from training before it is told."""

_MANY_AGAIN = 0.5
"""Share of tested utterances that may say a text from training before it is told."""

COPY_OF = "version_of"
"""The manifest's column that makes an utterance an augmented copy: the id of its original."""

ALLOWABLE: Mapping[str, str] = {
    "speaker": "a speaker is on both sides of a split: the result is speaker-dependent",
    "recording": "a stretch of audio is on both sides of a split",
    "duplicate": "copies of one recording are on both sides of a split",
    "class": "a class is tested but never trained",
    "unknown": "the folds name utterances that the manifest lacks, which are left out",
    "tuned": "features or first weights have learnt from utterances that are tested",
}
"""Errors that a caller can allow by name, and what it means to do so."""


@dataclass(frozen=True)
class Fold:
    """One division of a corpus.

    Attributes:
        name: unique in its set; the group that is tested, where there is one.
        train: ids that weights are fitted on.
        validation: ids that anything is chosen on (epoch, setting, fusion weight); may be empty.
        test: ids that are scored, and nothing else.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def within(self, ids: Container[str]) -> "Fold":
        """Return the fold without the utterances that are not among some."""
        return Fold(self.name, *(tuple(name for name in part if name in ids) for part in self.parts.values()))

    def without(self, ids: Container[str]) -> "Fold":
        """Return the fold without some utterances."""
        return Fold(self.name, *(tuple(name for name in part if name not in ids) for part in self.parts.values()))


@dataclass(frozen=True)
class Problem:
    """One finding about a set of folds.

    Attributes:
        name: its kind: ``speaker``, ``recording``, ``duplicate``, ``copy``, ``class``, ``utterance``, ``unknown``,
            ``empty``, ``name``, ``no-speaker``, ``retested``, ``unused``, ``text`` or ``sentences``; ``tuned``, of what
            is read (`heads.learnt`); and of a run folder ``trained``, ``selected``, ``unscored``, ``label``,
            ``other-folds``, ``context`` or ``allowed`` (`pipelines.check.check_run`).
        severity: ``error`` or ``warning``.
        fold: the fold it was found in, or None when it is about all of them.
        text: what was found, in words.
    """

    name: str
    severity: Literal["error", "warning"]
    fold: str | None
    text: str

    def __str__(self) -> str:
        return self.text if self.fold is None else f"fold {self.fold!r}: {self.text}"


def check_folds(
    folds: Sequence[Fold], utterances: Iterable[Utterance], audio: Mapping[str, str] | None = None
) -> list[Problem]:
    """Return everything that is wrong or doubtful about folds over a corpus; an empty list is a clean bill.

    Args:
        folds: the folds, in any number.
        utterances: the corpus they divide, such as a `Manifest`.
        audio: by id, the digest of an utterance's audio (`featcache.audio.Recording.digest`), for as many as are
            known; None looks for no copies.

    Returns:
        Errors and warnings, those about all folds first, then fold by fold.

    Raises:
        ProtocolError: see :func:`lineages`.
    """
    corpus = {utterance.id: utterance for utterance in utterances}
    named = [corpus[name] for name in sorted({name for fold in folds for name in _ids(fold)}) if name in corpus]
    classes = sorted({utterance.label for utterance in named if utterance.label is not None})
    spans = shared_spans(named)
    problems = _check_set(folds, corpus, named)
    problems += _check_texts(folds, named)
    problems += _check_copies(folds, corpus, copied(named, audio or {}))
    problems += stray_copies(folds, originals(corpus.values()))
    for fold in folds:
        problems += _check_parts(fold, corpus)
        problems += _check_speakers(fold, corpus)
        problems += _check_recordings(fold, spans)
        problems += _check_classes(fold, corpus, classes)
    return problems


def lineages(utterances: Iterable[Utterance]) -> dict[str, list[str]]:
    """Return the id of each augmented copy to what it is a version of, what that is a version of, and so on.

    The last is its original, whether it is among the utterances or not.

    Raises:
        ProtocolError: the column holds no id, or copies that are versions of one another.
    """
    direct: dict[str, str] = {}
    for utterance in utterances:
        value = utterance.column(COPY_OF)
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise ProtocolError(
                f"{utterance.id!r}: the column {COPY_OF!r} must be the id of an utterance, got {quoted(value)}."
            )
        direct[utterance.id] = value
    found: dict[str, list[str]] = {}
    for name, first in direct.items():
        line = [first]
        while line[-1] in direct:
            if line[-1] in (name, *line[:-1]):
                raise ProtocolError(f"{name!r} is a version of itself ({COPY_OF!r} leads back to it). Correct the row.")
            line.append(direct[line[-1]])
        found[name] = line
    return found


def originals(utterances: Iterable[Utterance]) -> dict[str, str]:
    """Return the id of each augmented copy to that of its original; of a copy of a copy that is the first of them.

    Raises:
        ProtocolError: see :func:`lineages`.
    """
    return {name: line[-1] for name, line in lineages(utterances).items()}


def stray_copies(folds: Sequence[Fold], originals_of: Mapping[str, str]) -> list[Problem]:
    """Return the augmented copies that are chosen on or scored, or train where their original does not."""
    problems: list[Problem] = []
    for fold in folds if originals_of else ():
        for part in ("validation", "test"):
            found = sorted(name for name in fold.parts[part] if name in originals_of)
            if found:
                text = (
                    f"{len(found)} augmented copies are in {part}, such as {found[0]!r}, a version of "
                    f"{originals_of[found[0]]!r}; copies are for training alone"
                )
                problems.append(Problem("copy", "error", fold.name, text))
        train = set(fold.train)
        found = sorted(name for name in train if name in originals_of and originals_of[name] not in train)
        if found:
            text = (
                f"{len(found)} augmented copies are in train without their original, such as {found[0]!r}, a version "
                f"of {originals_of[found[0]]!r}"
            )
            problems.append(Problem("copy", "error", fold.name, text))
    return problems


def refusal(what: str, errors: Sequence[Problem]) -> str:
    """Return the sentence that refuses folds: what is wrong, and what of it could be allowed."""
    lines = [str(problem) for problem in errors[:10]]
    if len(errors) > 10:
        lines.append(f"and {len(errors) - 10} more")
    nameable = sorted({problem.name for problem in errors if problem.name in ALLOWABLE})
    if nameable:
        meanings = "; ".join(f"{name!r} ({ALLOWABLE[name]})" for name in nameable)
        lines.append(f"Choose other folds, or allow by name what is meant: {meanings}.")
    return f"{what} cannot give a meaningful result:\n  " + "\n  ".join(lines)


def shown(items: Sequence[str], limit: int = 3) -> str:
    """Return the first few of a list, for a message."""
    text = ", ".join(repr(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"


def _ids(fold: Fold) -> tuple[str, ...]:
    return fold.train + fold.validation + fold.test


def _known(names: Iterable[str], corpus: Mapping[str, Utterance]) -> list[Utterance]:
    return [corpus[name] for name in names if name in corpus]


def _check_set(folds: Sequence[Fold], corpus: Mapping[str, Utterance], named: Sequence[Utterance]) -> list[Problem]:
    problems: list[Problem] = []
    if not folds:
        problems.append(Problem("empty", "error", None, "there is no fold"))
    twice = sorted(name for name, count in Counter(fold.name for fold in folds).items() if count > 1)
    if twice:
        problems.append(Problem("name", "error", None, f"several folds are called {shown(twice)}"))
    nameless = [utterance.id for utterance in named if not utterance.speaker]
    if nameless:
        text = (
            f"{len(nameless)} of {len(named)} utterances have no speaker ({shown(nameless)}), "
            "so speaker independence cannot be checked; add the column 'speaker'"
        )
        problems.append(Problem("no-speaker", "warning", None, text))
    tests = Counter(name for fold in folds for name in set(fold.test))
    retested = sorted(name for name, count in tests.items() if count > 1)
    if retested:
        text = f"{len(retested)} utterances are tested in more than one fold ({shown(retested)})"
        problems.append(Problem("retested", "warning", None, text + "; pooled results count them again"))
    used = {utterance.id for utterance in named}
    # A copy trains where its original does, and nowhere else.
    unused = sorted(name for name in corpus if name not in used and not corpus[name].column(COPY_OF))
    if unused and folds:
        text = f"{len(unused)} of {len(corpus)} utterances are in no fold ({shown(unused)})"
        problems.append(Problem("unused", "warning", None, text))
    return problems


def _check_parts(fold: Fold, corpus: Mapping[str, Utterance]) -> list[Problem]:
    problems: list[Problem] = []
    counts = Counter(_ids(fold))
    unknown = sorted(name for name in counts if name not in corpus)
    if unknown:
        text = f"{len(unknown)} ids are not in the manifest ({shown(unknown)})"
        problems.append(Problem("unknown", "error", fold.name, text))
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        first = " and ".join(part for part, names in fold.parts.items() for name in names if name == twice[0])
        text = f"{len(twice)} utterances are listed more than once, such as {twice[0]!r} (in {first})"
        problems.append(Problem("utterance", "error", fold.name, text))
    for part in ("train", "test"):
        if not fold.parts[part]:
            problems.append(Problem("empty", "error", fold.name, f"{part} is empty"))
    if not fold.validation:
        text = "validation is empty, so nothing may be chosen: no epoch, setting or weight"
        problems.append(Problem("empty", "warning", fold.name, text))
    return problems


def _check_speakers(fold: Fold, corpus: Mapping[str, Utterance]) -> list[Problem]:
    problems: list[Problem] = []
    tested = Counter(utterance.speaker for utterance in _known(fold.test, corpus) if utterance.speaker)
    for part in ("train", "validation"):
        heard = Counter(utterance.speaker for utterance in _known(fold.parts[part], corpus) if utterance.speaker)
        both = sorted(speaker for speaker in tested if speaker in heard)
        if both:
            text = (
                f"{len(both)} speakers are in {part} and in test, such as {both[0]!r} "
                f"({heard[both[0]]} and {tested[both[0]]} utterances)"
            )
            problems.append(Problem("speaker", "error", fold.name, text))
    return problems


def _check_recordings(fold: Fold, spans: Mapping[str, Span]) -> list[Problem]:
    problems: list[Problem] = []
    for left, right in (("train", "test"), ("validation", "test"), ("train", "validation")):
        pairs = overlaps(fold.parts[left], fold.parts[right], spans)
        if pairs:
            text = f"{len(pairs)} utterances of {right} share audio with {left}, such as {_pair(pairs[0])}"
            problems.append(Problem("recording", "error" if right == "test" else "warning", fold.name, text))
    return problems


def _check_copies(folds: Sequence[Fold], corpus: Mapping[str, Utterance], copy_of: Mapping[str, Copy]) -> list[Problem]:
    if not copy_of:
        return []
    alike: dict[str, list[str]] = {}
    for name in sorted(copy_of):
        alike.setdefault(copy_of[name].digest, []).append(name)
    labels = [{corpus[name].label for name in names} for names in alike.values()]
    differing = sum(len(each) > 1 for each in labels)
    text = f"{len(alike)} recordings are there under several names, such as {shown(next(iter(alike.values())))}"
    text += f"; the copies of {differing} have different labels" if differing else ""
    problems = [Problem("duplicate", "warning", None, text)]
    for fold in folds:
        for part in ("train", "validation"):
            pairs = copies(fold.parts[part], fold.test, copy_of)
            if pairs:
                text = f"{len(pairs)} utterances of test are copies of recordings in {part}, such as {_pair(pairs[0])}"
                problems.append(Problem("duplicate", "error", fold.name, text))
    return problems


def _pair(pair: tuple[str, str]) -> str:
    return f"{pair[1]!r} and {pair[0]!r}"


def _check_texts(folds: Sequence[Fold], named: Sequence[Utterance]) -> list[Problem]:
    """Look for texts that were trained on and are tested again, over all folds together."""
    said = {one.id: text for one in named if one.label is not None and (text := words(one.text))}
    labels: dict[str, set[str | None]] = {}
    for utterance in named:
        if utterance.id in said:
            labels.setdefault(said[utterance.id], set()).add(utterance.label)
    tested, again, telling = 0, 0, Counter[str]()
    for fold in folds:
        trained = {said[name] for name in fold.train if name in said}
        texts = [said[name] for name in fold.test if name in said]
        repeated = [text for text in texts if text in trained]
        tested, again = tested + len(texts), again + len(repeated)
        telling.update(text for text in repeated if len(labels[text]) == 1)
    problems: list[Problem] = []
    several = len(set().union(*labels.values())) > 1
    if several and telling.total() > _FEW_TELLING * tested:
        example, count = min(telling.items(), key=lambda item: (-item[1], item[0]))
        (label,) = labels[example]
        text = (
            f"{_share(telling.total(), tested)} say a text that train says too, and that has one label only, such as "
            f"{quoted(example)} ({count} times {label!r}): there the words alone give the label away"
        )
        problems.append(Problem("text", "warning", None, text))
    if again > _MANY_AGAIN * tested:
        text = (
            f"{_share(again, tested)} say a text that train says too: the result is about these sentences, and not "
            "about new ones"
        )
        problems.append(Problem("sentences", "warning", None, text))
    return problems


def _share(count: int, of: int) -> str:
    return f"{count} of {of} tested utterances with a text ({100 * count / of:.0f} %)"


def _check_classes(fold: Fold, corpus: Mapping[str, Utterance], classes: Sequence[str]) -> list[Problem]:
    problems: list[Problem] = []
    found = {part: {utterance.label for utterance in _known(names, corpus)} for part, names in fold.parts.items()}
    for part, names in fold.parts.items():
        absent = [label for label in classes if label not in found[part]]
        if not names or not absent:
            continue
        tested = [label for label in absent if label in found["test"]]
        if part == "train" and tested:
            text = f"train has no {shown(tested)}, which test has, so no head can learn it"
            problems.append(Problem("class", "error", fold.name, text))
        else:
            text = f"{part} has no {shown(absent)}"
            text += "; UA is the mean recall of the classes that are there" if part == "test" else ""
            problems.append(Problem("class", "warning", fold.name, text))
    return problems
