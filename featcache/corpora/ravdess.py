"""RAVDESS: the audio-only part, of which everything is in a recording's name.

``03-01-06-01-02-01-12.wav`` is modality 03 (audio only), vocal channel 01 (speech) or 02 (song),
emotion, intensity, statement, repetition and actor; odd actors are male. See
https://zenodo.org/records/1188976.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featcache.corpora._shared import CLASS_OF, choose, files_below, report, select
from featcache.corpus import Corpus
from featcache.errors import CorpusError
from featcache.manifest import Utterance

_EMOTIONS = {
    "01": "neutral", "02": "calm", "03": "happy", "04": "sad",
    "05": "angry", "06": "fearful", "07": "disgust", "08": "surprised",
}  # fmt: skip
_CLASSES = frozenset(CLASS_OF[name] for name in _EMOTIONS.values())
_CHANNELS = {"01": "speech", "02": "song"}
_INTENSITIES = {"01": "normal", "02": "strong"}
_STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
_NAME = re.compile(
    r"(?P<modality>0[123])-(?P<channel>0[12])-(?P<emotion>0[1-8])-(?P<intensity>0[12])"
    r"-(?P<statement>0[12])-(?P<repetition>0[12])-(?P<actor>0[1-9]|1\d|2[0-4])"
)
_AUDIO_ONLY = "03"


@dataclass(frozen=True)
class Ravdess(Corpus):
    """RAVDESS: 24 North American actors, two English statements, eight acted emotions.

    1,440 recordings of speech; 1,012 of song, which has neither disgust nor surprise. ``speaker`` is the
    actor's two digits. Extra columns: ``corpus_label``, ``intensity`` (``normal`` or ``strong``),
    ``statement``, ``repetition``, ``vocal_channel`` and ``gender``.

    Attributes:
        vocal_channel: ``"speech"``, ``"song"`` or ``"both"``; what is left out is counted in the log.
        classes: ``"all"``, or some of angry, calm, disgust, fear, happy, neutral, sad, surprise with
            commas between.
    """

    title = "RAVDESS: Ryerson Audio-Visual Database of Emotional Speech and Song"
    licence = "CC BY-NC-SA 4.0; a commercial licence can be bought."
    citation = (
        "@article{livingstone2018ravdess, title={The Ryerson Audio-Visual Database of Emotional Speech and Song "
        "(RAVDESS): A dynamic, multimodal set of facial and vocal expressions in North American English}, "
        "author={Livingstone, Steven R. and Russo, Frank A.}, journal={PLOS ONE}, volume={13}, number={5}, "
        "pages={e0196391}, year={2018}, doi={10.1371/journal.pone.0196391}}"
    )
    url = "https://zenodo.org/records/1188976"
    layout = "Actor_01 .. Actor_24, at any depth, each with 03-01-<emotion>-<intensity>-<statement>-<take>-<actor>.wav"

    vocal_channel: Literal["speech", "song", "both"] = "speech"
    classes: str = "all"

    def __post_init__(self) -> None:
        choose(self.classes, _CLASSES)

    def utterances(self, root: Path) -> list[Utterance]:
        """Return the utterances below `root`, by file name.

        Raises:
            CorpusError: a recording is not named as RAVDESS names its own, is not audio only, or is there twice.
        """
        every = [_utterance(path, root) for path in files_below(root, ".wav")]
        if self.vocal_channel != "both":
            channels = Counter(item.extra["vocal_channel"] for item in every)
            num_kept = channels.pop(self.vocal_channel, 0)
            report("RAVDESS", num_kept, channels)
            every = [item for item in every if item.extra["vocal_channel"] == self.vocal_channel]
        return select("RAVDESS", every, choose(self.classes, _CLASSES))


def _utterance(path: Path, root: Path) -> Utterance:
    name = _NAME.fullmatch(path.stem)
    if name is None or name["modality"] != _AUDIO_ONLY:
        raise CorpusError(
            f"{str(path)!r} is not named as RAVDESS names its audio-only recordings, "
            "such as '03-01-06-01-02-01-12.wav'."
        )
    emotion = _EMOTIONS[name["emotion"]]
    return Utterance(
        path.stem,
        audio=path.relative_to(root).as_posix(),
        text=_STATEMENTS[name["statement"]],
        label=CLASS_OF[emotion],
        speaker=name["actor"],
        extra={
            "corpus_label": emotion,
            "intensity": _INTENSITIES[name["intensity"]],
            "statement": name["statement"],
            "repetition": int(name["repetition"]),
            "vocal_channel": _CHANNELS[name["channel"]],
            "gender": "male" if int(name["actor"]) % 2 else "female",
        },
    )
