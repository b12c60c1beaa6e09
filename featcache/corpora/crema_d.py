"""CREMA-D, read from a clone of its repository: names like ``1001_DFA_ANG_XX.wav`` say everything.

That is actor, sentence, emotion and level. One recording of the release, ``1040_ITH_SAD_X``, has a level
of one letter, and ``1076_MTI_SAD_XX`` is known to be silent, which extraction reports. The labels are those
that the actors were asked for; what raters heard is in the release's ``processedResults``.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from featcache.corpora._shared import choose, files, read_text, select
from featcache.corpus import Corpus
from featcache.errors import CorpusError
from featcache.manifest import Utterance

_CLASSES = {"ANG": "angry", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
_SENTENCES = {
    "DFA": "Don't forget a jacket.",
    "IEO": "It's eleven o'clock.",
    "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.",
    "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.",
    "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.",
    "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
_NAME = re.compile(
    rf"(?P<actor>1\d{{3}})_(?P<sentence>{'|'.join(_SENTENCES)})_(?P<emotion>{'|'.join(_CLASSES)})"
    rf"_(?P<level>{'|'.join(_LEVELS)})"
)
_LFS_POINTER = b"version https://git-lfs"
_LFS_POINTER_MAX_BYTES = 1024


@dataclass(frozen=True)
class CremaD(Corpus):
    """CREMA-D: 91 actors, twelve English sentences, six acted emotions, 7,442 recordings.

    Extra columns: ``corpus_label``, ``sentence`` (its code), ``level`` (``low``, ``medium``, ``high`` or
    ``unspecified``) and, where ``VideoDemographics.csv`` lies beside ``AudioWAV``, ``gender``.

    Attributes:
        classes: ``"all"``, or some of angry, disgust, fear, happy, neutral, sad with commas between.
    """

    title = "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset"
    licence = "Open Database License 1.0; the recordings under the Database Contents License 1.0."
    citation = (
        "@article{cao2014cremad, title={CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset}, "
        "author={Cao, Houwei and Cooper, David G. and Keutmann, Michael K. and Gur, Ruben C. and Nenkova, Ani and "
        "Verma, Ragini}, journal={IEEE Transactions on Affective Computing}, volume={5}, number={4}, pages={377--390}, "
        "year={2014}, doi={10.1109/TAFFC.2014.2336244}}"
    )
    url = "https://github.com/CheyneyComputerScience/CREMA-D"
    layout = "AudioWAV/<actor>_<sentence>_<emotion>_<level>.wav; VideoDemographics.csv if gender is wanted"

    classes: str = "all"

    def __post_init__(self) -> None:
        choose(self.classes, _CLASSES.values())

    def utterances(self, root: Path) -> list[Utterance]:
        """Return the utterances below `root`, which is the folder that holds ``AudioWAV`` or that folder itself.

        Raises:
            CorpusError: a recording is not named as CREMA-D names its own or is a Git LFS pointer, or an actor
                is not in ``VideoDemographics.csv``.
        """
        folder = root / "AudioWAV" if (root / "AudioWAV").is_dir() else root
        demographics = folder.parent / "VideoDemographics.csv"
        genders = _genders(demographics) if demographics.is_file() else None
        found = (_utterance(path, root, genders) for path in files(folder, ".wav"))
        return select("CREMA-D", found, choose(self.classes, _CLASSES.values()))


def _utterance(path: Path, root: Path, genders: dict[str, str] | None) -> Utterance:
    name = _NAME.fullmatch(path.stem)
    if name is None:
        raise CorpusError(f"{str(path)!r} is not named as CREMA-D names its recordings, such as '1001_DFA_ANG_XX.wav'.")
    _check_is_no_pointer(path)
    actor = name["actor"]
    extra = {
        "corpus_label": name["emotion"],
        "sentence": name["sentence"],
        "level": _LEVELS[name["level"]],
    }
    if genders is not None:
        if actor not in genders:
            raise CorpusError(f"VideoDemographics.csv has no row for actor {actor}, who speaks in {str(path)!r}.")
        extra["gender"] = genders[actor]
    return Utterance(
        path.stem,
        audio=path.relative_to(root).as_posix(),
        text=_SENTENCES[name["sentence"]],
        label=_CLASSES[name["emotion"]],
        speaker=actor,
        extra=extra,
    )


def _check_is_no_pointer(path: Path) -> None:
    """Refuse what a clone without Git LFS holds in place of each recording: a few lines of text."""
    if not path.is_file() or path.stat().st_size > _LFS_POINTER_MAX_BYTES:
        return  # a broken link or a pipe is told when it is to be decoded
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CorpusError(
                f"{str(path)!r} is a Git LFS pointer, not a recording. "
                "In the clone, run: git lfs install && git lfs pull"
            )


def _genders(path: Path) -> dict[str, str]:
    """Return ``female`` or ``male`` by actor."""
    try:
        return {row["ActorID"]: row["Sex"].lower() for row in csv.DictReader(read_text(path).splitlines())}
    except (KeyError, AttributeError, csv.Error) as error:
        raise CorpusError(f"{str(path)!r} has not the columns ActorID and Sex in every row ({error}).") from None
