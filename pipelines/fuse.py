"""Fuse runs by weights that are given, searched or learned, and write the result as a run.

The folder holds, beside ``scores.csv``, ``validation_scores.csv``, ``metrics.json`` and ``config.yaml``:

* ``fusion_weights.csv``, of a search: ``fold``, ``w_RUN`` for each run, and on what was searched the number of
  ``utterances``, ``ua``, ``wa`` and ``log_loss``;
* ``fusion_curve.csv``, of a search with two runs: ``fold``, ``weight`` of the second run (the first has the rest to
  1), ``search_ua`` and ``search_wa``, and, for readers, ``test_ua`` and ``test_wa``;
* ``fusion_coefficients.csv``, of stacking and of joint layers: ``fold``, ``class`` whose score is made, ``run`` and
  ``score_of`` that a ``coefficient`` is for; both are empty for the intercept.

Metrics are fractions.
"""

import csv
import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from featcache.errors import ConfigError
from featcache.files import write_atomically
from featcache.manifest import Manifest
from heads.fusion import Fused, Space, fuse_runs
from heads.fusion_data import SearchOn, SelectBy
from heads.fusion_joint import WEIGHT_DECAY, join_runs
from heads.fusion_search import Searched, search_runs
from heads.fusion_stack import COST, Stacked, stack_runs
from heads.runs import Run, read_run, write_run
from pipelines.model_card import NAME as CARD
from pipelines.model_card import card
from pipelines.run_folders import FUSED, FUSION_FILES, TENSORBOARD, TRAINING_FILES, check_folder, check_unfinished

_SPACES: dict[str, Space] = {"prob": "prob", "log": "log"}
_SEARCHED: dict[str, SearchOn] = {"validation": "validation", "other-folds": "other-folds"}
_METRICS: dict[str, SelectBy] = {"ua": "ua", "wa": "wa"}
_FOUND = ("search", "stack", "joint")
"""Weights that are not given but found, on what --search-on says."""
_Choice = TypeVar("_Choice")
_Rows = list[dict[str, Any]]


def run(
    folders: Sequence[Path],
    weights: str,
    out: Path,
    space: str = "prob",
    standardise: bool = False,
    overwrite: bool = False,
    on_message: Callable[[str], None] = lambda _: None,
    search_on: str | None = None,
    select_by: str | None = None,
) -> Run:
    """Fuse run folders.

    Args:
        folders: runs over the same utterances; a ``scores.csv`` is enough, but not to search on validation.
        weights: one a run, separated by commas; or ``"search"``, for the best weights of each fold; or ``"stack"``,
            for a logistic regression in their place; or ``"joint"``, for a linear layer on each run's probabilities.
        out: run folder to write.
        space: ``"prob"`` or ``"log"``.
        standardise: standardise each run's scores by its validation scores first.
        overwrite: replace another run in `out`.
        on_message: called with a sentence for each thing worth knowing.
        search_on: ``"validation"``, the fold's own validation scores (the default), or ``"other-folds"``, the test
            scores of the other folds; for weights that are found.
        select_by: ``"ua"`` (the default) or ``"wa"``; for weights that are found.

    Raises:
        ConfigError: an option that does not exist or does not fit the others, weights that are not numbers or not one
            a run, or `out` is a file or holds a run already.
        ScoresError: runs that do not fit together, or nothing to search on.
    """
    numbers = None if weights in _FOUND else _numbers(weights)
    chosen = _choose(_SPACES, space, "--space")
    on = _choose(_SEARCHED, search_on or "validation", "--search-on")
    by = _choose(_METRICS, select_by or "ua", "--select-by")
    if numbers is not None and (search_on or select_by):
        option = "--search-on" if search_on else "--select-by"
        raise ConfigError(
            f"{option} is for --weights search, stack or joint; here the weights are given. Leave it out."
        )
    if weights == "joint" and (standardise or space != "prob"):
        raise ConfigError(
            "--weights joint takes probabilities as they are: leave --space and --standardise out, or use stack."
        )
    check_folder(out)
    if (out / "scores.csv").exists() and not overwrite:
        raise ConfigError(f"{str(out)!r} holds a run already. Give another --out, or --overwrite to replace it.")
    if not overwrite and not (out / "scores.csv").exists():
        check_unfinished(out)
    runs = [read_run(folder) for folder in folders]
    tables: dict[str, _Rows] = {}
    if numbers is not None:
        fused = fuse_runs(runs, numbers, space=chosen, standardise=standardise)
        record: dict[str, Any] = {"weights": numbers}
    elif weights == "search":
        found = search_runs(runs, space=chosen, standardise=standardise, search_on=on, select_by=by)
        fused, record, tables = found.fused, _searched(found, _names(runs)), _search_tables(found, _names(runs))
    elif weights == "stack":
        learned = stack_runs(runs, space=chosen, standardise=standardise, search_on=on, select_by=by)
        how = f"L2, C = {COST:g}, on columns of standard deviation 1"
        fused, record, tables = learned.fused, _stacked(learned, weights, how), _stack_tables(learned, _names(runs))
    else:
        learned = join_runs(runs, search_on=on, select_by=by)
        how = f"weight decay {WEIGHT_DECAY:g} of all weights and biases, beside the mean cross-entropy"
        fused, record, tables = learned.fused, _stacked(learned, weights, how), _stack_tables(learned, _names(runs))
    if numbers is None:
        record |= {"searched_on": on, "selected_by": by}
    _tell(fused, record, on, on_message)
    record = _common(runs, out) | record | {"space": space, "standardise": standardise}
    manifest = next((one.manifest for one in runs if one.manifest is not None), None)
    return _write(out, fused, record, tables, manifest)


def _numbers(weights: str) -> list[float]:
    try:
        return [float(text) for text in weights.split(",")]
    except ValueError:
        raise ConfigError(
            f"--weights takes numbers separated by commas, such as 0.6,1.0, or search, stack or joint; got {weights!r}."
        ) from None


def _choose(options: dict[str, _Choice], name: str, option: str) -> _Choice:
    if name not in options:
        raise ConfigError(f"{option} takes {' or '.join(options)}, got {name!r}.")
    return options[name]


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run's column: the folder's, its path where several are called alike, then a number."""
    for names in ([run.name for run in runs], [str(run.folder) for run in runs]):
        if len(set(names)) == len(names):
            return names
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _common(runs: Sequence[Run], out: Path) -> dict[str, Any]:
    configs = [run.config or {} for run in runs]
    return {
        "head": "fusion",
        "fused": [run.name for run in runs],
        "fused_from": [os.path.relpath(run.folder.resolve(), out.resolve().parent) for run in runs],
        "fused_digests": [config.get("digest") for config in configs],
        "speaker_independent": all(config.get("speaker_independent") for config in configs),
        "synthetic": any(config.get("synthetic") for config in configs),
        "random_weights": any(config.get("random_weights") for config in configs),
        "allowed_leaks": [leak for config in configs for leak in config.get("allowed_leaks", [])],
    }


def _searched(found: Searched, names: Sequence[str]) -> dict[str, Any]:
    return {
        "weights": {one.fold: list(one.weights) for one in found.folds},
        "method": "search",
        "validation_scores_were_searched_on": found.validation_decided,
        "on_search": {one.fold: asdict(one.on_search) for one in found.folds},
        "chosen": {
            one.fold: {f"weight of {name}": weight for name, weight in zip(names, one.weights, strict=True)}
            for one in found.folds
        },
    }


def _stacked(found: Stacked, method: str, regularisation: str) -> dict[str, Any]:
    return {
        "weights": method,
        "method": method,
        "regularisation": regularisation,
        "validation_scores_were_searched_on": found.validation_decided,
        "on_search": {one.fold: asdict(one.on_search) for one in found.folds},
        "unseen_classes": {one.fold: list(one.unseen) for one in found.folds if one.unseen},
    }


def _search_tables(found: Searched, names: Sequence[str]) -> dict[str, _Rows]:
    weights = [
        {
            "fold": one.fold,
            **{f"w_{name}": weight for name, weight in zip(names, one.weights, strict=True)},
            "utterances": one.on_search.num_utterances,
            "ua": one.on_search.ua,
            "wa": one.on_search.wa,
            "log_loss": one.on_search.log_loss,
        }
        for one in found.folds
    ]
    return {"fusion_weights.csv": weights, "fusion_curve.csv": [asdict(point) for point in found.curve]}


def _stack_tables(found: Stacked, names: Sequence[str]) -> dict[str, _Rows]:
    classes = found.fused.scores.classes
    rows: _Rows = []
    for one in found.folds:
        for index, position in enumerate(one.model.seen.tolist()):
            key = {"fold": one.fold, "class": classes[position]}
            rows.append(key | {"run": "", "score_of": "", "coefficient": one.model.intercepts[index].item()})
            rows += [
                key | {"run": name, "score_of": of, "coefficient": value}
                for name, values in zip(names, one.model.coefficients[index].tolist(), strict=True)
                for of, value in zip(classes, values, strict=True)
            ]
    return {"fusion_coefficients.csv": rows}


def _tell(fused: Fused, record: dict[str, Any], search_on: SearchOn, on_message: Callable[[str], None]) -> None:
    """Say what a user would want to know of the result."""
    if fused.validation_scores is None:
        on_message(f"No validation scores were fused: {fused.why_no_validation}")
    elif record.get("validation_scores_were_searched_on"):
        on_message("The fused validation scores are optimistic: the fusion was found on those utterances.")
    for fold, weights in record.get("chosen", {}).items():
        shown = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
        on_message(f"fold {fold}: {shown}; UA {100 * record['on_search'][fold]['ua']:.1f} % on {search_on}")
    for fold, names in record.get("unseen_classes", {}).items():
        on_message(f"fold {fold}: {', '.join(names)} did not occur on {search_on}, and gets probability 0.")


def _write(out: Path, fused: Fused, record: dict[str, Any], tables: dict[str, _Rows], manifest: Manifest | None) -> Run:
    # Scores are what makes a folder a run: taken away first, and written last.
    for name in ("scores.csv", *TRAINING_FILES, *FUSION_FILES):  # also of a training run that lay there
        (out / name).unlink(missing_ok=True)
    for name in (TENSORBOARD, FUSED):
        shutil.rmtree(out / name, ignore_errors=True)
    for name, rows in tables.items():
        if rows:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_atomically(out / name, text.getvalue().encode())
    run = write_run(out, fused.scores, fused.validation_scores, record)
    if manifest is not None:
        manifest.write(out / "manifest.jsonl")
    write_atomically(out / CARD, card(record, run.metrics, {}, manifest=manifest).encode())
    return run
