"""IEMOCAP, read from the tree that the University of Southern California sends out.

The protocol of the field (see e.g. Makiuchi et al. 2021, SUPERB's emotion task, EmoBox): utterances
that at least two of the three annotators label alike, whose agreed label is in the summary lines
of ``EmoEvaluation``; four classes, with *excited* merged into *happy*: 5,531 of 10,039.

The summary line of one utterance and what follows it::

    [6.2901 - 8.2357]<TAB>Ses01F_impro01_F000<TAB>neu<TAB>[2.5000, 2.5000, 2.5000]
    C-E2:<TAB>Neutral;<TAB>()
    C-F1:<TAB>Neutral; Anger;<TAB>(curious)
    A-E3:<TAB>val 3; act 2; dom  2;<TAB>()

``C-E*`` are the annotators' own labels, one or several each; ``C-F*`` and ``C-M*`` are the actors'
self-reports and no votes; ``A-*`` are the ratings whose means stand in the summary line.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from featcache.corpora._shared import CLASS_OF, files, read_text, report
from featcache.corpus import Corpus
from featcache.errors import ConfigError, CorpusError
from featcache.files import quoted
from featcache.manifest import Utterance

_CLASSES = {
    "ang": "angry", "dis": "disgust", "exc": "excited", "fea": "fear", "fru": "frustrated", "hap": "happy",
    "neu": "neutral", "oth": "other", "sad": "sad", "sur": "surprise",
}  # fmt: skip
_NO_AGREEMENT = "xxx"
_FOUR = frozenset({"angry", "happy", "neutral", "sad"})
_KEPT = {4: _FOUR, 5: _FOUR | {"frustrated"}}
_GENDERS = {"F": "female", "M": "male"}

_NUMBER = r"-?\d+(?:\.\d+)?"
_SUMMARY = re.compile(
    rf"\[(?P<start>{_NUMBER})\s*-\s*(?P<end>{_NUMBER})\]\s+(?P<turn>\S+)\s+(?P<label>[a-z]{{3}})\s+"
    rf"\[(?P<valence>{_NUMBER}),\s*(?P<activation>{_NUMBER}),\s*(?P<dominance>{_NUMBER})\]"
)
# The first letter is the actor who wore the markers; the last one is who speaks.
_TURN = re.compile(r"(?P<session>Ses\d\d)[FM]_(?P<style>impro|script)\w{0,40}_(?P<letter>[FM])\d{3}")
_VOTE = re.compile(r"C-E\d+:\s*(?P<labels>[^(]*)")
_OTHER_LINES = ("%", "A-", "C-")  # the header, ratings on scales, self-reports
_TRANSCRIPT = re.compile(r"(?P<turn>Ses\S+)\s+\[[^\]]*\]:?(?P<text>.*)")


@dataclass
class _Rated:
    """One utterance as an ``EmoEvaluation`` file has it."""

    where: str
    summary: re.Match[str]
    turn: re.Match[str]
    ballots: list[set[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Iemocap(Corpus):
    """IEMOCAP: ten actors in five dyadic sessions, scripted and improvised, in English.

    ``speaker`` is the session and the speaker's own letter, such as ``Ses01M``. Extra columns:
    ``corpus_label`` (the release's three letters), ``votes`` (class to the number of annotators who
    named it, other classes included), ``valence``, ``activation``, ``dominance`` (means, 1 to 5),
    ``dialog``, ``dialog_start_s``, ``dialog_end_s``, ``style`` (``improvised`` or ``scripted``) and ``gender``.
    What a protocol leaves out is counted in the log.

    Attributes:
        classes: 4 keeps angry, happy, neutral and sad; 5 keeps frustrated as well; ``"all"`` keeps every
            utterance, those without agreement (``xxx``, 2,507) with no label.
        merge_excited: whether excited counts as happy, in labels and in votes. By default it does with 4 and
            5 classes, as published, and does not with ``"all"``. 4 classes without it are 4,490 utterances.
    """

    title = "IEMOCAP: Interactive Emotional Dyadic Motion Capture Database"
    licence = "Academic research only, under an agreement signed with USC's SAIL laboratory."
    citation = (
        "@article{busso2008iemocap, title={IEMOCAP: Interactive emotional dyadic motion capture database}, "
        "author={Busso, Carlos and Bulut, Murtaza and Lee, Chi-Chun and Kazemzadeh, Abe and Mower, Emily and "
        "Kim, Samuel and Chang, Jeannette N. and Lee, Sungbok and Narayanan, Shrikanth S.}, "
        "journal={Language Resources and Evaluation}, "
        "volume={42}, number={4}, pages={335--359}, year={2008}, doi={10.1007/s10579-008-9076-6}}"
    )
    url = "https://sail.usc.edu/iemocap/"
    layout = (
        "Session1 .. Session5 (or IEMOCAP_full_release/Session1 ..), each with\n"
        "  sentences/wav/<dialog>/<utterance>.wav\n"
        "  dialog/EmoEvaluation/<dialog>.txt\n"
        "  dialog/transcriptions/<dialog>.txt"
    )

    classes: int | Literal["all"] = 4
    merge_excited: bool | None = None

    def __post_init__(self) -> None:
        if self.classes != "all" and self.classes not in _KEPT:
            raise ConfigError(f"classes={self.classes!r} is not a protocol of IEMOCAP. Give 4, 5 or 'all'.")

    def utterances(self, root: Path) -> list[Utterance]:
        """Return the utterances of the chosen protocol, by session and dialog, in the order of the dialog.

        Raises:
            CorpusError: a session, file, recording or transcription is missing, or a line is malformed.
        """
        base = root / "IEMOCAP_full_release"
        base = base if base.is_dir() else root
        sessions = [base / f"Session{number}" for number in range(1, 6)]
        missing = [session.name for session in sessions if not session.is_dir()]
        if missing:
            raise CorpusError(f"{str(base)!r} has no {', '.join(missing)}. Expected:\n{self.layout}")
        kept = []
        left_out: Counter[str] = Counter()
        for session in sessions:
            for ratings in files(session / "dialog" / "EmoEvaluation", ".txt"):
                for rated, utterance in self._dialog(session, ratings, root):
                    if utterance is None:
                        left_out[rated.summary["label"]] += 1
                    else:
                        kept.append(utterance)
        report("IEMOCAP", len(kept), left_out)
        return kept

    def _dialog(self, session: Path, ratings: Path, root: Path) -> Iterator[tuple[_Rated, Utterance | None]]:
        """Yield every rated utterance of a dialog, and what becomes of it: None where the protocol leaves it out."""
        recordings = {path.stem: path for path in files(session / "sentences" / "wav" / ratings.stem, ".wav")}
        transcriptions = session / "dialog" / "transcriptions" / ratings.name
        texts = _texts(transcriptions)
        everything = _rated(ratings)
        unrated = sorted(recordings.keys() - everything.keys())
        if unrated:
            raise CorpusError(
                f"{str(ratings)!r} has no summary line for {quoted(unrated[0])}, of which there is a recording."
            )
        for name, rated in everything.items():
            label = self._label(rated)
            if self.classes != "all" and label not in _KEPT[self.classes]:
                yield rated, None
                continue
            if name not in recordings:
                missing = session / "sentences" / "wav" / ratings.stem / f"{name}.wav"
                raise CorpusError(f"There is no recording {str(missing)!r}, which {rated.where} rates.")
            if name not in texts:
                raise CorpusError(f"{str(transcriptions)!r} has no line for {quoted(name)}, which {rated.where} rates.")
            yield rated, self._utterance(name, rated, label, recordings[name].relative_to(root), texts[name])

    def _utterance(self, name: str, rated: _Rated, label: str | None, audio: Path, text: str) -> Utterance:
        summary, turn = rated.summary, rated.turn
        extra = {
            "corpus_label": summary["label"],
            "votes": self._votes(rated),
            "valence": float(summary["valence"]),
            "activation": float(summary["activation"]),
            "dominance": float(summary["dominance"]),
            "dialog": audio.parent.name,
            "dialog_start_s": float(summary["start"]),
            "dialog_end_s": float(summary["end"]),
            "style": "improvised" if turn["style"] == "impro" else "scripted",
            "gender": _GENDERS[turn["letter"]],
        }
        speaker = turn["session"] + turn["letter"]
        return Utterance(name, audio.as_posix(), text, label, speaker, turn["session"], extra=extra)

    def _label(self, rated: _Rated) -> str | None:
        label = rated.summary["label"]
        return None if label == _NO_AGREEMENT else self._merged(_CLASSES[label])

    def _votes(self, rated: _Rated) -> dict[str, int]:
        return dict(Counter(name for ballot in rated.ballots for name in sorted(set(map(self._merged, ballot)))))

    def _merged(self, name: str) -> str:
        merge = self.classes != "all" if self.merge_excited is None else self.merge_excited
        return "happy" if merge and name == "excited" else name


def _rated(path: Path) -> dict[str, _Rated]:
    """Return what an ``EmoEvaluation`` file says of each utterance, by its name, in the order of the file."""
    found: dict[str, _Rated] = {}
    current = None
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{str(path)!r}, line {number}"
        if line.startswith("C-E"):
            if current is None:
                raise CorpusError(f"{where}: {quoted(line)} stands before the first summary line.")
            current.ballots.append(_ballot(line, where))
        elif not line.startswith(_OTHER_LINES) and (line.startswith("[") or _TURN.search(line)):
            current = _summary(line, where)
            name = current.summary["turn"]
            if name in found:
                raise CorpusError(
                    f"{where}: {quoted(name)} is rated a second time; {found[name].where} rates it first."
                )
            found[name] = current
    return found


def _summary(line: str, where: str) -> _Rated:
    summary = _SUMMARY.match(line)
    turn = None if summary is None else _TURN.fullmatch(summary["turn"])
    if summary is None or turn is None:
        raise CorpusError(
            f"{where}: expected '[start - end] turn label [valence, activation, dominance]' "
            f"such as '[6.2901 - 8.2357] Ses01F_impro01_F000 neu [2.5000, 2.5000, 2.5000]', got {quoted(line)}."
        )
    if summary["label"] not in {*_CLASSES, _NO_AGREEMENT}:
        known = ", ".join([*_CLASSES, _NO_AGREEMENT])
        raise CorpusError(f"{where}: {summary['label']!r} is none of IEMOCAP's labels: {known}.")
    return _Rated(where, summary, turn)


def _ballot(line: str, where: str) -> set[str]:
    """Return the classes that one annotator names, several at times; one who names none abstains."""
    vote = _VOTE.match(line)
    if vote is None:
        raise CorpusError(
            f"{where}: expected an annotator's labels such as 'C-E2: Neutral; Anger; ()', got {quoted(line)}."
        )
    names = [name.strip() for name in vote["labels"].split(";") if name.strip()]
    strangers = [name for name in names if name.lower() not in CLASS_OF]
    if strangers:
        raise CorpusError(
            f"{where}: the annotator's label {quoted(strangers[0])} is none of {', '.join(sorted(CLASS_OF))}."
        )
    return {CLASS_OF[name.lower()] for name in names}


def _texts(path: Path) -> dict[str, str]:
    """Return the transcription of each turn; lines of other forms, which the release has, are passed over."""
    matches = map(_TRANSCRIPT.match, read_text(path).split("\n"))
    return {match["turn"]: match["text"].strip() for match in matches if match is not None}
