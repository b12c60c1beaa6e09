"""EMO-DB, the Berlin Database of Emotional Speech: everything about a recording is in its name.

``03a01Fa.wav``: speaker 03, sentence a01, emotion F (the German word's letter), version a. The
sentences are those of the corpus's own site, in the spelling of 1999.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from featcache.corpora._shared import choose, files, select
from featcache.corpus import Corpus
from featcache.errors import CorpusError
from featcache.manifest import Utterance

_CLASSES = {
    "A": "fear",  # Angst
    "E": "disgust",  # Ekel
    "F": "happy",  # Freude
    "L": "boredom",  # Langeweile
    "N": "neutral",
    "T": "sad",  # Trauer
    "W": "angry",  # Wut
}
_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
_GENDERS = dict.fromkeys(("03", "10", "11", "12", "15"), "male") | dict.fromkeys(
    ("08", "09", "13", "14", "16"), "female"
)
_NAME = re.compile(
    rf"(?P<speaker>{'|'.join(sorted(_GENDERS))})(?P<sentence>{'|'.join(_SENTENCES)})(?P<letter>[AEFLNTW])[a-z]"
)


@dataclass(frozen=True)
class EmoDb(Corpus):
    """EMO-DB: ten actors, ten German sentences, seven acted emotions, 535 recordings.

    Extra columns: ``corpus_label`` (the letter), ``sentence`` (its code) and ``gender``.

    Attributes:
        classes: ``"all"``, or some of angry, boredom, disgust, fear, happy, neutral, sad with commas between.
    """

    title = "EMO-DB: Berlin Database of Emotional Speech"
    licence = "Free for research; its site asks for the citation."
    citation = (
        "@inproceedings{burkhardt2005emodb, title={A Database of German Emotional Speech}, "
        "author={Burkhardt, Felix and Paeschke, Astrid and Rolfes, Miriam and Sendlmeier, Walter F. and "
        "Weiss, Benjamin}, "
        "booktitle={Proc. Interspeech}, pages={1517--1520}, year={2005}, doi={10.21437/Interspeech.2005-446}}"
    )
    url = "http://emodb.bilderbar.info/"
    layout = "wav/<speaker><sentence><emotion letter><version>.wav, such as wav/03a01Fa.wav"

    classes: str = "all"

    def __post_init__(self) -> None:
        choose(self.classes, _CLASSES.values())

    def utterances(self, root: Path) -> list[Utterance]:
        """Return the utterances below `root`, which is the folder that holds ``wav`` or ``wav`` itself.

        Raises:
            CorpusError: a recording is not named as EMO-DB names its own.
        """
        folder = root / "wav" if (root / "wav").is_dir() else root
        found = (_utterance(path, root) for path in files(folder, ".wav"))
        return select("EMO-DB", found, choose(self.classes, _CLASSES.values()))


def _utterance(path: Path, root: Path) -> Utterance:
    name = _NAME.fullmatch(path.stem)
    if name is None:
        raise CorpusError(f"{str(path)!r} is not named as EMO-DB names its recordings, such as '03a01Fa.wav'.")
    return Utterance(
        path.stem,
        audio=path.relative_to(root).as_posix(),
        text=_SENTENCES[name["sentence"]],
        label=_CLASSES[name["letter"]],
        speaker=name["speaker"],
        extra={
            "corpus_label": name["letter"],
            "sentence": name["sentence"],
            "gender": _GENDERS[name["speaker"]],
        },
    )
