"""What features and first weights have learnt from, held against folds: nothing is tested on what they have seen.

An encoder that was fine-tuned, and a run that another training begins with, bring along a record of the utterances
that they learnt from (:mod:`featcache.tuned`). An utterance is the same if its audio is, or its id, or if one is an
augmented copy of the other. One that has another's id and other audio, both digests taken in the same form, is another;
but where half of what is tested or more is so, its audio was converted, or ids are names of two corpora, and a user has
to say which.

Under another id an utterance is known by its audio alone: where digests of both are there, of streams that both run at
the recording's own rate, or neither. Of an encoder that learnt from recordings of 16 kHz at 16 kHz, where the cache now
has streams of 22.05 kHz alone, or of texts alone, renamed utterances are not found.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from featcache.audio import RESAMPLER
from featcache.cache import CachedStream
from featcache.manifest import Utterance
from featcache.tuned import Tuned
from heads.protocol import Fold, Problem, originals, shown


@dataclass(frozen=True)
class Source:
    """Something that has learnt before a head is trained.

    Attributes:
        name: what messages call it.
        tuned: what it has learnt from.
        hint: what to do where it may not be read; empty where there is nothing better to say.
    """

    name: str
    tuned: Tuned
    hint: str = ""


@dataclass(frozen=True)
class Audio:
    """Digests of the audio of utterances, as far as a cache knows them.

    Attributes:
        digests: by id.
        form: what they cover beside the samples; only digests of one form can show that audio differs.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    form: str = ""


def audio_of(streams: Iterable[CachedStream], ids: Sequence[str]) -> Audio:
    """Return digests of utterances' audio, each from the first stream that reads audio alone and holds it.

    They are of one form: of several that the streams have, the first that knows most utterances.
    """
    by_form: dict[str, dict[str, str]] = {}
    for stream in streams:
        if stream.spec.input != "audio":
            continue
        known = by_form.setdefault(audio_form(stream.spec.sample_rate_hz), {})
        held = (name for name in ids if name not in known and name in stream)
        known |= {name: stream.locate(name).entry.input for name in held}
        if len(known) == len(ids):
            break
    form, digests = max(by_form.items(), key=lambda item: len(item[1]), default=("", {}))
    return Audio(digests, form) if digests else Audio()


def audio_form(sample_rate_hz: int | None) -> str:
    """Return what digests of audio that a stream of this rate was fed cover beside the samples."""
    return f"{sample_rate_hz} Hz, {RESAMPLER}"


def check_learnt(
    folds: Sequence[Fold], sources: Mapping[str, Sequence[Source]], utterances: Iterable[Utterance], audio: Audio
) -> list[Problem]:
    """Return where what is read has learnt from what is tested (an error) or chosen on (a warning).

    Args:
        folds: the folds.
        sources: fold to what has learnt before it is trained.
        utterances: the corpus that the folds divide.
        audio: digests of its audio.

    Returns:
        Problems called ``tuned``; and problems called ``speaker``, where what is read has heard a tested speaker who is
        in neither train nor validation: warnings where it knows none of these utterances, and only names coincide.
    """
    corpus = {utterance.id: utterance for utterance in utterances}
    copies = originals(corpus.values())
    problems: list[Problem] = []
    for fold in folds:
        for source in sources.get(fold.name, ()):
            for record in source.tuned.everything():
                name = source.name if record == source.tuned else f"{source.name}, which began with {record.run!r},"
                met = _Met(record, copies, audio)
                problems += _check(fold, Source(name, record, source.hint), met, corpus)
    return problems


def learnt_among(record: Tuned, known: Sequence[tuple[str | None, str | None]]) -> set[int]:
    """Return the positions of utterances that a record has learnt from.

    Args:
        record: what was learnt from.
        known: of each utterance its id, where it is one of that corpus, and the digest of its audio.
    """
    learnt = {*record.train, *record.validation}
    heard = {record.audio[name] for name in learnt if name in record.audio}
    learnt |= {record.copies[name] for name in learnt if name in record.copies}
    return {at for at, (name, digest) in enumerate(known) if name in learnt or digest in heard}


class _Met:
    """Finds the utterances of a corpus among those of a record."""

    def __init__(self, record: Tuned, copies: Mapping[str, str], audio: Audio) -> None:
        self._record, self._audio = record, audio
        self._comparable = bool(audio.form) and audio.form == record.audio_form
        self._copies = {**copies, **record.copies}

    def split(self, part: Sequence[str], learnt: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """Return the utterances of a part that are among those learnt, with their names there; and mere namesakes."""
        by_audio = {self._record.audio[name]: name for name in learnt if name in self._record.audio}
        by_id = {original: name for name in learnt for original in self._versions(name)}
        by_id |= {name: name for name in learnt}
        found: dict[str, str] = {}
        namesakes: list[str] = []
        for name in part:
            digest = self._audio.digests.get(name)
            if digest is not None and digest in by_audio:
                found[name] = by_audio[digest]
            elif name in by_id and self._differs(name, digest):
                namesakes.append(name)
            elif name in by_id:
                found[name] = by_id[name]
        return found, namesakes

    def _versions(self, name: str) -> list[str]:
        """Return an id, and those of what it is a copy of."""
        names = [name]
        while (original := self._copies.get(names[-1])) is not None and original not in names:
            names.append(original)
        return names

    def _differs(self, name: str, digest: str | None) -> bool:
        theirs = self._record.audio.get(name)
        return self._comparable and digest is not None and theirs is not None and theirs != digest


def _check(fold: Fold, source: Source, met: _Met, corpus: Mapping[str, Utterance]) -> list[Problem]:
    record = source.tuned
    problems: list[Problem] = []
    tested, namesakes = met.split(fold.test, (*record.train, *record.validation))
    if tested:
        first, there = min(tested.items())
        known = "" if there == first else f" (there {there!r})"
        text = f"{source.name} has learnt from {len(tested)} of {len(fold.test)} tested utterances, such as {first!r}"
        problems.append(Problem("tuned", "error", fold.name, f"{text}{known}, {_of_what(source)}"))
    problems += _check_speakers(fold, source, met, corpus, {corpus[name].speaker for name in tested if name in corpus})
    if namesakes:
        problems.append(_coinciding(fold, source, namesakes))
    chosen, _ = met.split(fold.validation, record.train)
    if chosen:
        text = (
            f"{source.name} has learnt from {len(chosen)} of {len(fold.validation)} utterances of validation, such as "
            f"{min(chosen)!r}: what is chosen there looks better than it is"
        )
        problems.append(Problem("tuned", "warning", fold.name, text))
    return problems


def _of_what(source: Source) -> str:
    """Return for what something has learnt."""
    return f"for the fold {source.tuned.fold!r} of {source.tuned.run!r}"


def _coinciding(fold: Fold, source: Source, namesakes: Sequence[str]) -> Problem:
    """Return what is said of tested utterances that have the ids of others: a few are chance, many are none."""
    many = 2 * len(namesakes) >= len(fold.test)
    text = (
        f"{len(namesakes)} of {len(fold.test)} tested utterances have ids that {source.name} has learnt from "
        f"({shown(namesakes)}), and other audio"
    )
    if many:
        text += (
            ". If these are the same recordings, converted since, it has learnt from what is tested. If they are "
            "another corpus's, give them other ids in the manifest (such as CORPUS-ID) and extract them again"
        )
    else:
        text += ": they are taken for others. If the recordings were converted since, they are not"
    return Problem("tuned", "error" if many else "warning", fold.name, text)


def _check_speakers(
    fold: Fold, source: Source, met: _Met, corpus: Mapping[str, Utterance], told: Set[str | None]
) -> Iterator[Problem]:
    """Look for tested speakers that a record has learnt from, and the fold itself has not.

    Args:
        fold: the fold.
        source: what has learnt.
        met: finds the corpus's utterances in the record.
        corpus: the utterances, by id.
        told: speakers of whom more is said already.
    """
    record = source.tuned

    def heard(ids: Iterable[str]) -> set[str]:
        return {speaker for name in ids if name in corpus and (speaker := corpus[name].speaker)}

    new = heard(fold.test) - heard(fold.train) - heard(fold.validation) - told
    if not new:
        return
    learnt = (*record.train, *record.validation)
    here, namesakes = met.split(list(corpus), learnt)
    others = set(namesakes)
    named = {record.speakers[name] for name in learnt if name in record.speakers and name not in others}
    found = sorted(new & (heard(here) | named))
    if not found:
        return
    text = f"{source.name} has learnt from {len(found)} speakers who are tested ({shown(found)}), {_of_what(source)}"
    if here:
        yield Problem("speaker", "error", fold.name, text)
    else:
        text += ". It knows none of these utterances: if other people are called so, give them other names"
        yield Problem("speaker", "warning", fold.name, text)
