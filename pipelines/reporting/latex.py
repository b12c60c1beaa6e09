r"""LaTeX: texts that stay texts, and tables with booktabs, for pdfLaTeX, XeLaTeX and LuaLaTeX.

pdfLaTeX, with the font encoding it starts with (OT1), has the Latin letters with accents and no other script. Any other
character is written ``\featcacheunicode{6124}``, which is the character under XeLaTeX and LuaLaTeX (in a font that has
it) and ``[U+6124]`` under pdfLaTeX: a document compiles whatever its runs are called. Sources: ``ot1enc.dfu`` of the
LaTeX kernel; Fear, booktabs, section 2 (no vertical rules, no double rules).
"""

import unicodedata
from collections.abc import Sequence

from pipelines.reporting.markdown import one_line
from pipelines.reporting.tables import Grid

_COMMAND = r"\featcacheunicode"
DEFINITION = rf'\providecommand{{{_COMMAND}}}[1]{{\ifdefined\Umathcode\symbol{{"#1}}\else{{[}}U+#1{{]}}\fi}}'
"""What a file needs in which a character is written by its number."""

_MARKS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": r"\textasciigrave{}", '"': r"{''}",
    # After the end of a row, a star or a bracket would be the end's own.
    "*": "{*}", "[": "{[}", "]": "{]}",
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "–": "{--}", "—": "{---}", "…": r"\ldots{}",
    "‘": "{`}", "’": "{'}", "“": "{``}", "”": "{''}", "•": r"\textbullet{}",
}  # fmt: skip
_LACKING = "ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"
_LATIN = frozenset(chr(code) for code in range(0xC0, 0x180)) - frozenset(_LACKING) | frozenset("ȘșȚț")
_WIDE = 28
"""Columns of longer texts are broken into lines."""

_LONG = 30
"""Tables of more rows go over several pages."""


def escape(words: str) -> str:
    """Return a text on one line that is typeset as it is."""
    line = unicodedata.normalize("NFC", one_line(words))
    return "".join(_mark(mark, before) for before, mark in zip(" " + line, line, strict=False))


def _mark(mark: str, before: str) -> str:
    if mark in _MARKS:
        return _MARKS[mark]
    if mark.isascii():
        # Two hyphens would be a dash, two apostrophes a quotation mark.
        return f"{{{mark}}}" if mark == before and mark in "-'," else mark
    return mark if mark in _LATIN else f"{_COMMAND}{{{ord(mark):04X}}}"


def table(grid: Grid, caption: str, label: str, strong: int | None = None, notes: Sequence[str] = ()) -> str:
    r"""Return a table that a paper can ``\input``: a ``table``, or, where it is long, a ``longtable`` over pages.

    Args:
        grid: the cells, as plain text.
        caption: what it shows, as plain text.
        label: for ``\ref``, after ``tab:``; letters, digits, hyphens and underscores.
        strong: position of a row to be set in bold; None for none.
        notes: what stands below it, as plain text.
    """
    head = [r"\toprule", _row(grid.header), r"\midrule"]
    rows = [_row(row, place == strong) for place, row in enumerate(grid.rows)]
    title = rf"\caption{{{escape(caption)}}}"
    below = [rf"  {{\footnotesize\raggedright {escape(note)}\par}}" for note in notes]
    foot = [r"\bottomrule", r"\endfoot"]
    if len(rows) > _LONG:
        lines = [
            rf"\begin{{longtable}}{{{_columns(grid)}}}",
            rf"  {title} \label{{tab:{label}}} \\",
            *(f"  {line}" for line in (*head, r"\endfirsthead", *head, r"\endhead", *foot, *rows)),
            r"\end{longtable}",
            *below,
        ]
    else:
        lines = [
            r"\begin{table}[htbp]",
            r"  \centering",
            f"  {title}",
            rf"  \label{{tab:{label}}}",
            rf"  \begin{{tabular}}{{{_columns(grid)}}}",
            *(f"    {line}" for line in (*head, *rows, r"\bottomrule")),
            r"  \end{tabular}",
            *([r"  \par\smallskip", *below] if below else []),
            r"\end{table}",
        ]
    body = "".join(f"{line}\n" for line in lines)
    return _needs(body) + body


def _needs(body: str) -> str:
    """Return what a file begins with: what its table needs."""
    packages = [
        *(["array"] if r"\arraybackslash" in body else []),
        "booktabs",
        *(["longtable"] if "{longtable}" in body else []),
    ]
    return f"% Needs \\usepackage{{{','.join(packages)}}}.\n" + (f"{DEFINITION}\n" if _COMMAND in body else "")


def _columns(grid: Grid) -> str:
    texts = zip(*(grid.header, *grid.rows), strict=True)
    widths = [max(map(len, column)) for column in texts]
    return "".join(
        "r" if numeric else "l" if width <= _WIDE else r">{\raggedright\arraybackslash}p{2.6cm}"
        for width, numeric in zip(widths, grid.numeric, strict=True)
    )


def _row(cells: Sequence[str], strong: bool = False) -> str:
    texts = [escape(cell) for cell in cells]
    return " & ".join(rf"\textbf{{{text}}}" if strong and text else text for text in texts) + r" \\"


def document(title: str, inputs: Sequence[str]) -> str:
    r"""Return a document that shows files, to look at them.

    Args:
        title: plain text.
        inputs: paths that ``\input`` finds.
    """
    lines = [
        r"\documentclass[10pt]{article}",
        r"\usepackage[landscape,margin=1.2cm]{geometry}",
        r"\usepackage{array,booktabs,longtable}",
        r"\makeatletter",
        r"\def\@floatboxreset{\reset@font\scriptsize\@setminipage}",  # floats are in \normalsize otherwise
        r"\makeatother",
        r"\setlength{\tabcolsep}{4pt}",
        DEFINITION,
        rf"\title{{{escape(title)}}}",
        r"\date{}",
        r"\begin{document}",
        r"\maketitle",
        r"\scriptsize",
        *(rf"\input{{{path}}}" for path in inputs),
        r"\end{document}",
    ]
    return "\n".join(lines) + "\n"
