"""Augmented copies in folds: they train where their originals train, and are never chosen on or scored.

A copy is a manifest row with the column ``version_of``, the id of its original. Folds are made of originals alone;
then the copies of training originals join them. What a copy lacks (label, speaker, session, text, other columns) is
its original's.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from featcache.errors import ProtocolError
from featcache.files import quoted
from featcache.manifest import Utterance
from heads.protocol import COPY_OF, Fold, lineages, originals

__all__ = ["completed", "originals", "with_copies", "with_their_copies"]

_SAME = ("label", "speaker", "session", "text")


def with_their_copies(ids: Collection[str], utterances: Iterable[Utterance]) -> set[str]:
    """Return ids, and those of all copies of these utterances, copies of copies too.

    Where utterances are left out, these are: without its original nobody could tell in which part a copy may be.

    Raises:
        ProtocolError: see :func:`heads.protocol.lineages`.
    """
    return {*ids, *(name for name, line in lineages(utterances).items() if any(one in ids for one in line))}


def completed(utterances: Sequence[Utterance], same: Collection[str] = ()) -> list[Utterance]:
    """Return utterances whose copies have what only their originals say: label, speaker, text, further columns.

    A copy of a copy is then one of its original, so that it needs nobody else to be known as that.

    Args:
        utterances: originals and copies.
        same: columns in which a copy may not differ from its original, beside label, speaker, session and text.

    Raises:
        ProtocolError: a copy whose original is not there, or says something else.
    """
    originals_of = originals(utterances)
    if not originals_of:
        return list(utterances)
    by_id = {utterance.id: utterance for utterance in utterances}
    lacking = sorted(name for name, original in originals_of.items() if original not in by_id)
    if lacking:
        raise ProtocolError(
            f"{len(lacking)} copies have no original in the manifest, such as {lacking[0]!r}, a version of "
            f"{originals_of[lacking[0]]!r}. Without it nobody could tell in which part of a fold they may be. Add the "
            "originals, or take the copies out."
        )
    return [
        _completed(utterance, by_id[originals_of[utterance.id]], same) if utterance.id in originals_of else utterance
        for utterance in utterances
    ]


def _completed(copy: Utterance, original: Utterance, same: Collection[str]) -> Utterance:
    for name in (*_SAME, *same):
        own, its = copy.column(name), original.column(name)
        if _says(own) and own != its:
            raise ProtocolError(
                f"The copy {copy.id!r} has the {name} {quoted(own)}, and its original {original.id!r} has "
                f"{quoted(its)}. A copy is of the same speaker, says the same and has the same label: correct the row, "
                "or leave its columns out."
            )
    own_columns = {name: value for name, value in copy.extra.items() if _says(value)}
    return replace(
        copy,
        **{name: original.column(name) for name in _SAME},
        extra={**original.extra, **own_columns, COPY_OF: original.id},
    )


def _says(value: Any) -> bool:
    """Return whether a column says something; missing numbers are NaN in tables."""
    return value is not None and value != "" and value == value


def with_copies(fold: Fold, listed: Fold, originals_of: Mapping[str, str], as_listed: bool) -> Fold:
    """Return a fold whose training part has the copies of its originals too.

    Args:
        fold: of originals.
        listed: the same fold as it was before the copies were taken out and validation was cut.
        originals_of: copy to original.
        as_listed: add those alone that were listed, in the order of the list; else all, sorted in.
    """
    if not originals_of:
        return fold
    train = set(fold.train)
    if as_listed:
        kept = {name for name in listed.train if name in originals_of and originals_of[name] in train} | train
        return replace(fold, train=tuple(name for name in listed.train if name in kept))
    added = sorted(name for name, original in originals_of.items() if original in train)
    in_order = list(fold.train) == sorted(fold.train)
    return replace(fold, train=tuple(sorted([*fold.train, *added]) if in_order else [*fold.train, *added]))
