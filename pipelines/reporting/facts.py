"""How a run was made, in words, from its ``config.yaml``.

The words are those of :mod:`pipelines.train_heads` and :mod:`pipelines.fuse`. A folder made by another program may
say less, or other things in their place: what is not understood is not shown here, and the page shows the whole file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heads.fold_kinds import plain_kind
from heads.folds import KINDS
from pipelines.reporting.wording import distinct, text, texts


@dataclass(frozen=True)
class Table:
    """A table of texts: the header, and rows of as many cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def inputs(config: Mapping[str, Any]) -> str:
    """Return what a run reads: its streams, or the runs it fuses with their weights; nothing where it does not say."""
    if "fused" not in config:
        streams = config.get("streams")
        return ", ".join(texts(list(streams) if isinstance(streams, Mapping) else streams))
    fused, weights = distinct(texts(config["fused"])), texts(config.get("weights"))
    if len(fused) == len(weights):
        fused = [f"{name} × {weight}" for name, weight in zip(fused, weights, strict=True)]
    return " + ".join(fused)


def folds(config: Mapping[str, Any], num_folds: int) -> str:
    """Return the kind of folds, where the run says it, and how many there are."""
    kind = plain_kind(text(config.get("folds")))
    return f"{kind} ({num_folds})" if kind else str(num_folds)


def chosen(config: Mapping[str, Any], folds: Sequence[str]) -> Table | None:
    """Return the settings each fold chose, in one row where all chose the same; None where the run does not say."""
    value = config.get("chosen")
    if not isinstance(value, Mapping):
        return None
    by_fold = {str(fold): settings for fold, settings in value.items() if isinstance(settings, Mapping)}
    rows = [(fold, by_fold[fold]) for fold in folds if fold in by_fold]
    names = list(dict.fromkeys(name for _, settings in rows for name in settings))
    if not names:
        return None
    cells = [[fold, *(text(settings.get(name)) for name in names)] for fold, settings in rows]
    if len(cells) > 1 and all(cell[1:] == cells[0][1:] for cell in cells):
        cells = [["all", *cells[0][1:]]]
    return Table(["fold", *map(str, names)], cells)


def facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return terms and texts on how a run was made; only of what it says."""
    validation, by = text(config.get("validation")), text(config.get("validation_by"))
    dropped, seconds, peak = text(config.get("dropped")), config.get("seconds"), config.get("peak_mib")
    found = {
        "Head": text(config.get("head")),
        "Head settings": text(config.get("settings")),
        "Fused runs": inputs(config) if "fused" in config else "",
        "Fused in space": text(config.get("space")),
        "Standardised": text(config.get("standardise")),
        "Fusion weights": _weights(config),
        "Streams": text(config.get("streams")),
        "Label": text(config.get("label")),
        "Folds": _kind(text(config.get("folds"))),
        "Validation": f"{validation} of train" + (f", by {by}" if by else "") if validation else "",
        "Training": text(config.get("fit")),
        "Left out": f"{dropped} utterances that a stream lacks" if dropped not in ("", "0") else "",
        "Training time": f"{seconds:.1f} s" if isinstance(seconds, int | float) else "",
        "Most memory": f"{peak:.0f} MiB" if isinstance(peak, int | float) else "",
        "Versions": text(config.get("versions")),
        "Digest": text(config.get("digest")),
    }
    return [(term, words) for term, words in found.items() if words]


def _weights(config: Mapping[str, Any]) -> str:
    """Return how a fusion got its weights; nothing for other runs."""
    searched_on, by = text(config.get("searched_on")), text(config.get("selected_by"))
    where = {
        "validation": "the fold's validation scores",
        "other-folds": "the test scores of the other folds, never of the fold that is scored",
    }
    if not searched_on:
        return "given" if "fused" in config else ""
    learned = {"stack": "learned (logistic stacking)", "joint": "learned (joint linear layers)"}
    how = learned.get(str(config.get("method")), "searched")
    return f"{how} on {where.get(searched_on, searched_on)}" + (f", by {by.upper()}" if by else "")


def _kind(kind: str) -> str:
    family = kind.partition(":")[0]
    meaning = next((words for name, words in KINDS.items() if name.partition(":")[0] == family), "")
    return f"{kind} ({meaning})" if kind and meaning else kind
