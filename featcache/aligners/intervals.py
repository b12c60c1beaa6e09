"""Intervals from plain files: CSV or JSON, for whatever has no format of its own here.

CSV has a header with the columns ``tier`` (``words`` or ``phones``; others are left out), ``start_s``, ``end_s`` and
``label``, in any order, separated by commas. With a further column ``id``, one file may hold the whole corpus: name it
by the setting ``file``. JSON is an object with the lists ``words`` and ``phones`` of ``[start_s, end_s, label]``, as
the demo corpus has them: ``column=phones``, ``symbols=espeak``.
"""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from featcache.aligner import Identity, SymbolSet
from featcache.alignment import Alignment, Interval
from featcache.alignment_files import AlignmentFile, FileAligner, read_bytes
from featcache.errors import ConfigError, StreamError
from featcache.files import listed, parse_json
from featcache.manifest import Manifest, Utterance
from featcache.stream import Speech

SILENCE = ("", "sil", "sp", "silence", "pau", "<eps>", "<sil>", "#", "h#")
"""Labels that are silence, in lower case; in espeak's symbols also all that begin with ``_``, its pauses."""

_COLUMNS = ("tier", "start_s", "end_s", "label")
_TIERS = {"word": "words", "words": "words", "phone": "phones", "phones": "phones"}
_CORPUS_BYTES = 500 * 2**20


@dataclass(frozen=True)
class Intervals(FileAligner):
    """Words and phones from CSV or JSON.

    Attributes:
        file: one CSV with a column ``id`` for all utterances; relative to the working directory. Its times count from
            each utterance's start.
        silence: labels that are silence, in any letter case; empty are the usual ones.
        symbols: what the phones are written in.
    """

    title: ClassVar[str] = "plain CSV or JSON of intervals"

    endings: tuple[str, ...] = (".csv", ".json")
    file: str | None = None
    silence: tuple[str, ...] = ()
    symbols: SymbolSet = "other"
    _rows: ClassVar[Mapping[str, bytes] | None] = None

    @property
    def symbol_set(self) -> SymbolSet:
        """The symbols that phones are written in."""
        return self.symbols

    def identity(self) -> Identity:
        """Return what decides the intervals besides the files."""
        silent = list(self.silence or SILENCE)
        return Identity(left_out=(*super().identity().left_out, "file"), further={"silent": silent})

    def bind(self, manifest: Manifest) -> Self:
        """Return this importer, knowing the rows or the file of each utterance.

        Raises:
            ConfigError: no files are named, the file of the whole corpus cannot be read, or a folder is missing.
        """
        if self.file is None:
            return super().bind(manifest)
        if self.folder is not None or self.column is not None:
            raise ConfigError("aligner intervals: 'file' is for the whole corpus; leave out 'folder' and 'column'.")
        bound = replace(self)
        object.__setattr__(bound, "_rows", _corpus(Path(os.path.expanduser(self.file))))
        return bound

    def _file(self, utterance: Utterance) -> AlignmentFile:
        if self.file is None or self._rows is None:
            return super()._file(utterance)
        path = Path(self.file)
        if utterance.id not in self._rows:
            raise StreamError(f"{path} has no row whose 'id' is {utterance.id[:80]!r}; it has {len(self._rows)} ids.")
        return AlignmentFile(path, self._rows[utterance.id])

    def parse(self, file: AlignmentFile, speech: Speech) -> Alignment:
        """Return the words and phones of a file, each sorted by time.

        Raises:
            StreamError: it is not in one of the two forms.
        """
        is_json = file.text().lstrip().startswith(("{", "["))
        tiers: dict[str, list[Interval]] = {"words": [], "phones": []}
        for tier, start, end, label in _json_rows(file) if is_json else _csv_rows(file, speech.id):
            if not isinstance(label, str):
                raise StreamError(f"{file.path}: a label of {tier} is {str(label)[:40]!r}, where text was expected.")
            times = file.seconds(start, f"the start of {label[:40]!r}"), file.seconds(end, f"the end of {label[:40]!r}")
            if not self._is_silence(label.strip()):
                tiers[tier].append(Interval(*times, label.strip()))
        return Alignment(tuple(sorted(tiers["words"])), tuple(sorted(tiers["phones"])))

    def _is_silence(self, label: str) -> bool:
        if self.silence:
            return label.casefold() in {silent.casefold() for silent in self.silence}
        return label.casefold() in SILENCE or (self.symbols == "espeak" and label.startswith("_"))


def _json_rows(file: AlignmentFile) -> Iterator[tuple[str, Any, Any, Any]]:
    try:
        content = parse_json(file.text())
    except ValueError as error:
        if isinstance(error, StreamError):
            raise
        raise StreamError(f"{file.path} is not JSON: {str(error)[:200]}. Write it again.") from None
    if not isinstance(content, dict) or not isinstance(content.get("phones"), list):
        raise StreamError(f"{file.path} needs an object with the list 'phones' of [start_s, end_s, label].")
    for tier in ("words", "phones"):
        rows = content.get(tier, [])
        for row in rows if isinstance(rows, list) else [rows]:
            if not isinstance(row, list) or len(row) != 3:
                raise StreamError(f"{file.path}: {tier} holds {str(row)[:60]!r}, not [start_s, end_s, label].")
            yield tier, row[0], row[1], row[2]


def _csv_rows(file: AlignmentFile, name: str) -> Iterator[tuple[str, Any, Any, Any]]:
    rows, header = _table(file.path, file.text())
    own = [row for row in rows if row["id"] == name] if "id" in header else rows
    if rows and not own:
        raise StreamError(f"{file.path} has no row whose 'id' is {name[:80]!r}.")
    for row in own:
        tier = _TIERS.get((row["tier"] or "").strip().lower())
        if tier is not None:
            yield tier, row["start_s"], row["end_s"], row["label"]


def _table(path: Path, text: str) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
    except csv.Error as error:
        raise StreamError(f"{path} is not CSV: {error}. Write it again, separated by commas.") from None
    header = list(reader.fieldnames or [])
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise StreamError(
            f"{path} lacks the columns {', '.join(missing)}; it has {listed(header)}. "
            f"Expected are {', '.join(_COLUMNS)}, separated by commas."
        )
    return rows, header


def _corpus(path: Path) -> dict[str, bytes]:
    """Return the rows of each id, as a CSV of their own, which is what identifies them."""
    try:
        rows, header = _table(path, read_bytes(path, _CORPUS_BYTES).decode("utf-8-sig"))
    except (StreamError, UnicodeDecodeError) as error:
        raise ConfigError(f"aligner intervals: {error}") from None
    if "id" not in header:
        raise ConfigError(f"aligner intervals: {path} has no column 'id', which says whose rows they are.")
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["id"] or ""].append(row)
    tables = {}
    for name, own in grouped.items():
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["id", *_COLUMNS], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(own)
        tables[name] = table.getvalue().encode()
    return tables
