"""GitHub-flavoured Markdown: texts that stay texts, and tables.

Source: GitHub Flavored Markdown Spec 0.29 (https://github.github.com/gfm/): backslash escapes (6.1), tables (4.10), raw
HTML (6.10); and dollar signs, which GitHub reads as mathematics. An address in a text becomes a link there, as every
address does.
"""

import re
from collections.abc import Sequence

from pipelines.reporting.tables import Grid

_MARKS = re.compile(r"[\\`*_~|\[\]$#]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# What begins a list, or is a rule or an underline of a heading.
_OPENING = re.compile(r"^(\d*)([-+.)](?=\s|$)|[-=](?=[-= ]*$))")


def one_line(words: str) -> str:
    """Return a text on one line, without what cannot be shown."""
    return " ".join("".join(mark if mark.isprintable() or mark.isspace() else "\ufffd" for mark in words).split())


def escape(words: str) -> str:
    """Return a text on one line that is shown as it is, in a paragraph, a list or a cell of a table."""
    line = _MARKS.sub(r"\\\g<0>", one_line(words))
    for mark, entity in _ENTITIES.items():
        line = line.replace(mark, entity)
    return _OPENING.sub(r"\1\\\2", line)


def table(grid: Grid, strong: int | None = None) -> str:
    """Return a table whose source is aligned as well.

    Args:
        grid: the cells, as plain text.
        strong: position of a row to be set in bold; None for none.
    """
    rows = [[escape(cell) for cell in row] for row in (grid.header, *grid.rows)]
    if strong is not None:
        rows[strong + 1] = [f"**{cell}**" if cell else "" for cell in rows[strong + 1]]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(grid.header))]
    columns = list(zip(widths, grid.numeric, strict=True))
    rule = ("-" * (width - 1) + (":" if numeric else "-") for width, numeric in columns)
    return "\n".join([_row(rows[0], columns), f"| {' | '.join(rule)} |", *(_row(row, columns) for row in rows[1:])])


def _row(cells: Sequence[str], columns: Sequence[tuple[int, bool]]) -> str:
    padded = (
        cell.rjust(width) if numeric else cell.ljust(width)
        for cell, (width, numeric) in zip(cells, columns, strict=True)
    )
    return f"| {' | '.join(padded)} |"
