"""Scores: the probability of every class for every scored utterance.

``scores.csv`` is the whole interface between runs and everything that compares, fuses or reports them:
any program that writes one has made a run. It is RFC 4180 with a header::

    id,fold,label,p_angry,p_happy,p_neutral,p_sad
    Ses01F_impro01_F000,1,neutral,0.1,0.2,0.6,0.1

The order of the ``p_`` columns is the order of the classes. Other columns are left alone. An utterance may be
scored in several folds; the key is fold and id together.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ScoresError
from featcache.files import listed, quoted, read_plain, write_atomically

SUM_TOLERANCE = 5e-3
"""How far a row of probabilities may sum from 1: three printed decimals of ten classes do not reach it."""

_KEY = ("id", "fold", "label")
_PREFIX = "p_"


@dataclass(frozen=True, eq=False)
class Scores:
    """Probabilities of classes for utterances.

    Attributes:
        ids: (utterances,) names; unique within a fold.
        folds: (utterances,) the fold in which each was scored.
        labels: (utterances,) the true class of each.
        classes: (classes,) class names, in the order of the columns.
        probabilities: (utterances, classes) float64, read-only; rows sum to 1 within `SUM_TOLERANCE`.

    Raises:
        ScoresError: anything of the above does not hold; the message names the utterance and guesses the mistake.
    """

    ids: tuple[str, ...]
    folds: tuple[str, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("ids", "folds", "labels", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        probabilities = np.array(self.probabilities, np.float64)
        probabilities.setflags(write=False)
        object.__setattr__(self, "probabilities", probabilities)
        self._check_shapes()
        self._check_names()
        self._check_probabilities()

    def _check_shapes(self) -> None:
        if not self.ids:
            raise ScoresError("There are no scores: not one utterance.")
        if len(self.classes) < 2:
            raise ScoresError(f"Scores need two classes or more, got {quoted(list(self.classes))}.")
        if not len(self.ids) == len(self.folds) == len(self.labels):
            counts = f"{len(self.ids)} ids, {len(self.folds)} folds and {len(self.labels)} labels"
            raise ScoresError(f"Each utterance needs an id, a fold and a label; there are {counts}.")
        if self.probabilities.shape != (len(self.ids), len(self.classes)):
            raise ScoresError(
                f"The probabilities have the shape {self.probabilities.shape} where {len(self.ids)} utterances and "
                f"{len(self.classes)} classes give {(len(self.ids), len(self.classes))}."
            )

    def _check_names(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise ScoresError(f"A class occurs twice among {quoted(list(self.classes))}.")
        known = frozenset(self.classes)
        for name, label in zip(self.ids, self.labels, strict=True):
            if label not in known:
                raise ScoresError(
                    f"{quoted(name)} has the label {quoted(label)}, which is none of the classes "
                    f"{quoted(list(self.classes))}."
                )
        twice = [key for key, count in Counter(zip(self.folds, self.ids, strict=True)).items() if count > 1]
        if twice:
            fold, name = twice[0]
            raise ScoresError(
                f"{len(twice)} utterances are scored more than once in a fold, such as {quoted(name)} in fold "
                f"{quoted(fold)}. For several seeds or repeats, give each a fold name of its own."
            )

    def _check_probabilities(self) -> None:
        values = self.probabilities
        bad = ~np.isfinite(values)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ScoresError(
                f"{bad.any(axis=1).sum()} of {len(values)} utterances have scores that are not finite, such as "
                f"{quoted(self.ids[row])} in fold {quoted(self.folds[row])}: {values[row, column]} for "
                f"{quoted(self.classes[column])}. The run that wrote them has failed there."
            )
        with np.errstate(over="ignore"):
            sums = values.sum(axis=1)
        wrong = np.flatnonzero((values < 0).any(axis=1) | (np.abs(sums - 1) > SUM_TOLERANCE))
        if len(wrong):
            row = wrong[0]
            found = listed(f"{value:g}" for value in values[row])
            raise ScoresError(
                f"{len(wrong)} of {len(values)} utterances have scores that are not probabilities, such as "
                f"{quoted(self.ids[row])} in fold {quoted(self.folds[row])}: {found} "
                f"(sum {sums[row]:g}). {_guess(values)}"
            )

    @property
    def reference(self) -> NDArray[np.int64]:
        """(utterances,) the position of each label among the classes."""
        position = {label: index for index, label in enumerate(self.classes)}
        return np.array([position[label] for label in self.labels], np.int64)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(utterances,) the position of the highest probability, of the first at a tie."""
        return self.probabilities.argmax(axis=1)

    @classmethod
    def read(cls, path: str | Path) -> "Scores":
        """Read ``scores.csv``.

        Raises:
            ScoresError: the file is missing or malformed, or does not hold probabilities; the message says where.
        """
        try:
            # newline="": a quoted id may hold line ends of any kind, and csv needs to see them.
            return cls._parse(csv.reader(io.StringIO(read_plain(path).decode("utf-8-sig"), newline=""), strict=True))
        except FileNotFoundError:
            raise ScoresError(f"There is no score file {str(path)!r}.") from None
        except ScoresError as error:
            raise ScoresError(f"{str(path)!r}: {error}") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ScoresError(f"{str(path)!r} cannot be read: {error}. Expected is CSV in UTF-8.") from None

    @classmethod
    def _parse(cls, reader: Any) -> "Scores":
        header: list[str] = next(reader, [])
        _check_header(header)
        key = [header.index(name) for name in _KEY]
        columns = [index for index, name in enumerate(header) if name.startswith(_PREFIX)]
        names: list[list[str]] = []
        values: list[list[float]] = []
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ScoresError(f"Line {reader.line_num} has {len(row)} fields where the header has {len(header)}.")
            names.append([row[index] for index in key])
            values.append([_number(row[index], header[index], row[key[0]], reader.line_num) for index in columns])
        ids, folds, labels = zip(*names, strict=True) if names else ((), (), ())
        classes = tuple(header[index].removeprefix(_PREFIX) for index in columns)
        return cls(ids, folds, labels, classes, np.array(values, np.float64).reshape(len(ids), len(classes)))

    def write(self, path: str | Path) -> None:
        """Write ``scores.csv``, atomically; reading it gives exactly the same scores."""
        text = io.StringIO()
        # The line end is RFC 4180's. It also makes csv quote ids that hold a carriage return or a line feed.
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow([*_KEY, *(_PREFIX + name for name in self.classes)])
        keys = zip(self.ids, self.folds, self.labels, strict=True)
        writer.writerows([*key, *map(repr, row)] for key, row in zip(keys, self.probabilities.tolist(), strict=True))
        write_atomically(Path(path), text.getvalue().encode("utf-8"))


def _check_header(header: Sequence[str]) -> None:
    missing = [name for name in _KEY if name not in header]
    if missing or not any(name.startswith(_PREFIX) for name in header):
        single = header[0] if len(header) == 1 else ""
        separator = next((name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in single), None)
        hint = f" It seems to be separated by {separator}; commas are needed." if separator else ""
        raise ScoresError(
            f"Expected the columns id, fold, label and p_CLASS for each class, found {quoted(list(header))}.{hint}"
        )
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise ScoresError(f"The column {quoted(twice[0])} occurs more than once.")


def _number(text: str, column: str, name: str, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ScoresError(
            f"Line {line}, {quoted(name)}: the column {quoted(column)} holds {quoted(text)}, not a number."
        ) from None


def _guess(values: NDArray[np.float64]) -> str:
    """Return what scores that are not probabilities seem to be, and the remedy."""
    if (values <= 0).all() and np.allclose(np.exp(values).sum(axis=1), 1, atol=SUM_TOLERANCE):
        return "Log-probabilities? Write their exponentials."
    if (values < 0).any():
        return "Logits? Write their softmax over the classes."
    with np.errstate(over="ignore"):
        percentages = np.allclose(values.sum(axis=1), 100, atol=100 * SUM_TOLERANCE)
    if percentages:
        return "Percentages? Divide them by 100."
    return "Write probabilities: 0 or more, each row divided by its sum. Was a class left out?"


def match(first: Scores, other: Scores, names: tuple[str, str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the rows and columns of one score table that stand for those of another.

    Args:
        first: the table whose order is wanted.
        other: the table to be put into that order.
        names: what to call the two in messages.

    Returns:
        (utterances,) rows and (classes,) columns of `other`, in the order of `first`. Folds may be called
        differently in the two, as long as they divide the utterances alike.

    Raises:
        ScoresError: other classes, other utterances, other folds or other labels; the message says how many.
    """
    if _same_order(first, other):
        return np.arange(len(first.ids)), np.arange(len(first.classes))
    if set(first.classes) != set(other.classes):
        raise ScoresError(f"{names[0]} has the classes {list(first.classes)} and {names[1]} {list(other.classes)}.")
    columns = np.array([other.classes.index(name) for name in first.classes], np.int64)
    fold_names = _fold_names(first, other)
    row_of = {
        (fold_names.get(fold, fold), name): row
        for row, (fold, name) in enumerate(zip(other.folds, other.ids, strict=True))
    }
    wanted = list(zip(first.folds, first.ids, strict=True))
    missing = [key for key in wanted if key not in row_of]
    surplus = sorted(set(row_of) - set(wanted))
    if missing or surplus:
        raise ScoresError(_difference(first, other, names, missing, surplus))
    rows = np.array([row_of[key] for key in wanted], np.int64)
    for name, label, row in zip(first.ids, first.labels, rows, strict=True):
        if other.labels[row] != label:
            raise ScoresError(
                f"{name!r} is labelled {label!r} in {names[0]} and {other.labels[row]!r} in {names[1]}. "
                "Make both runs from the same manifest."
            )
    return rows, columns


def align(runs: Sequence[Scores], names: Sequence[str] = ()) -> list[Scores]:
    """Return score tables with the same utterances, folds and classes in the order of the first.

    Where an utterance has equal scores of two classes, what counts as its prediction may change with their order.

    Args:
        runs: the tables.
        names: what to call each in messages.

    Raises:
        ScoresError: they are not over the same utterances, folds, classes and labels; see `match`.
    """
    names = names or [f"run {index}" for index in range(1, len(runs) + 1)]
    aligned = list(runs[:1])
    for other, name in zip(runs[1:], names[1:], strict=True):
        if _same_order(runs[0], other):
            aligned.append(other)
            continue
        rows, columns = match(runs[0], other, (names[0], name))
        values = other.probabilities[rows][:, columns]
        aligned.append(Scores(runs[0].ids, runs[0].folds, runs[0].labels, runs[0].classes, values))
    return aligned


def _same_order(first: Scores, other: Scores) -> bool:
    return all(getattr(first, name) == getattr(other, name) for name in ("ids", "folds", "labels", "classes"))


def _fold_names(first: Scores, other: Scores) -> Mapping[str, str]:
    """Return what `first` calls the folds of `other`; nothing where they do not correspond one to one."""
    place = dict(zip(first.ids, first.folds, strict=True))
    if len(place) != len(first.ids):
        return {}
    pairs = {(fold, place[name]) for fold, name in zip(other.folds, other.ids, strict=True) if name in place}
    names = dict(pairs)
    return names if len(pairs) == len(names) == len(set(names.values())) else {}


def _difference(
    first: Scores,
    other: Scores,
    names: tuple[str, str],
    missing: Sequence[tuple[str, str]],
    surplus: Sequence[tuple[str, str]],
) -> str:
    if Counter(first.ids) == Counter(other.ids):
        return (
            f"{names[0]} and {names[1]} score the same {len(first.ids)} utterances but divide them into other folds, "
            f"such as {missing[0][1]!r}. Make both runs with the same folds."
        )
    sentences = [
        f"{where} lacks {len(keys)} of the {len(against.ids)} utterances of {whose}, such as "
        f"{keys[0][1]!r} in fold {keys[0][0]!r}."
        for where, whose, against, keys in ((names[1], names[0], first, missing), (names[0], names[1], other, surplus))
        if keys
    ]
    return " ".join([*sentences, "Runs are compared over the same utterances: make both from the same manifest."])
