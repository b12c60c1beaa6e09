"""Figures as SVG that lives inside a page: its colours follow the page's theme, its texts use the page's font.

A figure is drawn in the light palette, so that by itself it is a figure on paper. On the way into a page each colour
of the palette becomes the CSS variable of its name, which the page sets for light, dark and print. Ids are made
unique by a prefix, and nothing that points to a network address or to the time of drawing stays.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c2128", "#5b6472", "#d5dae1"
FIRST, SECOND = "#1f5fbf", "#b4480a"

PALETTE: Mapping[str, str] = {INK: "ink", MUTED: "muted", GRID: "grid", FIRST: "first", SECOND: "second"}
"""Colours that a figure may use, and the CSS variable that each becomes."""

METADATA: Mapping[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    ".pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}
"""What is left out of a picture of its own: with no time and no version in it, the same picture is the same bytes."""

DPI = 130
"""Dots per inch of a PNG."""

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": "medium",
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "font.size": 10.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "featcache",
    "text.color": INK,
    # Names of classes and runs are not mathematics, even with a dollar sign.
    "text.parse_math": False,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
}
_CSS_PIXELS_PER_INCH = 96


@contextmanager
def style() -> Iterator[None]:
    """Draw and write figures inside: matplotlib's own defaults and this project's look, whatever the user's are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A class may be named in any script; the font that shows it is the reader's, not the one measured with here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from|Matplotlib currently does not support")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def inline(figure: Figure, prefix: str, label: str) -> Markup:
    """Return a figure as an ``<svg>`` element for a page, which finds its size on paper in the variable ``--natural``.

    Args:
        figure: drawn inside `style`, in the colours of `PALETTE`.
        prefix: put before ids; unique on the page.
        label: what the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=METADATA[".svg"])
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314  matplotlib wrote it
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        _adapt(element)
    _rename_ids(root, prefix)
    for parent in list(root.iter("defs")):
        # matplotlib's style sheet would hold for the whole page; the page has it, for its figures only.
        for sheet in parent.findall("style"):
            parent.remove(sheet)
    width = _CSS_PIXELS_PER_INCH * figure.get_size_inches()[0]
    root.attrib = {"viewBox": root.attrib["viewBox"], "style": f"--natural:{width:.0f}px"}
    root.attrib |= {"role": "img", "aria-label": label}
    for element in root.iter():
        if element.tag not in ("text", "tspan"):
            element.text = None
        element.tail = None
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704  ElementTree escapes texts and labels


def plain(text: str, length: int = 22) -> str:
    """Return a name as a figure can show it: one line, no control characters, cut in its middle when long."""
    text = "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in " ".join(text.split()))
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def _adapt(element: ElementTree.Element) -> None:
    """Write one element's style in the page's variables and font."""
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    if "style" in attributes:
        pairs = [pair.strip().partition(": ") for pair in attributes["style"].split(";") if pair.strip()]
        values = {name: f"var(--{PALETTE[value]})" if value in PALETTE else value for name, _, value in pairs}
        values.pop("font-family", None)
        if "font" in values:  # as matplotlib before 3.10 writes it: size and families
            values["font-size"] = re.findall(r"[\d.]+px", values.pop("font"))[0]
        attributes["style"] = ";".join(f"{name}:{value}" for name, value in values.items())
    if "d" in attributes:
        attributes["d"] = " ".join(attributes["d"].split())
    element.attrib = attributes


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Give ids that something refers to the prefix, and take the others away."""
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            link = re.fullmatch(r"#(.+)|url\(#(.+)\)", value) if name in ("href", "clip-path") else None
            if link:
                target = link[1] or link[2]
                used.add(target)
                element.attrib[name] = value.replace(target, f"{prefix}-{target}")
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name in used:
            element.attrib["id"] = f"{prefix}-{name}"
