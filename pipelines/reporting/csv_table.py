"""CSV files of a run folder, read by columns; every error names the file, the line and the column."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ScoresError
from featcache.files import quoted

_MOST_DIGITS = 15


@dataclass(frozen=True, eq=False)
class CsvTable:
    """A CSV file in a run folder, with a row or more for each fold it speaks of.

    Attributes:
        path: where it was read.
        header: names of columns.
        rows: line number and fields.
    """

    path: Path
    header: tuple[str, ...]
    rows: Sequence[tuple[int, list[str]]]

    @classmethod
    def read(cls, path: Path, columns: Sequence[str], folds: Sequence[str]) -> "CsvTable | None":
        """Read a file.

        Args:
            path: the file.
            columns: columns that it must have, ``fold`` among them; others may be there.
            folds: folds that it may speak of.

        Returns:
            The table, or None where there is no file, or no row in it.

        Raises:
            ScoresError: the file is malformed, or another run's.
        """
        if not path.is_file():
            return None
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                header = tuple(next(reader, []))
                rows = [(reader.line_num, row) for row in reader if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ScoresError(f"{str(path)!r} cannot be read: {error}") from None
        missing = [name for name in columns if name not in header]
        if missing:
            raise ScoresError(f"{str(path)!r} has no column {missing[0]!r}; found {list(header)}.")
        for line, row in rows:
            if len(row) != len(header):
                raise ScoresError(f"{str(path)!r}, line {line}: {len(row)} fields where the header has {len(header)}.")
        table = cls(path, header, rows)
        strange = sorted(set(table.texts("fold")) - set(folds))
        if strange:
            raise ScoresError(
                f"{str(path)!r} has the fold {strange[0]!r}, which the run's scores lack. "
                "It may be another run's: make the run again in a new folder, or remove the file."
            )
        return table if rows else None

    def texts(self, column: str) -> list[str]:
        """Return a column as it is written."""
        place = self.header.index(column)
        return [row[place] for _, row in self.rows]

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return a column of numbers, which need not be finite."""
        return np.array([self._number(line, column, text) for line, text in self._cells(column)], np.float64)

    def fractions(self, column: str) -> NDArray[np.float64]:
        """Return a column of fractions, 0 to 1 or NaN."""
        values = self.numbers(column)
        wrong = np.flatnonzero(~np.isnan(values) & ~((values >= 0) & (values <= 1)))
        if len(wrong):
            line = self.rows[wrong[0]][0]
            raise ScoresError(
                f"{str(self.path)!r}, line {line}: {column!r} holds {values[wrong[0]]:g}, not a fraction in 0..1."
            )
        return values

    def whole_numbers(self, column: str) -> list[int]:
        """Return a column of whole numbers, 0 or more."""
        for line, text in self._cells(column):
            if not text.strip().isdecimal() or len(text.strip()) > _MOST_DIGITS:
                raise ScoresError(
                    f"{str(self.path)!r}, line {line}: {column!r} holds {quoted(text)}, not a whole number of up to "
                    f"{_MOST_DIGITS} digits."
                )
        return [int(text) for text in self.texts(column)]

    def _cells(self, column: str) -> list[tuple[int, str]]:
        return [(line, text) for (line, _), text in zip(self.rows, self.texts(column), strict=True)]

    def _number(self, line: int, column: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ScoresError(
                f"{str(self.path)!r}, line {line}: {column!r} holds {quoted(text)}, not a number."
            ) from None
        if math.isfinite(value) and abs(value) >= 10**_MOST_DIGITS:
            raise ScoresError(f"{str(self.path)!r}, line {line}: {column!r} holds {value:g}, more than can be drawn.")
        return value
