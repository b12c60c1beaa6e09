"""Manifests for other programs: plain CSV, and EmoBox's lists and folds.

Both can be read again: CSV by ``featcache corpus table FILE``, an EmoBox folder by ``featcache corpus emobox FOLDER``.
CSV has no types: ids, audio, text, label, speaker, session and spans come back as they were, other columns
as text (JSON text, where they were not text), and an empty text as none. Cells are never altered to
keep a spreadsheet from taking them for formulas, because that would change the data.
"""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.audio import info, num_samples
from featcache.corpora._shared import class_in_emobox
from featcache.corpus import EMOTIONS
from featcache.errors import ManifestError
from featcache.files import quoted, write_atomically
from featcache.manifest import COLUMNS, Manifest, Utterance, portable

_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
_LONGEST_FOLD = 60


def write_csv(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest as CSV (RFC 4180, UTF-8), one utterance a row, with a header.

    The columns are those that occur: the manifest's own first, then the extra ones in order of appearance. Audio
    below the file's folder is written relative to it, other audio as an absolute path.

    Args:
        manifest: the utterances.
        path: the file to write.
    """
    path = Path(path)
    rows = [
        utterance.as_row()
        | ({"audio": portable(manifest.audio_path(utterance), path.parent)} if utterance.audio else {})
        for utterance in manifest
    ]
    present = dict.fromkeys(column for row in rows for column in row)
    columns = [column for column in COLUMNS if column in present]
    columns += [column for column in present if column not in COLUMNS]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    write_atomically(path, text.getvalue().encode("utf-8"))


def write_emobox(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest as a data set in EmoBox's form.

    ``<dataset>.jsonl`` has a row for each utterance, and ``label_map.json`` its labels. The column ``fold`` gives
    a train and a test list for each of its values; without it, the column ``split`` (``train``, ``validation``,
    ``test``) gives the lists of one fold; without either, no lists are written. Labels are written as the column
    ``corpus_label`` has them where it decides the class. Sample rate, length and channels are those of the
    recordings; where these are not at hand, of the columns that reading EmoBox's lists gives. Speaker, session
    and text are written in columns of their own, which EmoBox passes over; other columns are not written.

    Args:
        manifest: utterances with audio and label.
        path: the folder to write, whose name is EmoBox's name for the data set, or the list in it to write,
            ``FOLDER/<dataset>.jsonl``. With a ``-`` the name goes in front of each id to make its key. Audio below
            the folder is written relative to it.

    Raises:
        ManifestError: an utterance has no audio, label or length, or a label that would be read back as another one;
            ``fold`` or ``split`` is missing for some utterances or has a value that EmoBox has no place for.
        AudioError: a recording cannot be read.
    """
    path = Path(os.path.abspath(path))
    folder, dataset = (path.parent, path.stem) if path.suffix == ".jsonl" else (path, path.name)
    names = _label_names(manifest)
    rows = {
        utterance.id: _emobox_row(manifest, utterance, folder, dataset, names[utterance.id]) for utterance in manifest
    }
    lists = {Path(f"{dataset}.jsonl"): list(rows)}
    for fold, splits in _folds(manifest).items():
        for split, ids in splits.items():
            lists[Path(f"fold_{fold}") / f"{dataset}_{split}_fold_{fold}.jsonl"] = ids
    classes = {names[item.id]: str(item.label) for item in manifest}
    targets = {name: label.capitalize() if label in EMOTIONS else label for name, label in classes.items()}
    _check_labels(manifest, names, targets)
    write_atomically(folder / "label_map.json", (json.dumps(targets, ensure_ascii=False, indent=4) + "\n").encode())
    for name, ids in lists.items():
        lines = (json.dumps(rows[key], ensure_ascii=False) + "\n" for key in ids)
        write_atomically(folder / name, "".join(lines).encode("utf-8"))


def _check_labels(manifest: Manifest, names: Mapping[str, str], targets: Mapping[str, str]) -> None:
    """Refuse labels that would come back as others: in EmoBox's form letter case and synonyms do not differ."""
    read = {name.lower(): class_in_emobox(target) for name, target in targets.items()}
    changed = [item for item in manifest if read[names[item.id].lower()] != item.label]
    if changed:
        became = read[names[changed[0].id].lower()]
        raise ManifestError(
            f"{len(changed)} utterances have labels that EmoBox's form would change, such as {quoted(changed[0].id)}: "
            f"{quoted(changed[0].label)} would be read as {quoted(became)}, since letter case, space around a label "
            "and synonyms do not count there. Rename the labels."
        )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _label_names(manifest: Manifest) -> dict[str, str]:
    """Return the label to write for each utterance: the corpus's own, if each of those is of one class only."""
    unlabelled = [item.id for item in manifest if item.label is None]
    if unlabelled:
        raise ManifestError(
            f"{len(unlabelled)} utterances have no label, such as {unlabelled[0]!r}. EmoBox's lists hold labelled "
            "utterances only; select those first."
        )
    own = {item.id: item.extra.get("corpus_label") for item in manifest}
    classes: dict[str, set[str | None]] = defaultdict(set)
    for item in manifest:
        classes[str(own[item.id]).lower()].add(item.label)
    decides = all(isinstance(name, str) for name in own.values()) and all(len(of) == 1 for of in classes.values())
    return {item.id: str(own[item.id] if decides else item.label) for item in manifest}


def _emobox_row(manifest: Manifest, utterance: Utterance, folder: Path, dataset: str, label: str) -> dict[str, Any]:
    rate, length, channels = _format(manifest, utterance)
    row = {
        "key": f"{dataset}-{utterance.id}",
        "dataset": dataset,
        "wav": portable(manifest.audio_path(utterance), folder),
        "type": "raw",
        "sample_rate": rate,
        "num_frame": float(length),
        "task": "category",
        "length": length / rate,
        "emo": label,
        "channel": channels,
    }
    if utterance.start_s is not None or utterance.end_s is not None:
        start_s = utterance.start_s or 0.0
        end_s = start_s + length / rate if utterance.end_s is None else utterance.end_s
        row |= {"start_time": start_s, "end_time": end_s}
    optional = {"speaker": utterance.speaker, "session": utterance.session, "text": utterance.text}
    return row | {column: value for column, value in optional.items() if value is not None}


def _format(manifest: Manifest, utterance: Utterance) -> tuple[int, int, int]:
    """Return sample rate in Hz, samples and channels: the recording's, or those that EmoBox's lists gave."""
    path = manifest.audio_path(utterance)
    if os.path.isfile(path):
        header = info(path)
        length = num_samples(path, header.sample_rate_hz, utterance.start_s, utterance.end_s)
        return header.sample_rate_hz, length, header.num_channels
    rate, samples, channels = (
        utterance.extra.get(column) for column in ("sample_rate_hz", "num_samples", "num_channels")
    )
    if (
        not (isinstance(rate, int) and isinstance(samples, int) and isinstance(channels, int))
        or not (0 < rate < 2**31)
        or not (0 <= samples < 2**53)
        or not (0 < channels < 2**16)
    ):
        raise ManifestError(
            f"{quoted(utterance.id)}: there is no recording {str(path)!r}, and without it the columns sample_rate_hz, "
            "num_samples and num_channels must say what it is like."
        )
    return rate, samples, channels


def _folds(manifest: Manifest) -> dict[str, dict[str, list[str]]]:
    """Return the ids in each list of each fold, ``{fold: {split: ids}}``."""
    column = next((name for name in ("fold", "split") if any(name in item.extra for item in manifest)), None)
    if column is None:
        return {}
    values = {item.id: str(item.extra.get(column, "")) for item in manifest}
    homeless = [name for name, value in values.items() if not _is_usable(column, value)]
    if homeless:
        expected = ", ".join(_SPLITS) if column == "split" else f"letters and digits, {_LONGEST_FOLD} at most"
        raise ManifestError(
            f"{len(homeless)} utterances have no usable {column!r}, such as {quoted(homeless[0])} with "
            f"{quoted(values[homeless[0]])}. Give every utterance one, or none of them. It must be {expected}."
        )
    if column == "split":
        return {"1": _lists({name: _SPLITS[value] for name, value in values.items()})}
    folds = sorted(set(values.values()))
    if len(folds) == 1:
        raise ManifestError(f"Every utterance has the fold {folds[0]!r}: nothing would be left to train on.")
    validation = {item.id: _validation_folds(item) for item in manifest}
    splits = {}
    for fold in folds:
        held_out = {name: "valid" for name in values if fold in validation[name]}
        splits[fold] = _lists(
            {name: "test" if value == fold else held_out.get(name, "train") for name, value in values.items()}
        )
    return splits


def _is_usable(column: str, value: str) -> bool:
    return value in _SPLITS if column == "split" else value.isalnum() and len(value) <= _LONGEST_FOLD


def _validation_folds(utterance: Utterance) -> set[str]:
    folds = utterance.extra.get("validation_folds", [])
    if not isinstance(folds, list):
        raise ManifestError(
            f"{quoted(utterance.id)}: the column 'validation_folds' must be a list of folds, got {quoted(folds)}. "
            "Correct it, or leave it out."
        )
    return {str(fold) for fold in folds}


def _lists(splits: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the ids of each split; train and test are always there, as EmoBox expects."""
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for name, split in splits.items():
        lists.setdefault(split, []).append(name)
    return lists
