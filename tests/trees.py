"""Corpus trees in the exact form of their releases, with recordings of a tenth of a second."""

import csv
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import soundfile

IEMOCAP_COUNTS: Mapping[int, Mapping[str, int]] = {
    1: {"ang": 229, "hap": 135, "exc": 143, "neu": 384, "sad": 194, "fru": 280},
    2: {"ang": 137, "hap": 117, "exc": 210, "neu": 362, "sad": 197, "fru": 325},
    3: {"ang": 240, "hap": 135, "exc": 151, "neu": 320, "sad": 305, "fru": 382},
    4: {"ang": 327, "hap": 65, "exc": 238, "neu": 258, "sad": 143, "fru": 481},
    5: {"ang": 170, "hap": 143, "exc": 299, "neu": 384, "sad": 245, "fru": 381},
}
"""The release's utterances by session and agreed label, for the labels that protocols keep."""
IEMOCAP_RARE: Mapping[int, Mapping[str, int]] = {
    1: {"sur": 21, "fea": 8, "oth": 1, "xxx": 424},
    2: {"sur": 21, "fea": 8, "oth": 1, "xxx": 433},
    3: {"sur": 22, "fea": 8, "oth": 1, "xxx": 572},
    4: {"sur": 22, "fea": 8, "dis": 1, "xxx": 560},
    5: {"sur": 21, "fea": 8, "dis": 1, "xxx": 518},
}
"""The other labels. Their totals, and each session's, are the release's; how they spread over sessions is made up."""
_WORDS = {
    "ang": "Anger", "dis": "Disgust", "exc": "Excited", "fea": "Fear", "fru": "Frustration", "hap": "Happiness",
    "neu": "Neutral", "oth": "Other", "sad": "Sadness", "sur": "Surprise",
}  # fmt: skip
_DIALOGS = [f"impro{number:02d}" for number in range(1, 9)] + [
    f"script0{act}_{part}" for act in (1, 2, 3) for part in "12"
]


def write_wav(path: Path, seconds: float = 0.1, rate: int = 16000) -> Path:
    """Write a recording that is not silent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time), rate, subtype="PCM_16")
    return path


def write_wavs(paths: Iterable[Path]) -> None:
    """Write many recordings, fast: all but the first are hard links to it."""
    first = None
    for path in paths:
        if first is None:
            first = write_wav(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(first, path)


def iemocap(root: Path, per_label: int | None = None) -> Path:
    """Build the release's tree of IEMOCAP.

    Args:
        root: the folder to hold Session1 to Session5.
        per_label: utterances of each label in a session; None gives the release's 10,039.
    """
    wavs: list[Path] = []
    for number in IEMOCAP_COUNTS:
        counts = {**IEMOCAP_COUNTS[number], **IEMOCAP_RARE[number]}
        labels = [label for label, count in counts.items() for _ in range(count if per_label is None else per_label)]
        session = root / f"Session{number}"
        dialogs = [f"Ses{number:02d}{lead}_{name}" for lead in "FM" for name in _DIALOGS]
        for place, dialog in enumerate(dialogs):
            wavs += _iemocap_dialog(session, dialog, labels[place :: len(dialogs)])
    write_wavs(wavs)
    return root


def _iemocap_dialog(session: Path, dialog: str, labels: list[str]) -> list[Path]:
    folder = session / "sentences" / "wav" / dialog
    folder.mkdir(parents=True)
    wavs = []
    ratings = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"]
    texts = [f"{dialog}_MXX0 [000.0000-000.5000]: Hm.\n", "M: [LAUGHTER]\n"]
    for place, label in enumerate(labels):
        turn = f"{dialog}_{'FM'[place % 2]}{place // 2:03d}"
        start, end = 6.2901 + 2 * place, 8.2357 + 2 * place
        ratings.append(f"\n[{start:.4f} - {end:.4f}]\t{turn}\t{label}\t[2.5000, 3.0000, 3.5000]\n{_ballots(label)}")
        texts.append(f"{turn} [{start:08.4f}-{end:08.4f}]: This is line {place} of {dialog}.\n")
        wavs.append(folder / f"{turn}.wav")
    _write(session / "dialog" / "EmoEvaluation" / f"{dialog}.txt", "".join(ratings))
    _write(session / "dialog" / "transcriptions" / f"{dialog}.txt", "".join(texts))
    return wavs


def _ballots(label: str) -> str:
    """Return the lines of three annotators and one self-report: two agree, and one of them names anger as well."""
    first, second, third = ("Anger", "Neutral", "Sadness") if label == "xxx" else (_WORDS[label],) * 2 + ("Other",)
    second = second if second == "Anger" else f"{second}; Anger"
    return (
        f"C-E2:\t{first};\t()\nC-E3:\t{second};\t(annoyed; (a bit))\nC-E4:\t{third};\t()\nC-F1:\tSurprise;\t(curious)\n"
        "A-E3:\tval 3; act 2; dom  2;\t()\nA-E4:\tval 2; act 3; dom  3;\t(staying polite)\n"
    )


def emodb(root: Path) -> Path:
    """Build EMO-DB's tree, with one recording of each of its seven emotions."""
    write_wavs(
        root / "wav" / f"{name}.wav"
        for name in ("03a01Fa", "08a02Wb", "09a04Lb", "10a05Ea", "11a07Ab", "12b01Ta", "16b10Nd")
    )
    return root


def ravdess(root: Path) -> Path:
    """Build RAVDESS's tree as its archives unpack: actors 1 and 2, speech and one song."""
    speech = root / "Audio_Speech_Actors_01-24"
    names = [f"03-01-{emotion:02d}-01-01-02" for emotion in range(1, 9)]
    write_wavs(speech / f"Actor_0{actor}" / f"{name}-0{actor}.wav" for actor in (1, 2) for name in names)
    write_wav(root / "Audio_Song_Actors_01-24" / "Actor_01" / "03-02-03-02-02-01-01.wav")
    return root


def crema_d(root: Path) -> Path:
    """Build CREMA-D's tree, the recording with the odd level among its own."""
    names = [
        "1001_DFA_ANG_XX",
        "1001_IEO_DIS_LO",
        "1002_IEO_FEA_MD",
        "1002_IEO_HAP_HI",
        "1002_WSI_NEU_XX",
        "1040_ITH_SAD_X",
    ]
    write_wavs(root / "AudioWAV" / f"{name}.wav" for name in names)
    _write(
        root / "VideoDemographics.csv",
        '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Caucasian","Not Hispanic"\n'
        '1002,21,"Female","Caucasian","Not Hispanic"\n1040,42,"Male","Caucasian","Not Hispanic"\n',
    )
    return root


def meld(root: Path) -> Path:
    """Build MELD's three files, with quotation marks as the release has them."""
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
    line = '1,"Oh my God, he\x92s lost it\x85",Phoebe,{emotion},negative,0,{turn},4,7,"00:20:57,256","00:21:00,049"'
    for split, emotions in {
        "train": ["joy", "anger", "fear"],
        "dev": ["sadness", "surprise"],
        "test": ["disgust"],
    }.items():
        lines = [header, *(line.format(emotion=emotion, turn=turn) for turn, emotion in enumerate(emotions))]
        _write(root / f"{split}_sent_emo.csv", "\r\n".join(lines) + "\r\n")
    return root


def emobox(root: Path, dataset: str = "emodb") -> Path:
    """Build an EmoBox data set of six utterances in three folds, with the lists under both of EMO-DB's names."""
    rows = []
    for number, label in enumerate(("anger", "boredem", "neutral", "happy", "fear", "sad")):
        key = f"{dataset}-{('03', '08', '09')[number // 2]}a0{number % 2 + 1}{'WLNFAT'[number]}a"
        wav = f"downloads/{dataset}/wav/{key.split('-')[1]}.wav"
        rows.append(
            {
                "key": key,
                "dataset": dataset,
                "wav": wav,
                "type": "raw",
                "sample_rate": 16000,
                "num_frame": 32705.999999999996,
            }
            | {"task": "category", "length": 2.044125, "emo": label, "channel": 1}
        )
    labels = {
        "anger": "Angry",
        "boredem": "Boredom",
        "fear": "Fear",
        "happy": "Happy",
        "Neutral": "Neutral",
        "sad": "Sad",
    }
    _write(root / "label_map.json", json.dumps(labels, indent=4))
    write_lines(root / f"{dataset}.jsonl", rows)
    for fold in (1, 2, 3):
        test = rows[2 * fold - 2 : 2 * fold]
        train = [row for row in rows if row not in test]
        for split, members in (("train", train), ("test", test)):
            write_lines(root / f"fold_{fold}" / f"{dataset}_{split}_fold_{fold}.jsonl", members)
            renamed = [
                {"audio" if k == "wav" else "label" if k == "emo" else k: v for k, v in row.items()} for row in members
            ]
            write_lines(root / f"fold_{fold}" / f"{dataset}_{split}_fold{fold}.jsonl", renamed)
    return root


def table(root: Path) -> Path:
    """Write a CSV table of two recordings and return its path."""
    write_wavs([root / "clips" / "a.wav", root / "clips" / "b.wav"])
    with (root / "own.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [
                ["id", "audio", "text", "label", "speaker", "session", "start_s", "end_s", "mood"],
                ["u1", "clips/a.wav", "=SUM(1, 2) \u201cyes\u201d", "angry", "s1", "day 1", "0.01", "0.05", "calm"],
                ["u2", "clips/b.wav", "two\r\nlines", "sad", "s2", "", "", "", ""],
            ]
        )
    return root / "own.csv"


def write_lines(path: Path, rows: list[dict]) -> None:
    """Write rows as JSON Lines."""
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def replace_in(path: Path, old: str, new: str) -> None:
    """Replace a text that occurs in a file once or more, the first time."""
    text = path.read_bytes().decode("utf-8")
    assert old in text, f"{path} does not hold {old!r}"
    path.write_bytes(text.replace(old, new, 1).encode("utf-8"))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


BUILDERS = {
    "crema_d": crema_d,
    "emobox": emobox,
    "emodb": emodb,
    "iemocap": lambda root: iemocap(root, per_label=3),
    "meld": meld,
    "ravdess": ravdess,
    "table": table,
}
"""By the corpus's name, what builds a small tree of it in a folder and returns the root to read."""
