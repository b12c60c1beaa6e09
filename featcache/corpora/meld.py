"""MELD: the text of its utterances, from the three CSV files of the release.

MELD's audio comes inside video clips (``train_splits/dia0_utt0.mp4``), which libsndfile does not read; this
reader gives no audio. The release's CSV files hold Windows-1252 quotation marks, dashes and ellipses as the
control characters U+0080 to U+009F; they are repaired to what they mean.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featcache.corpora._shared import CLASS_OF, choose, read_text, select
from featcache.corpus import Corpus
from featcache.errors import CorpusError
from featcache.files import listed, quoted
from featcache.manifest import Utterance

_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_CLASSES = frozenset({"angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"})
_COLUMNS = frozenset({
    "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season", "Episode", "StartTime",
    "EndTime",
})  # fmt: skip
_UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)  # in Windows-1252
_REPAIRS = {code: bytes([code]).decode("cp1252") for code in range(0x80, 0xA0) if code not in _UNDEFINED}


@dataclass(frozen=True)
class Meld(Corpus):
    """MELD: 13,708 utterances of dialogues of the series Friends, seven emotions, text only.

    An id is the release's own name behind its split, such as ``dev_dia3_utt0``, because dialogue numbers start
    again in each split; ``session`` is the dialogue, ``dev_dia3``. Speakers are the series' characters; the names
    of bit parts, such as ``Waiter``, are not unique persons. Extra columns: ``corpus_label``, ``split`` (``train``,
    ``validation`` or ``test``), ``sentiment``, ``turn`` (place in the dialogue; some are missing in the release),
    ``season``, ``episode``, ``start_time`` and ``end_time`` (place in the episode, as the release writes it).

    Attributes:
        classes: ``"all"``, or some of angry, disgust, fear, happy, neutral, sad, surprise with commas between.
    """

    title = "MELD: Multimodal EmotionLines Dataset"
    licence = "GPL-3.0 for the annotations; the series is Warner Bros.' own."
    citation = (
        "@inproceedings{poria2019meld, title={MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in "
        "Conversations}, author={Poria, Soujanya and Hazarika, Devamanyu and Majumder, Navonil and Naik, Gautam and "
        "Cambria, Erik and Mihalcea, Rada}, booktitle={Proc. ACL}, pages={527--536}, year={2019}, "
        "doi={10.18653/v1/P19-1050}}"
    )
    url = "https://github.com/declare-lab/MELD"
    layout = "train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv (in a clone of the repository: data/MELD/)"

    classes: str = "all"

    def __post_init__(self) -> None:
        choose(self.classes, _CLASSES)

    def utterances(self, root: Path) -> list[Utterance]:
        """Return the utterances of train, dev and test, in the order of the files.

        Raises:
            CorpusError: a file or column is missing, or a row is malformed.
        """
        folder = root / "data" / "MELD"
        folder = folder if folder.is_dir() else root
        every = [item for split in _SPLITS for item in _read(folder / f"{split}_sent_emo.csv", split)]
        return select("MELD", every, choose(self.classes, _CLASSES))


def _read(path: Path, split: str) -> Iterator[Utterance]:
    reader = csv.DictReader(io.StringIO(read_text(path).translate(_REPAIRS), newline=""), strict=True)
    try:
        missing = sorted(_COLUMNS - set(reader.fieldnames or []))
        if missing:
            raise CorpusError(
                f"{str(path)!r} has no column {', '.join(missing)}. It has: {listed(reader.fieldnames or [])}."
            )
        found: set[str] = set()
        for row in reader:
            where = f"{str(path)!r}, line {reader.line_num}"
            utterance = _utterance(row, split, where)
            if utterance.id in found:
                raise CorpusError(f"{where}: {utterance.id!r} is there a second time. Remove one of the two rows.")
            found.add(utterance.id)
            yield utterance
    except csv.Error as error:
        raise CorpusError(f"{str(path)!r}, line {reader.line_num}: {error}. Is a quotation mark missing?") from None


def _utterance(row: dict[str, str], split: str, where: str) -> Utterance:
    if None in row or None in row.values():
        raise CorpusError(f"{where}: a row of another length than the header's: {quoted(list(row.values()))}.")
    emotion = row["Emotion"].strip().lower()
    if emotion not in CLASS_OF:
        raise CorpusError(f"{where}: the emotion {quoted(row['Emotion'])} is none of {', '.join(sorted(CLASS_OF))}.")
    try:
        dialogue, turn, season, episode = (
            int(row[column]) for column in ("Dialogue_ID", "Utterance_ID", "Season", "Episode")
        )
    except ValueError as error:
        raise CorpusError(
            f"{where}: Dialogue_ID, Utterance_ID, Season and Episode must be whole numbers: {error}."
        ) from None
    session = f"{split}_dia{dialogue}"
    return Utterance(
        f"{session}_utt{turn}",
        text=row["Utterance"].strip(),
        label=CLASS_OF[emotion],
        speaker=row["Speaker"].strip(),
        session=session,
        extra={
            "corpus_label": emotion,
            "split": _SPLITS[split],
            "sentiment": row["Sentiment"],
            "turn": turn,
            "season": season,
            "episode": episode,
            "start_time": row["StartTime"],
            "end_time": row["EndTime"],
        },
    )
