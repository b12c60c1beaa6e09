"""How folds divide a corpus: by a column, by a corpus's own split, at random, stratified, or inside another fold.

Random choices are made by ranking ids by a keyed digest of each, so that a fold depends on the seed and on what is in
the corpus, and not on the order of the manifest, the platform or the Python release.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import PurePath

from featcache.errors import ProtocolError
from featcache.files import canonical_json
from featcache.manifest import COLUMNS, Utterance
from heads.fold_files import PART_NAMES, natural_key
from heads.protocol import Fold, shown

KINDS: Mapping[str, str] = {
    "session": "leave one session out",
    "speaker": "leave one speaker out",
    "split": "one fold, from the column 'split': train, validation (or dev), test",
    "column:NAME": "leave out one value of a column",
    "random:K": "K random folds, stratified by class; speaker-dependent",
    "stratified:70/20/10": "one fold: shares of train, validation and test, stratified by class; speaker-dependent",
    "within:KIND": "the training part of each fold of a kind, itself divided 80/10/10 as 'stratified' does",
    "PATH": "a JSON file of folds, or a folder of EmoBox's lists",
}
"""The kinds of folds that `make_folds` knows, with what each does."""

STRATIFIED = "speaker-dependent"
"""Name of the one fold of ``stratified``, so that wherever its result stands it says what it is."""

_WITHIN = (0.8, 0.1, 0.1)


def plain_kind(kind: str) -> str:
    """Return a kind of folds without the folders of this machine, where it is a file's path."""
    family, colon, rest = kind.partition(":")
    if colon and family == "within":
        return f"within:{plain_kind(rest)}"
    return kind if colon and family in ("column", "random", "stratified") else PurePath(kind).name


def speaker_dependent(kind: str) -> bool:
    """Return whether a kind of folds has speakers on both sides by its definition."""
    return kind.startswith(("random:", "stratified:", "within:"))


def groups(corpus: Sequence[Utterance], column: str) -> dict[str, list[str]]:
    """Return ids by the value of a column, as text.

    Raises:
        ProtocolError: utterances without a value.
    """
    found: dict[str, list[str]] = {}
    missing: list[str] = []
    for utterance in corpus:
        value = utterance.column(column)
        if value is None or not str(value).strip():
            missing.append(utterance.id)
        else:
            found.setdefault(str(value), []).append(utterance.id)
    if not found:
        extra = sorted({name for utterance in corpus for name in utterance.extra})
        exist = [name for name in COLUMNS if any(utterance.column(name) is not None for utterance in corpus)] + extra
        raise ProtocolError(f"No utterance has the column {column!r}. Columns that exist: {', '.join(exist)}.")
    if missing:
        raise ProtocolError(
            f"{len(missing)} of {len(corpus)} utterances have no {column!r} ({shown(missing)}). "
            "Fill the column in, or take them out of the manifest."
        )
    return found


def leave_one_out(corpus: Sequence[Utterance], column: str) -> list[Fold]:
    """Return a fold for each value of a column, which is tested.

    Raises:
        ProtocolError: utterances without a value, or one value only.
    """
    found = groups(corpus, column)
    if len(found) < 2:
        value = next(iter(found))
        raise ProtocolError(
            f"All utterances have the same {column!r}, {value!r}: leaving it out leaves no training part."
        )
    folds: list[Fold] = []
    for value in sorted(found, key=natural_key):
        test = frozenset(found[value])
        train = tuple(utterance.id for utterance in corpus if utterance.id not in test)
        folds.append(Fold(value, train, (), tuple(found[value])))
    return folds


def own_split(corpus: Sequence[Utterance]) -> Fold:
    """Return the one fold that the column 'split' says.

    Raises:
        ProtocolError: a value that names no part.
    """
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for value, ids in groups(corpus, "split").items():
        part = PART_NAMES.get(value.strip().lower())
        if part is None:
            raise ProtocolError(
                f"The column 'split' has the value {value!r} ({len(ids)} utterances, such as {ids[0]!r}). "
                f"Known: {', '.join(PART_NAMES)}."
            )
        parts[part] = sorted(parts[part] + ids)
    return Fold("split", tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]))


def random_folds(corpus: Sequence[Utterance], argument: str, seed: int) -> list[Fold]:
    """Return folds drawn at random, their classes as even as can be.

    Args:
        corpus: the utterances, sorted by id.
        argument: how many folds, as the user wrote it.
        seed: of the choice.

    Raises:
        ProtocolError: no such number.
    """
    num_folds = int(argument) if argument.isdecimal() else 0
    if not 2 <= num_folds <= len(corpus):
        raise ProtocolError(
            f"'random:K' needs a whole number K from 2 to the number of utterances ({len(corpus)}), got {argument!r}."
        )
    rank = ranking(seed, "random")
    # Dealt like cards, class after class: each class, and the whole, is spread evenly to within one.
    dealt = sorted(corpus, key=lambda utterance: (str(utterance.label), rank(utterance.id)))
    folds: list[Fold] = []
    for index in range(num_folds):
        test = {utterance.id for utterance in dealt[index::num_folds]}
        train = tuple(utterance.id for utterance in corpus if utterance.id not in test)
        folds.append(Fold(str(index + 1), train, (), tuple(sorted(test))))
    return folds


def stratified(corpus: Sequence[Utterance], argument: str, seed: int) -> Fold:
    """Return one fold of given shares, each class divided alike.

    Args:
        corpus: the utterances, sorted by id.
        argument: shares of train, validation and test, such as ``70/20/10``, as the user wrote it.
        seed: of the choice.

    Raises:
        ProtocolError: no such shares.
    """
    try:
        numbers = [float(text) for text in argument.split("/")]
    except ValueError:
        numbers = []
    total = math.fsum(numbers)
    if len(numbers) != 3 or not all(number > 0 for number in numbers) or not _close(total, (1, 100)):
        raise ProtocolError(
            "'stratified:TRAIN/VALIDATION/TEST' needs three shares above 0 that make 100 in all, such as 70/20/10; got "
            f"{argument!r}."
        )
    train, validation, test = (number / total for number in numbers)
    return _divided(STRATIFIED, corpus, (train, validation, test), ranking(seed, "stratified"))


def within(folds: Sequence[Fold], corpus: Sequence[Utterance], seed: int) -> list[Fold]:
    """Return the training part of each fold, itself divided 80/10/10, each class alike; the names stay.

    What a model learns there has nothing of what the fold tests, so it may begin the training of that fold.
    """
    inner = []
    for fold in folds:
        inside = set(fold.train)
        part = [utterance for utterance in corpus if utterance.id in inside]
        inner.append(_divided(fold.name, part, _WITHIN, ranking(seed, "within", fold.name)))
    return inner


def _close(total: float, wanted: Sequence[float]) -> bool:
    return any(math.isclose(total, one, rel_tol=1e-6) for one in wanted)


def _divided(
    name: str, corpus: Sequence[Utterance], shares: tuple[float, float, float], rank: Callable[[str], bytes]
) -> Fold:
    """Return a fold by shares of each class, rounded; a class of three or more is in every part, any is in train."""
    _, validation_share, test_share = shares
    test, validation = drawn(corpus, rank, test_share, validation_share)
    train = tuple(utterance.id for utterance in corpus if utterance.id not in validation | test)
    return Fold(name, train, tuple(sorted(validation)), tuple(sorted(test)))


def drawn(corpus: Sequence[Utterance], rank: Callable[[str], bytes], *shares: float) -> list[set[str]]:
    """Return disjoint draws from a corpus, of each class alike, which leave at least one of each class.

    Args:
        corpus: the utterances.
        rank: gives an id its place; the first are drawn.
        shares: of each class, rounded, but at least one as long as more than one is left.
    """
    classes: dict[str | None, list[str]] = {}
    for utterance in corpus:
        classes.setdefault(utterance.label, []).append(utterance.id)
    draws: list[set[str]] = [set() for _ in shares]
    for ids in classes.values():
        left = sorted(ids, key=rank)
        for share, draw in zip(shares, draws, strict=True):
            count = min(len(left) - 1, rounded(share, len(ids)))
            draw.update(left[:count])
            left = left[count:]
    return draws


def rounded(share: float, of: int) -> int:
    """Return a share of a number, rounded, at least 1."""
    return max(1, math.floor(share * of + 0.5))


def ranking(seed: int, *purpose: str) -> Callable[[str], bytes]:
    """Return a function that gives each text a place in a random order of its own seed and purpose."""
    key = blake2b(canonical_json([seed, *purpose])).digest()
    return lambda text: blake2b(text.encode("utf-8"), digest_size=16, key=key).digest()
