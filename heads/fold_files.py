"""Folds on disk: a JSON file of this project, or a folder of EmoBox's lists.

The file is ``{"folds": {NAME: {"train": [id, ...], "validation": [...], "test": [...]}}}``;
``validation`` may be left out, and other top-level keys are notes. The folder is what EmoBox
publishes for a corpus: ``fold_K/CORPUS_{train,valid,test}_fold_K.jsonl``, one utterance a line
with its name as ``key`` (https://github.com/emo-box/EmoBox).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.errors import ProtocolError
from featcache.files import is_text, parse_json, quoted, read_plain, write_json
from heads.protocol import Fold

PART_NAMES: Mapping[str, str] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""Names that corpora use for the three parts, and ours."""


def natural_key(text: str) -> tuple[object, ...]:
    """Return a sort key that puts ``'9'`` before ``'10'`` and ``'03'`` before ``'08'``."""
    # Splitting at a group gives text and digits in turn, so that like is always compared with like.
    pieces = re.split(r"([0-9]+)", text)
    # Digits by their number and then as text: Python refuses to make a number of thousands of them.
    numbers = [piece.lstrip("0") for piece in pieces]
    return tuple((len(number), number) if at % 2 else pieces[at] for at, number in enumerate(numbers)), text


def save_folds(folds: Sequence[Fold], path: str | Path) -> None:
    """Write folds as JSON, atomically; `read_folds` gives the same folds back.

    Args:
        folds: the folds.
        path: the file to write.

    Raises:
        ProtocolError: two folds of one name.
    """
    table = {fold.name: {part: list(ids) for part, ids in fold.parts.items()} for fold in folds}
    if len(table) != len(folds):
        raise ProtocolError("Folds of the same name cannot be saved in one file. Give each fold a name of its own.")
    write_json(Path(path), {"folds": table})


def read_folds(path: str | Path, ids: Collection[str] = ()) -> list[Fold]:
    """Read folds from a JSON file or from a folder of EmoBox's lists.

    Args:
        path: the file or the folder.
        ids: ids of the manifest. EmoBox calls an utterance ``CORPUS-NAME``: where only ``NAME`` is among
            these, that is taken. The JSON form is read as it is.

    Returns:
        Folds in natural order of their names, parts in the order of the file. A part that is not given is
        empty. Nothing is checked against the manifest; see `heads.protocol.check_folds`.

    Raises:
        ProtocolError: the file is missing or not of this form.
    """
    path = Path(path)
    folds = _read_emobox(path, ids) if path.is_dir() else _read_json(path)
    if not folds:
        raise ProtocolError(f"{str(path)!r} holds no fold.")
    return sorted(folds, key=lambda fold: natural_key(fold.name))


def _read_json(path: Path) -> list[Fold]:
    try:
        content = parse_json(read_plain(path).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ProtocolError(f"There is no folds file {str(path)!r}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise ProtocolError(f"The folds file {str(path)!r} cannot be read: {error}.") from None
    folds = content.get("folds") if isinstance(content, dict) else None
    if not isinstance(folds, dict):
        raise ProtocolError(
            f"The folds file {str(path)!r} has no table 'folds'. "
            'Expected: {"folds": {NAME: {"train": [...], "validation": [...], "test": [...]}}}.'
        )
    return [_fold(name, parts, str(path)) for name, parts in folds.items()]


def _fold(name: str, parts: Any, where: str) -> Fold:
    if not isinstance(parts, dict):
        raise ProtocolError(f"{where}: fold {quoted(name)} is not a table of parts but {type(parts).__name__}.")
    found: dict[str, tuple[str, ...]] = {}
    for key, names in parts.items():
        part = PART_NAMES.get(key.lower())
        if part is None or part in found:
            reason = "is not a part" if part is None else f"is a second name of {part!r}"
            raise ProtocolError(
                f"{where}: fold {quoted(name)}: {quoted(key)} {reason}. Parts are train, validation and test."
            )
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise ProtocolError(f"{where}: fold {quoted(name)}: {key!r} must be a list of ids, each a text.")
        strange = next((item for item in (name, *names) if not is_text(item)), None)
        if strange is not None:
            raise ProtocolError(f"{where}: fold {quoted(name)}: {quoted(strange)} is not valid text. Correct it.")
        found[part] = tuple(names)
    missing = [part for part in ("train", "test") if part not in found]
    if missing:
        raise ProtocolError(f"{where}: fold {quoted(name)} has no {' and no '.join(missing)} part.")
    return Fold(name, found["train"], found.get("validation", ()), found["test"])


def _read_emobox(folder: Path, ids: Collection[str]) -> list[Fold]:
    known = frozenset(ids)
    folds: dict[str, dict[str, list[str]]] = {}
    for file in sorted(folder.glob("fold_*/*.jsonl")):
        match = re.search(r"_([a-z]+)_fold_?[^_]+$", file.stem)
        part = PART_NAMES.get(match[1]) if match else None
        if part is None:
            raise ProtocolError(
                f"{str(file)!r} is not named as EmoBox does: CORPUS_train_fold_K.jsonl, or valid, or test."
            )
        names = _read_keys(file, known)
        parts = folds.setdefault(file.parent.name.removeprefix("fold_"), {})
        # EmoBox has EMO-DB's lists under two names each (fold_1 and fold1), with the same utterances.
        if sorted(parts.setdefault(part, names)) != sorted(names):
            raise ProtocolError(f"{str(file)!r} and another {part} list of the same fold name different utterances.")
    if not folds:
        raise ProtocolError(
            f"The folder {str(folder)!r} holds no folds in EmoBox's form: fold_K/CORPUS_train_fold_K.jsonl."
        )
    return [_fold(name, parts, str(folder)) for name, parts in folds.items()]


def _read_keys(file: Path, known: frozenset[str]) -> list[str]:
    names: list[str] = []
    try:
        lines = read_plain(file).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ProtocolError(f"The folds file {str(file)!r} cannot be read: {error}.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            name, short = row["key"], row["key"].removeprefix(f"{row.get('dataset')}-")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ProtocolError(f"{str(file)!r}, line {number}: expected a JSON object with a text 'key'.") from None
        names.append(short if name not in known and short in known else name)
    return names
