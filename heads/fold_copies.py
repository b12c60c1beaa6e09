"""Augmented copies in folds: they train where their originals train, and are never chosen on or scored.

A copy is a manifest row with the column ``version_of``, the id of its original. Folds are made of originals alone;
then the copies of training originals join them. What a copy lacks (label, speaker, session, other columns) is its
original's.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from featcache.errors import ProtocolError
from featcache.files import quoted
from featcache.manifest import Utterance
from heads.protocol import COPY_OF, Fold

_OWN = ("label", "speaker", "session")


def originals(utterances: Iterable[Utterance]) -> dict[str, str]:
    """Return the id of each copy to that of its original; the original of a copy of a copy is the first of them.

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
    found = dict(direct)
    for name in direct:
        seen = {name}
        while found[name] in direct:
            if found[name] in seen:
                raise ProtocolError(f"{name!r} is a version of itself ({COPY_OF!r} leads back to it). Correct the row.")
            seen.add(found[name])
            found[name] = direct[found[name]]
    return found


def completed(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Return utterances whose copies have what only their originals say: label, speaker, session, further columns.

    Raises:
        ProtocolError: a copy whose original is not there, or has another label, speaker or session.
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
        _completed(utterance, by_id[originals_of[utterance.id]]) if utterance.id in originals_of else utterance
        for utterance in utterances
    ]


def _completed(copy: Utterance, original: Utterance) -> Utterance:
    for name in _OWN:
        own, its = copy.column(name), original.column(name)
        if own and own != its:
            raise ProtocolError(
                f"The copy {copy.id!r} has the {name} {own!r}, and its original {original.id!r} has {its!r}. A copy is "
                "of the same speaker, says the same and has the same label: correct the row, or leave its columns out."
            )
    return replace(
        copy,
        label=original.label,
        speaker=original.speaker,
        session=original.session,
        extra={**{name: value for name, value in original.extra.items() if name != COPY_OF}, **copy.extra},
    )


def stripped(fold: Fold, copies: Collection[str]) -> Fold:
    """Return a fold without the copies in its training part; elsewhere they stay, for the checks to find."""
    return replace(fold, train=tuple(name for name in fold.train if name not in copies)) if copies else fold


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
