"""Folds: which utterances train, which choose, which are scored.

A test part is a session, a speaker, the values of any manifest column, a corpus's own split, a random
share, or what a file says (:mod:`heads.fold_kinds`). Validation is cut from the training part, never from test: 80/20
at random over utterances as SUPERB's emotion task does (https://arxiv.org/abs/2105.01051; here stratified by class,
there not), or by whole speakers. Augmented copies train where their originals do (:mod:`heads.fold_copies`).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, overload

from featcache.errors import ManifestError, ProtocolError
from featcache.manifest import Utterance
from heads.fold_copies import completed, originals, with_copies
from heads.fold_files import natural_key, read_folds, save_folds
from heads.fold_kinds import (
    KINDS,
    drawn,
    leave_one_out,
    own_split,
    random_folds,
    ranking,
    rounded,
    speaker_dependent,
    stratified,
    within,
)
from heads.protocol import ALLOWABLE, Fold, Problem, check_folds, refusal, shown, stray_copies

__all__ = [
    "KINDS",
    "Fold",
    "FoldSet",
    "Problem",
    "check_folds",
    "fold_names",
    "make_folds",
    "natural_key",
    "ranking",
    "read_folds",
    "save_folds",
]


@dataclass(frozen=True)
class FoldSet(Sequence[Fold]):
    """Folds in natural order of their names, and what the protocol checks found.

    Attributes:
        folds: the folds.
        kind: what they were asked for as.
        problems: warnings, and errors that the caller allowed; see `leaks`.
        num_unlabelled: utterances left out because they have no label.
    """

    folds: tuple[Fold, ...]
    kind: str
    problems: tuple[Problem, ...] = ()
    num_unlabelled: int = 0

    @property
    def leaks(self) -> tuple[Problem, ...]:
        """Errors that the caller allowed; a report has to show them."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def speaker_independent(self) -> bool:
        """Whether every speaker is known and none is on both sides of a split, nor of what had learnt before."""
        told = {problem.name for problem in self.problems} & {"speaker", "no-speaker"}
        return not told and not any(problem.name == "tuned" for problem in self.leaks)

    @overload
    def __getitem__(self, index: int) -> Fold: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Fold, ...]: ...
    def __getitem__(self, index: int | slice) -> Fold | tuple[Fold, ...]:
        """Return the fold at a position, or a tuple of them for a slice."""
        return self.folds[index]

    def __len__(self) -> int:
        return len(self.folds)

    def __iter__(self) -> Iterator[Fold]:
        return iter(self.folds)


def make_folds(
    utterances: Iterable[Utterance],
    kind: str | Path,
    *,
    validation: float = 0.2,
    validation_by: Literal["utterance", "speaker"] = "utterance",
    seed: int = 0,
    allow: Collection[str] = (),
    drop_unlabelled: bool = False,
    audio: Mapping[str, str] | None = None,
) -> FoldSet:
    """Divide a corpus into folds, and check them.

    Args:
        utterances: the corpus, such as a `Manifest`.
        kind: one of `KINDS`: ``session``, ``speaker``, ``split``, ``column:NAME``, ``random:K``,
            ``stratified:70/20/10``, ``within:KIND``, or the path of a folds file. A file that lists augmented copies
            is taken at its word; else the copies of all training originals are added to train.
        validation: share of each training part that becomes validation, 0 to below 1, where the folds do not
            bring a validation part of their own; 0 cuts none.
        validation_by: ``utterance`` cuts at random, stratified by class, and leaves every class in train;
            ``speaker`` cuts whole speakers, at least one, such that every class stays in train, and prefers
            speakers that bring every class to validation.
        seed: of the random choices.
        allow: names of errors to let pass, of `heads.protocol.ALLOWABLE`; they stay in `FoldSet.problems`.
            ``random:K``, ``stratified`` and ``within`` allow ``speaker`` by themselves: who asks for one of them asks
            for speaker-dependent folds.
        drop_unlabelled: leave utterances without a label out, and count them, instead of refusing.
        audio: by id, the digest of an utterance's audio, for as many as are known; with it copies of one recording
            under several names are found.

    Returns:
        The folds. Each part of a fold made here is sorted by id; parts from a file keep its order.

    Raises:
        ProtocolError: a kind, column or file that does not fit; unlabelled utterances; a leak that is not
            allowed, or any other error of `check_folds`.
    """
    allowed = _allowed(allow, str(kind))
    _check_validation(validation, validation_by)
    everything, unlabelled = _labelled(utterances, drop_unlabelled)
    originals_of = originals(everything)
    corpus = [utterance for utterance in everything if utterance.id not in originals_of]
    listed = _divide(corpus, kind, seed, unlabelled, set(originals_of))
    strays = stray_copies(listed, originals_of)
    if strays:
        raise ProtocolError(refusal(f"The folds {str(kind)!r}", strays))
    folds = [fold.without(originals_of) for fold in listed]
    problems: list[Problem] = []
    if "unknown" in allowed:
        problems = [problem for problem in check_folds(folds, corpus) if problem.name == "unknown"]
        known = {utterance.id for utterance in everything}
        folds = [fold.within(known) for fold in folds]
    if validation > 0:
        folds = [fold if fold.validation else _cut(fold, corpus, validation, validation_by, seed) for fold in folds]
    as_listed = any(name in originals_of for fold in listed for name in fold.train)
    folds = [with_copies(fold, one, originals_of, as_listed) for fold, one in zip(folds, listed, strict=True)]
    problems += check_folds(folds, everything, audio)
    errors = [problem for problem in problems if problem.severity == "error" and problem.name not in allowed]
    if errors:
        raise ProtocolError(refusal(f"The folds {str(kind)!r}", errors))
    return FoldSet(tuple(folds), str(kind), tuple(problems), len(unlabelled))


def fold_names(
    utterances: Iterable[Utterance], kind: str | Path, *, seed: int = 0, drop_unlabelled: bool = False
) -> list[str]:
    """Return the names of the folds that :func:`make_folds` divides a corpus into, in their order; nothing is checked.

    Raises:
        ProtocolError: a kind, column or file that does not fit; unlabelled utterances.
    """
    everything, unlabelled = _labelled(utterances, drop_unlabelled)
    copies = set(originals(everything))
    corpus = [utterance for utterance in everything if utterance.id not in copies]
    return [fold.name for fold in _divide(corpus, kind, seed, unlabelled, copies)]


def _allowed(allow: Collection[str], kind: str) -> frozenset[str]:
    names = frozenset([allow] if isinstance(allow, str) else allow)
    unknown = sorted(names - set(ALLOWABLE))
    if unknown:
        raise ProtocolError(f"Nothing called {shown(unknown)} can be allowed. What can: {', '.join(ALLOWABLE)}.")
    return names | {"speaker"} if speaker_dependent(kind) else names


def _check_validation(validation: float, validation_by: str) -> None:
    if not 0 <= validation < 1:
        hint = f" For {validation:g} % say {validation / 100:g}." if 1 < validation < 100 else ""
        raise ProtocolError(f"The validation share must be at least 0 and below 1, got {validation!r}.{hint}")
    if validation_by not in ("utterance", "speaker"):
        raise ProtocolError(f"Validation is cut by 'utterance' or by 'speaker', not by {validation_by!r}.")


def _labelled(utterances: Iterable[Utterance], drop: bool) -> tuple[list[Utterance], frozenset[str]]:
    """Return the labelled utterances sorted by id, copies as their originals are, and the ids of the others."""
    everything = sorted(utterances, key=lambda utterance: utterance.id)
    for one, other in pairwise(everything):
        if one.id == other.id:
            raise ManifestError(f"The id {one.id!r} occurs more than once. Every utterance needs an id of its own.")
    everything = completed(everything)
    unlabelled = [utterance.id for utterance in everything if not utterance.label]
    if unlabelled and not drop:
        raise ProtocolError(
            f"{len(unlabelled)} of {len(everything)} utterances have no label ({shown(unlabelled)}), so they can "
            "neither train nor be scored. Take them out of the manifest, or leave them out here with drop_unlabelled "
            "(train-heads --drop-unlabelled)."
        )
    labelled = [utterance for utterance in everything if utterance.label]
    if not labelled:
        raise ProtocolError("There is no labelled utterance to make folds of.")
    return labelled, frozenset(unlabelled)


def _divide(
    corpus: Sequence[Utterance], kind: str | Path, seed: int, unlabelled: frozenset[str], copies: Set[str] = frozenset()
) -> list[Fold]:
    """Return folds in natural order, without a validation part unless the kind brings one."""
    name, _, argument = str(kind).partition(":")
    if kind in ("session", "speaker"):
        return leave_one_out(corpus, name)
    if kind == "split":
        return [own_split(corpus)]
    if name == "column" and argument:
        return leave_one_out(corpus, argument)
    if name == "random" and argument:
        return random_folds(corpus, argument, seed)
    if name == "stratified" and argument:
        return [stratified(corpus, argument, seed)]
    if name == "within" and argument:
        outer = [fold.without(copies) for fold in _divide(corpus, argument, seed, unlabelled, copies)]
        return within(outer, corpus, seed)
    if isinstance(kind, Path) or kind.endswith(".json") or Path(kind).exists():
        folds = read_folds(kind, {utterance.id for utterance in corpus} | copies)
        return [fold.without(unlabelled) for fold in folds]
    kinds = "; ".join(f"{known}: {meaning}" for known, meaning in KINDS.items())
    raise ProtocolError(f"There are no folds of the kind {kind!r}, and no such file. Kinds are: {kinds}.")


def _cut(fold: Fold, corpus: Sequence[Utterance], share: float, by: str, seed: int) -> Fold:
    """Return the fold with a share of its training part moved to validation."""
    inside = set(fold.train)
    train = [utterance for utterance in corpus if utterance.id in inside]
    if not train:
        return fold  # check_folds says so
    rank = ranking(seed, "validation", fold.name)
    [chosen] = drawn(train, rank, share) if by == "utterance" else [_choose_speakers(train, share, rank, fold)]
    left = tuple(name for name in fold.train if name not in chosen)
    return replace(fold, train=left, validation=tuple(name for name in fold.train if name in chosen))


def _choose_speakers(train: Sequence[Utterance], share: float, rank: Callable[[str], bytes], fold: Fold) -> set[str]:
    heard: dict[str, set[str | None]] = {}
    for utterance in train:
        if not utterance.speaker:
            raise ProtocolError(
                f"{utterance.id!r} has no speaker, so validation cannot be cut by speaker. Cut it by utterance."
            )
        heard.setdefault(utterance.speaker, set()).add(utterance.label)
    classes = set().union(*heard.values())
    chosen: list[str] = []
    left = sorted(heard, key=rank)
    for _ in range(rounded(share, len(heard))):
        covered = set().union(*(heard[speaker] for speaker in chosen))
        spare = [one for one in left if set().union(*(heard[other] for other in left if other != one)) == classes]
        if not spare:
            break
        # max() keeps the first of equals, so the random order decides between speakers of the same use.
        chosen.append(max(spare, key=lambda speaker: len(heard[speaker] - covered)))
        left.remove(chosen[-1])
    if not chosen:
        raise ProtocolError(
            f"fold {fold.name!r}: none of the {len(heard)} speakers in train can move to validation without taking "
            "a class out of train. Cut validation by utterance."
        )
    return {utterance.id for utterance in train if utterance.speaker in chosen}
