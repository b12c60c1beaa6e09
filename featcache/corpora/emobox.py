"""EmoBox's published lists and folds, so that results compare with its benchmark.

A data set of EmoBox is a folder: one list of all utterances, a map from the corpus's labels to EmoBox's, and for
each fold a train and a test list, and for a few corpora a validation list. What the lists really hold, as seen
in those of IEMOCAP, EMO-DB and RAVDESS:

- ``num_frame`` counts samples and is a product of floats, such as 32706.000000000004; it is rounded.
- The rows' labels and the map's differ in case (EMO-DB: ``neutral`` and ``Neutral``); case is ignored.
- EMO-DB has each fold's lists twice, as ``..._fold_1.jsonl`` with ``wav`` and ``emo`` and as ``..._fold1.jsonl`` with
  ``audio`` and ``label``. They hold the same keys; where both are there this is verified.
- EMO-DB's folds are drawn at random: all ten speakers are in every test list. IEMOCAP's fold k tests session k, and
  RAVDESS's folds test four actors each.
- In all three the test lists partition the corpus, and each train list is the rest. This is verified for every
  data set.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from featcache.corpora._shared import choose, class_in_emobox, files, read_text, report, select
from featcache.corpus import Corpus
from featcache.errors import CorpusError
from featcache.files import listed, parse_json, quoted
from featcache.manifest import Utterance, utterance_from_row

_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_STEMS = {
    "cremad": re.compile(r"(?P<speaker>\d{4})_.*"),
    "emodb": re.compile(r"(?P<speaker>\d\d).*"),
    "iemocap": re.compile(r"(?P<session>Ses\d\d)[FM]_\w*_(?P<letter>[FM])\d+"),
    "ravdess": re.compile(r".*-(?P<speaker>\d\d)"),
}
"""How the corpora that this project also reads from their own trees put the speaker into a recording's name."""
_RENAMED = {
    "sample_rate": "sample_rate_hz",
    "num_frame": "num_samples",
    "length": "duration_s",
    "channel": "num_channels",
    "emo": "corpus_label",
    "label": "corpus_label",
}
_OWN = {"key", "wav", "audio", "type", "task", "start_time", "end_time", "spk", "speaker", "session", "text"}


@dataclass(frozen=True)
class EmoBox(Corpus):
    """A data set in EmoBox's form: a folder of its ``data/``, or one that ``featcache`` exported.

    ``id`` is the key without the data set's name in front; for the corpora that this project reads itself it is the
    recording's name, so that both manifests have the same ids and share a cache. Label names outside
    :data:`featcache.corpus.EMOTIONS` are kept as they are; no agreement and unknown are no label.

    Several folds give the column ``fold``: the fold (``"1"``, ``"2"``, ...) whose test list has the utterance; and,
    where they have validation lists, ``validation_folds``, those whose validation list has it. A single fold is a
    fixed split and gives the column ``split``: ``train``, ``validation`` or ``test``. A folder without folds gives
    none of these. Other extra columns: ``corpus_label``, ``dataset``, ``sample_rate_hz``, ``num_samples``,
    ``duration_s``, ``num_channels``.

    Attributes:
        audio_root: folder that the recordings are below. EmoBox writes paths such as
            ``downloads/emodb/wav/03a01Fa.wav``; the longest tail of it that exists below `audio_root` is taken
            (``emodb/wav/03a01Fa.wav``, ``wav/03a01Fa.wav``, ...), the same cut for every row. Without
            `audio_root` paths are kept as they are written, relative to the data set's folder, and not checked.
        missing: what to do with rows whose recording is not below `audio_root`: ``"error"``, or ``"leave_out"``,
            which counts them in the log.
        classes: ``"all"``, or class names with commas between, such as ``"angry,happy,neutral,sad"``.
    """

    title = "EmoBox: lists and folds of 32 speech emotion corpora"
    licence = "MIT for the lists; each corpus has terms of its own."
    citation = (
        "@inproceedings{ma2024emobox, title={EmoBox: Multilingual Multi-corpus Speech Emotion Recognition Toolkit and "
        "Benchmark}, author={Ma, Ziyang and Chen, Mingjie and Zhang, Hezhao and Zheng, Zhisheng and Chen, Wenxi and "
        "Li, Xiquan and Ye, Jiaxin and Chen, Xie and Hain, Thomas}, booktitle={Proc. Interspeech}, year={2024}}"
    )
    url = "https://github.com/emo-box/EmoBox"
    layout = (
        "one folder of EmoBox's data/, such as data/iemocap:\n"
        "  <dataset>.jsonl, label_map.json\n"
        "  fold_<k>/<dataset>_<train|valid|test>_fold_<k>.jsonl"
    )

    audio_root: Path | None = None
    missing: Literal["error", "leave_out"] = "error"
    classes: str = "all"

    def utterances(self, root: Path) -> list[Utterance]:
        """Return the utterances of the data set, in the order of its list.

        Raises:
            CorpusError: a list or the label map is missing or malformed, a label is not in the map, the lists
                of a fold do not partition the corpus, an utterance is in no test list or in several, or a
                recording is not below `audio_root`.
        """
        lists = files(root, ".jsonl")
        if len(lists) != 1:
            raise CorpusError(
                f"{str(root)!r} holds {len(lists)} lists where a data set of EmoBox has one. Expected:\n{self.layout}"
            )
        dataset = lists[0].stem
        rows = _rows(lists[0])
        labels = _label_map(root / "label_map.json")
        columns = _fold_columns(root, dataset, rows.keys())
        found = [_utterance(row, dataset, labels, columns[key]) for key, row in rows.items()]
        if self.classes != "all":
            wanted = choose(self.classes, {item.label for item in found if item.label is not None})
            found = select(f"EmoBox {dataset}", found, wanted)
        return found if self.audio_root is None else self._located(found, self.audio_root.absolute(), dataset)

    def _located(self, utterances: list[Utterance], audio_root: Path, dataset: str) -> list[Utterance]:
        names = [_below(PurePosixPath(item.audio or "")) for item in utterances]
        cut = _cut(names, audio_root)
        paths = [audio_root.joinpath(*parts[cut:]) for parts in names]
        found = [
            replace(item, audio=str(path)) for item, path in zip(utterances, paths, strict=True) if os.path.isfile(path)
        ]
        num_lost = len(paths) - len(found)
        if num_lost and (self.missing == "error" or not found):
            lost = next(path for path in paths if not os.path.isfile(path))
            raise CorpusError(
                f"{num_lost} of the {len(paths)} recordings of EmoBox's {dataset} are not below {str(audio_root)!r}, "
                f"such as {quoted(str(lost))}. Give the folder that has all of them as audio_root, choose classes, or "
                "set missing=leave_out."
            )
        report(f"EmoBox {dataset}", len(found), Counter(missing=num_lost) if num_lost else Counter())
        return found


def _below(path: PurePosixPath) -> tuple[str, ...]:
    """Return the components of a list's path; where it is absolute, those below the root of all folders."""
    return path.parts[1:] if path.is_absolute() else path.parts


def _cut(names: list[tuple[str, ...]], audio_root: Path) -> int:
    """Return how many folders to drop from the front of the lists' paths to find the recordings below `audio_root`."""
    for parts in names:
        for cut in range(len(parts)):
            if os.path.isfile(audio_root.joinpath(*parts[cut:])):
                return cut
    return 0


@dataclass(frozen=True)
class _Row:
    """One line of a list and where it stands."""

    where: str
    values: Mapping[str, Any]


def _rows(path: Path) -> dict[str, _Row]:
    """Return the lines of a list by their keys."""
    rows: dict[str, _Row] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{str(path)!r}, line {number}"
        try:
            values = parse_json(line)
        except ValueError as error:
            raise CorpusError(f"{where} is not JSON: {error}.") from None
        key = values.get("key") if isinstance(values, dict) else None
        if not isinstance(key, str) or not key:
            raise CorpusError(f"{where} has no text 'key': {quoted(line)}.")
        if key in rows:
            raise CorpusError(f"{where}: the key {quoted(key)} is there a second time; {rows[key].where} has it first.")
        rows[key] = _Row(where, values)
    return rows


def _label_map(path: Path) -> dict[str, str | None]:
    """Return the class of each of the corpus's labels, in lower case; None for those that are no label."""
    try:
        names = parse_json(read_text(path))
        if not isinstance(names, dict) or not all(isinstance(target, str) for target in names.values()):
            raise ValueError(f"it holds {quoted(names)}")
    except ValueError as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{str(path)!r} is not a JSON object from labels to labels: {error}.") from None
    return {label.lower(): class_in_emobox(target) for label, target in names.items()}


def _fold_columns(root: Path, dataset: str, keys: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the columns that the fold lists give each key."""
    folds = _folds(root, dataset, keys)
    columns: dict[str, dict[str, Any]] = {key: {} for key in keys}
    if len(folds) == 1:
        (lists,) = folds.values()
        for split, members in lists.items():
            for key in members:
                columns[key]["split"] = _SPLITS[split]
        return columns
    for fold, lists in folds.items():
        for key in lists["test"]:
            if "fold" in columns[key]:
                raise CorpusError(
                    f"{str(root)!r}: {quoted(key)} is in the test lists of folds {columns[key]['fold']} and {fold}."
                )
            columns[key]["fold"] = fold
        for key in lists.get("valid", ()):
            columns[key].setdefault("validation_folds", []).append(fold)
    untested = [key for key in keys if folds and "fold" not in columns[key]]
    if untested:
        raise CorpusError(
            f"{str(root)!r}: {len(untested)} of {len(keys)} utterances are in the test list of no fold, such as "
            f"{quoted(untested[0])}. Is a fold's folder missing?"
        )
    return columns


def _folds(root: Path, dataset: str, keys: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """Return the keys in each list of each fold, ``{fold: {split: keys}}``; each fold partitions the corpus."""
    folds = {}
    for folder in sorted(root.glob("fold_*"), key=lambda path: (len(path.name), path.name)):
        fold = folder.name.removeprefix("fold_")
        lists = {split: _members(folder, dataset, split, fold) for split in _SPLITS}
        present = {split: members for split, members in lists.items() if members is not None}
        absent = sorted({"train", "test"} - present.keys())
        if absent:
            raise CorpusError(f"{str(folder)!r} has no {dataset}_{absent[0]}_fold_{fold}.jsonl.")
        counts = Counter(key for members in present.values() for key in members)
        wrong = sorted({key for key, count in counts.items() if count > 1} | (counts.keys() ^ set(keys)))
        if wrong:
            raise CorpusError(
                f"{str(folder)!r}: its lists do not partition the corpus; {len(wrong)} keys, such as "
                f"{quoted(wrong[0])}, are in none of them, in several, or not in {dataset}.jsonl."
            )
        folds[fold] = present
    return folds


def _members(folder: Path, dataset: str, split: str, fold: str) -> list[str] | None:
    """Return the keys in one list, None where there is no such list."""
    names = [f"{dataset}_{split}_fold_{fold}.jsonl", f"{dataset}_{split}_fold{fold}.jsonl"]
    lists = [list(_rows(folder / name)) for name in names if (folder / name).is_file()]
    if len(lists) == 2 and set(lists[0]) != set(lists[1]):
        raise CorpusError(
            f"{str(folder)!r}: {names[0]} and {names[1]} should be the same list and hold different keys."
        )
    return lists[0] if lists else None


def _utterance(row: _Row, dataset: str, labels: Mapping[str, str | None], columns: Mapping[str, Any]) -> Utterance:
    values = row.values
    for column, expected in (("type", "raw"), ("task", "category")):
        if values.get(column, expected) != expected:
            raise CorpusError(f"{row.where}: {column!r} is {quoted(values[column])}; only {expected!r} can be read.")
    own = values.get("emo", values.get("label"))
    if not isinstance(own, str) or own.lower() not in labels:
        raise CorpusError(
            f"{row.where}: the label {quoted(own)} is none of label_map.json's: {listed(sorted(labels))}."
        )
    audio = values.get("wav", values.get("audio"))
    if not isinstance(audio, str) or ".." in PurePosixPath(audio).parts:
        raise CorpusError(f"{row.where}: 'wav' must be a path without '..', got {quoted(audio)}.")
    name, speaker, session = _identity(values, dataset, PurePosixPath(audio).stem)
    extra = {_RENAMED.get(column, column): value for column, value in values.items() if column not in _OWN}
    try:
        if "num_samples" in extra:
            extra["num_samples"] = round(extra["num_samples"])
        return utterance_from_row({
            "id": name,
            "audio": audio,
            "text": values.get("text"),
            "label": labels[own.lower()],
            "speaker": speaker,
            "session": session,
            "start_s": values.get("start_time"),
            "end_s": values.get("end_time"),
            **extra,
            **columns,
        })  # fmt: skip
    except (TypeError, ValueError, OverflowError) as error:
        raise CorpusError(f"{row.where}: {error}.") from None


def _identity(values: Mapping[str, Any], dataset: str, stem: str) -> tuple[str, str | None, str | None]:
    """Return the id, the speaker and the session of a row."""
    name = values["key"].removeprefix(f"{values.get('dataset', dataset)}-")
    known = _STEMS[dataset].fullmatch(stem) if dataset in _STEMS else None
    # EmoBox's keys of CREMA-D have "-" where the recordings' names have "_".
    if known is None or stem.replace("_", "-") != name.replace("_", "-"):
        return name, values.get("speaker", values.get("spk")), values.get("session")
    found = known.groupdict()
    session = found.get("session")
    return stem, found["speaker"] if session is None else session + found["letter"], session
