"""In what runs differ: the settings that are not the same in all of them, and runs that differ in the seed alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.files import canonical_json
from heads.fold_files import natural_key
from heads.metrics import METRICS
from heads.runs import Run
from pipelines.reporting.wording import text

_SEED = "fit.seed"
_SETTINGS = ("settings", "fit")
_PLAIN = (
    "label", "validation", "validation_by", "missing", "drop_unlabelled", "method", "space", "standardise",
    "searched_on", "selected_by",
)  # fmt: skip
# What a run found, or where and when: not what was asked for.
_FOUND = (
    "digest", "chosen", "seconds", "peak_mib", "versions", "problems", "allowed_leaks", "on_search", "weights",
    "unseen_classes", "device", "place",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A setting that differs between runs.

    Attributes:
        name: dotted, as ``--set`` takes it.
        values: (runs,) as text; empty where a run does not have it.
        numbers: (runs,) the same as numbers, NaN where a run does not have it; None where one is no number.
    """

    name: str
    values: Sequence[str]
    numbers: Sequence[float] | None


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: what they are called, without the seed.
        places: (seeds,) their positions among the runs.
        seeds: (seeds,) the seeds.
        mean: metric to its mean over folds and seeds.
        std: metric to its sample standard deviation over folds and seeds, each alike; None where there is one value.
        std_of_means: metric to the sample standard deviation of the seeds' means over folds.
    """

    name: str
    places: Sequence[int]
    seeds: Sequence[str]
    mean: Mapping[str, float]
    std: Mapping[str, float | None]
    std_of_means: Mapping[str, float]


def varied(runs: Sequence[Run]) -> list[Setting]:
    """Return the settings that differ between runs of the same head, in the order they are written."""
    settings = [_settings(run.config or {}) for run in runs]
    heads = [text((run.config or {}).get("head")) for run in runs]
    names = dict.fromkeys(name for own in settings for name in own)
    found = []
    for name in names:
        values = [own.get(name, "") for own in settings]
        if len(set(zip(heads, values, strict=True))) > len(set(heads)):
            found.append(Setting(name, values, _numbers(values)))
    return found


def by_seed(runs: Sequence[Run], names: Sequence[str]) -> list[Seeds]:
    """Return the runs that differ in the seed alone, two or more each time, in the order of their first."""
    together: dict[bytes, list[int]] = {}
    for place, run in enumerate(runs):
        key = _all_but_seed(run.config or {})
        if key:
            together.setdefault(key, []).append(place)
    found = []
    for places in together.values():
        seeds = [_settings(runs[place].config or {})[_SEED] for place in places]
        if len(set(seeds)) == len(seeds) > 1:
            found.append(_summary([runs[place] for place in places], places, seeds, _unseeded(names[places[0]])))
    return found


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for group in _SETTINGS:
        own = config.get(group)
        if isinstance(own, Mapping):
            found |= {f"{group}.{name}": text(value) for name, value in own.items()}
    return found | {name: text(config[name]) for name in _PLAIN if name in config}


def _numbers(values: Sequence[str]) -> list[float] | None:
    try:
        numbers = [float(value) if value else np.nan for value in values]
    except ValueError:
        return None
    return None if np.isinf(numbers).any() or any(value == "nan" for value in values) else numbers


def _all_but_seed(config: Mapping[str, Any]) -> bytes:
    """Return what decides a run but its seed; nothing where it does not say its seed."""
    fit = config.get("fit")
    if not isinstance(fit, Mapping) or "seed" not in fit:
        return b""
    rest = {name: value for name, value in config.items() if name not in (*_FOUND, "fit")}
    fit = {name: value for name, value in fit.items() if name != "seed"}
    try:
        return canonical_json([rest, fit])
    except (TypeError, ValueError):  # such as dates and NaN, which a training does not write
        return b""


def _summary(runs: Sequence[Run], places: Sequence[int], seeds: Sequence[str], name: str) -> Seeds:
    mean, std, std_of_means = {}, {}, {}
    for metric in METRICS:
        values = [[fold[metric] for fold in run.metrics["folds"]] for run in runs]  # type: ignore[literal-required]
        flat = np.concatenate([np.asarray(own, np.float64) for own in values])
        mean[metric], std[metric] = float(flat.mean()), float(flat.std(ddof=1))
        std_of_means[metric] = float(np.std([run.metrics["mean"][metric] for run in runs], ddof=1))
    order = sorted(range(len(seeds)), key=lambda place: natural_key(seeds[place]))
    return Seeds(name, [places[at] for at in order], [seeds[at] for at in order], mean, std, std_of_means)


def _unseeded(name: str) -> str:
    """Return a run's name without its seed."""
    return re.sub(r"(^|[,/_.-])seed[=_-]?[0-9]+([,/_.-]|$)", lambda found: found[1] and found[2], name) or name
