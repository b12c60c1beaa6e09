"""Any table: CSV, TSV or JSON Lines, one utterance a row, with its columns named by options.

This is the way in for data that has no reader of its own, and reads what :func:`featcache.exchange.write_csv` writes.
Cells of CSV are text: empty ones count as absent, and only ``start_s`` and ``end_s`` become numbers.
"""

import csv
import io
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from featcache.corpus import Corpus
from featcache.errors import ConfigError, CorpusError
from featcache.files import listed, parse_json, quoted, read_plain
from featcache.manifest import COLUMNS, Utterance, utterance_from_row

_DELIMITERS = {".csv": ",", ".txt": ",", ".tsv": "\t", ".tab": "\t"}
_JSON_LINES = frozenset({".jsonl", ".ndjson", ".json"})


@dataclass(frozen=True)
class Table(Corpus):
    """A table of your own. ROOT is the file; relative audio paths start from its folder.

    Each option that names a column is the name it has in the table. Left out, the column of the option's own name
    is used where there is one. Labels are kept as they are, and all other columns too, as extra columns; one whose name
    the manifest uses itself gets ``table_`` in front.

    Attributes:
        id: column of unique names. Without one, the recording's file name without its ending is the id.
        audio: column of the recordings' paths.
        text: column of what is said.
        label: column of the emotion.
        speaker: column of the speaker's name.
        session: column of the recording session.
        start_s: column of where the utterance starts in its recording, in seconds.
        end_s: column of where it ends, in seconds.
        delimiter: what stands between the cells; by default a comma, or a tab in ``.tsv`` and ``.tab``. ``"tab"``
            names the tab.
        encoding: of the file.
        check_audio: whether every recording must be there.
    """

    title = "A table of your own"
    licence = "That of the data it lists."
    citation = "@misc{table, note={Cite the source of the data that the table lists}}"
    url = "https://www.rfc-editor.org/rfc/rfc4180"
    layout = "one file that ends in .csv, .tsv or .jsonl, with a header row (CSV, TSV) or an object a line (JSON Lines)"

    id: str | None = None
    audio: str | None = None
    text: str | None = None
    label: str | None = None
    speaker: str | None = None
    session: str | None = None
    start_s: str | None = None
    end_s: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8-sig"
    check_audio: bool = True

    def __post_init__(self) -> None:
        if self.delimiter not in (None, "tab") and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ConfigError(f"delimiter={self.delimiter!r} is not one character. For a tab, give 'tab'.")
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            raise ConfigError(f"There is no encoding {self.encoding!r}. Common ones: utf-8-sig, cp1252.") from None

    def utterances(self, root: Path) -> list[Utterance]:
        """Return the utterances of the table `root`, in the order of its rows.

        Raises:
            CorpusError: the file is no table or a row of it is malformed, a column that an option names does not
                exist (the message lists those that do), an id occurs twice, or a recording is missing.
        """
        if not os.path.isfile(root):
            raise CorpusError(f"{str(root)!r} is no file. Expected: {self.layout}.")
        columns, rows = self._rows(root)
        sources = self._sources(root, columns)
        found: dict[str, tuple[str, Utterance]] = {}
        for where, row in rows:
            utterance = _utterance(row, sources, where)
            if utterance.id in found:
                raise CorpusError(
                    f"{where}: the id {quoted(utterance.id)} is that of {found[utterance.id][0]} already."
                )
            if self.check_audio and utterance.audio and not os.path.isfile(root.parent / utterance.audio):
                raise CorpusError(
                    f"{where}: there is no recording {quoted(str(root.parent / utterance.audio))}. Relative paths "
                    "start from the table's folder; set check_audio=false if the recordings are elsewhere for now."
                )
            found[utterance.id] = where, utterance
        return [utterance for _, utterance in found.values()]

    def _rows(self, path: Path) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
        """Return the names of the columns, and where each row stands with its cells; absent cells are left out."""
        try:
            content = read_plain(path).decode(self.encoding)
        except OSError as error:
            raise CorpusError(f"{str(path)!r} cannot be read: {error.strerror}. Check its permissions.") from None
        except UnicodeError as error:
            raise CorpusError(
                f"{str(path)!r} is not in the encoding {self.encoding}: {error}. "
                "Try encoding=cp1252 or encoding=utf-16."
            ) from None
        suffix = path.suffix.lower()
        if suffix in _JSON_LINES:
            return _json_lines(path, content)
        if suffix not in _DELIMITERS and self.delimiter is None:
            raise CorpusError(
                f"{str(path)!r}: its ending does not say what it is. Set delimiter, or expected: {self.layout}."
            )
        delimiter = {None: _DELIMITERS.get(suffix), "tab": "\t"}.get(self.delimiter, self.delimiter)
        return _delimited(path, content, str(delimiter))

    def _sources(self, path: Path, columns: Collection[str]) -> dict[str, str]:
        """Return the table's column for each of the manifest's columns that it has."""
        sources = {}
        for column in COLUMNS:
            named = getattr(self, column)
            if named is not None and named not in columns:
                raise CorpusError(
                    f"{str(path)!r} has no column {named!r}, which the option {column!r} names. "
                    f"It has: {listed(columns)}."
                )
            if named is not None or column in columns:
                sources[column] = named or column
        if not sources.keys() & {"id", "audio"}:
            raise CorpusError(
                f"{str(path)!r} needs a column of ids or of audio paths. It has: {listed(columns)}. "
                "Name one with the option 'id' or 'audio', or set 'delimiter'."
            )
        return sources


def _delimited(path: Path, content: str, delimiter: str) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise CorpusError(f"{str(path)!r} has two columns of one name: {listed(header)}.")
        rows = []
        for cells in reader:
            where = f"{str(path)!r}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise CorpusError(f"{where}: {len(cells)} cells where the header has {len(header)}: {quoted(cells)}.")
            if cells:
                rows.append((where, {column: cell for column, cell in zip(header, cells, strict=True) if cell}))
    except csv.Error as error:
        raise CorpusError(f"{str(path)!r}, line {reader.line_num}: {error}.") from None
    return header, rows


def _json_lines(path: Path, content: str) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    columns: dict[str, None] = {}
    rows = []
    # Not splitlines(): JSON text may hold U+2028 and other characters that it splits at.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{str(path)!r}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise CorpusError(f"{where} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: expected a JSON object, got {type(row).__name__}.")
        columns.update(dict.fromkeys(row))
        rows.append((where, {column: value for column, value in row.items() if value is not None}))
    return list(columns), rows


def _utterance(row: Mapping[str, Any], sources: Mapping[str, str], where: str) -> Utterance:
    values = {column: row[source] for column, source in sources.items() if source in row}
    extra = {
        f"table_{column}" if column in COLUMNS else column: value
        for column, value in row.items()
        if column not in sources.values()
    }
    try:
        values = {column: _converted(column, value) for column, value in values.items()}
        if "id" not in sources and isinstance(values.get("audio"), str):
            values["id"] = PurePath(values["audio"]).stem
        return utterance_from_row({**extra, **values})
    except ValueError as error:  # a ManifestError is one
        raise CorpusError(f"{where}: {error}.") from None


def _converted(column: str, value: Any) -> Any:
    """Return a cell as the manifest wants it: numbers for spans, and text where JSON has a whole number."""
    if column in ("start_s", "end_s"):
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError(f"column {column!r} must be seconds, 0 or more, got {quoted(value)}") from None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
