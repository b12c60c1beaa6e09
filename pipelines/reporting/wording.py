"""How numbers, settings and runs are put into words, the same everywhere in a report."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

TITLES: Mapping[str, str] = {"wa": "WA", "ua": "UA", "macro_f1": "macro-F1", "weighted_f1": "weighted F1"}
"""The metrics of `heads.metrics.evaluate`, in the order of tables, and what readers call them."""


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with one decimal, or a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def spread(mean: float, std: float | None) -> str:
    """Return ``mean ± std`` in percent; the mean alone where there is no standard deviation."""
    return percent(mean) if std is None else f"{percent(mean)} ± {percent(std)}"


def text(value: Any) -> str:
    """Return a plain value as one line of text; nothing for None and for what is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {text(item) or 'none'}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return " | ".join(text(item) or "none" for item in value)
    return str(value)


def texts(value: Any) -> list[str]:
    """Return what a configuration holds in the place of a list, as a list: nothing for None, one for a single value."""
    if value is None:
        return []
    return [text(item) for item in value] if isinstance(value, list | tuple) else [text(value)]


def some(names: Sequence[str], total: int | None = None, most: int = 12) -> str:
    """Return names with commas between; of many the first and how many more, or how many where it is all of them.

    Args:
        names: the names.
        total: how many there could be; None where that is not known.
        most: up to so many are all named.
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"all {total} runs" if len(names) == total else f"{', '.join(names[:3])} and {len(names) - 3} more"


def breakable(name: str) -> Markup:
    """Return a name that a page may break behind commas and slashes, as names that list settings want it."""
    return Markup("<wbr>").join(piece for piece in re.split(r"(?<=[,/])", name) if piece)


def p_value(value: float) -> str:
    """Return a p value with three decimals, or a dash for none."""
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def points(value: float) -> str:
    """Return a difference of fractions in percentage points, with its sign."""
    return "–" if math.isnan(value) else f"{100 * value:+.1f}".replace("-", "−")


def between(low: float, high: float, signed: bool = False) -> str:
    """Return an interval of fractions in percent, ``[low, high]``; a dash for none."""
    form = points if signed else percent
    return "–" if math.isnan(low) or math.isnan(high) else f"[{form(low)}, {form(high)}]"


def distinct(paths: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that tell them apart: ``run``, or ``a/run`` and ``b/run``.

    Equal paths keep equal names.
    """
    parts = [PurePath(path).parts for path in paths]
    lengths = dict.fromkeys(parts, 1)
    while True:
        ends = Counter(part[-length:] for part, length in lengths.items())
        shared = [part for part, length in lengths.items() if ends[part[-length:]] > 1 and length < len(part)]
        if not shared:
            return [PurePath(*part[-lengths[part] :]).as_posix() for part in parts]
        for part in shared:
            lengths[part] += 1
