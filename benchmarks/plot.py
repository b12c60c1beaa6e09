"""Draw the scaling figures of a benchmark's JSON as an SVG that follows the reader's light or dark theme.

python -m benchmarks.plot runs/bench.json docs/scaling.svg
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from pipelines.reporting.svg import FIRST, INK, MUTED, PALETTE, SECOND, inline, style

DARK = {"ink": "#e6e9ee", "muted": "#a0a9b6", "grid": "#363d48", "first": "#7db0ff", "second": "#ffa163"}
"""The palette's colours on a dark page, as the report has them."""

_TITLES = {
    "extracting": "Extracting, an utterance",
    "reading": "Reading and training",
    "opening": "Opening a cache, an utterance",
}
_LOOKS = (
    (FIRST, "o", "-"),
    (SECOND, "s", "-"),
    (INK, "^", "-"),
    (MUTED, "D", "-"),
    (FIRST, "v", "--"),
    (SECOND, "P", "--"),
)
_LABEL = "Milliseconds a unit of work, by size of the corpus: "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="JSON that python -m benchmarks scaling wrote")
    parser.add_argument("out", type=Path, help="SVG to write")
    arguments = parser.parse_args()
    results = json.loads(arguments.bench.read_text())["results"]
    if "scaling" not in results:
        raise SystemExit(
            f"{arguments.bench} has no scaling figures: run python -m benchmarks scaling --out FILE first."
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(draw(results["scaling"]))


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the figure as the text of an SVG file: a panel for each part, a line for each thing measured."""
    parts = {part: list(group) for part, group in groupby(rows, key=lambda row: row["part"])}
    with style():
        figure = Figure(figsize=(9.2, 4.5), layout="none")
        figure.subplots_adjust(left=0.07, right=0.99, top=0.92, bottom=0.42, wspace=0.12)
        panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        for axes, (part, group) in zip(panels, parts.items(), strict=True):
            _panel(axes, _TITLES.get(part, part), group)
        panels[0].set_ylabel("milliseconds")
        picture = str(inline(figure, "scaling", _LABEL + "; ".join(_told(rows))))
    light = {name: colour for colour, name in PALETTE.items()}
    sheet = f"svg{{{_variables(light)}font-family:system-ui,sans-serif}}"
    sheet += f"@media (prefers-color-scheme:dark){{svg{{{_variables(DARK)}}}}}"
    width, height = (96 * inches for inches in figure.get_size_inches())
    opening, _, rest = picture.partition(">")
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
    return f"{opening.replace('<svg', f'<svg {size}', 1)}><style>{sheet}</style>{rest}\n"


def _panel(axes: Axes, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    for look, (what, group) in zip(_LOOKS, _by_what(rows), strict=False):
        colour, marker, line = look
        sizes = [int(row["corpus"].rstrip("x")) for row in group]
        axes.plot(
            sizes, [row["ms a unit"] for row in group], color=colour, marker=marker, linestyle=line, markersize=4.5,
label=what,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size}x" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("size of the corpus")
    axes.set_title(title, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), borderaxespad=0, handlelength=2, labelcolor=INK)


def _by_what(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    return [(what, list(group)) for what, group in groupby(rows, key=lambda row: str(row["what"]))]


def _told(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the figure shows in words, for those who do not see it."""
    told = []
    for what, group in _by_what(rows):
        values = ", ".join(f"{row['ms a unit']} at {row['corpus']}" for row in group)
        told.append(f"{what}: {values}")
    return told


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


if __name__ == "__main__":
    main()
