"""The results of an ablation: one row a run and fold, as CSV and Parquet, and what was best on validation.

Columns: ``run``, ``fold``; what differs between runs, by its key; ``seed``; ``ua``, ``wa``, ``macro_f1`` and
``weighted_f1`` on test, fractions, and ``n`` utterances; ``validation_ua`` and ``validation_wa``; the run's ``digest``,
the ``seconds`` that training took (of runs that trained as one job: a share) and its ``folder``; whether the speech is
``synthetic``, and whether ``random_weights`` stood where trained ones belong. A setting that a run does not have is
empty.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from featcache.files import write_atomically
from heads.head import GradientHead
from heads.metrics import evaluate
from heads.runs import read_run
from pipelines import show
from pipelines.ablate_spec import Ablation, Fusion, Wanted
from pipelines.train_heads import load_head

CSV, PARQUET = "results.csv", "results.parquet"
_METRICS = ("ua", "wa", "macro_f1", "weighted_f1")
_OF_VALIDATION = ("ua", "wa")
_SHOWN = 10

Row = Mapping[str, Any]


def rows_of(ablation: Ablation, one: Wanted | Fusion, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run that is there.

    Args:
        ablation: the ablation.
        one: a run or fusion of it.
        folder: its run folder.

    Raises:
        ScoresError: the folder's files are not usable.
    """
    run = read_run(folder)
    config = run.config or {}
    validation: dict[str, Mapping[str, Any]] = {}
    if run.validation_scores is not None:
        validation = {fold["fold"]: fold for fold in evaluate(run.validation_scores)["folds"]}
    settings = _settings(one) if isinstance(one, Wanted) else {"head": "fusion"}
    rows = []
    tested: list[Mapping[str, Any]] = [*run.metrics["folds"]]
    for fold in tested:
        chosen_on = validation.get(fold["fold"], {})
        rows.append(
            {
                "run": one.name,
                "fold": fold["fold"],
                **{key: settings.get(key) for key in ablation.varied},
                "seed": one.config.fit.seed if isinstance(one, Wanted) else one.seed,
                **{name: fold[name] for name in _METRICS},
                "n": fold["n"],
                **{f"validation_{name}": chosen_on.get(name) for name in _OF_VALIDATION},
                "digest": config.get("digest"),
                "seconds": config.get("seconds"),
                "folder": folder.name,
                **{flag: bool(config.get(flag)) for flag in ("synthetic", "random_weights")},
            }
        )
    return rows


def _settings(run: Wanted) -> dict[str, Any]:
    """Return what a run was trained with by dotted key, a head's defaults too; names of streams and lists as texts."""
    head = load_head(run.config)
    values: dict[str, Any] = {item.name: getattr(run.config, item.name) for item in fields(run.config)}
    if isinstance(head, GradientHead):  # others train themselves
        values |= {f"fit.{item.name}": getattr(run.config.fit, item.name) for item in fields(run.config.fit)}
    values |= {f"settings.{item.name}": getattr(head, item.name) for item in fields(head)}  # type: ignore[arg-type]
    return {**run.varied, **{key: _cell(value) for key, value in values.items()}}


def _cell(value: Any) -> Any:
    """Return a value as a table holds it: a number, a flag or a text; one of a tuple for itself."""
    if isinstance(value, tuple | list):
        return _cell(value[0]) if len(value) == 1 else "+".join(str(_cell(item)) for item in value)
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, Mapping) else value


def write(rows: Sequence[Row], out: Path) -> None:
    """Write the tables, each atomically; the same rows give the same bytes.

    Args:
        rows: of all runs, with the same columns; none leaves no table.
        out: the folder.
    """
    import pyarrow
    from pyarrow import parquet

    if not rows:
        for name in (CSV, PARQUET):
            (out / name).unlink(missing_ok=True)
        return
    columns = {name: _column([row[name] for row in rows]) for name in rows[0]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_atomically(out / CSV, text.getvalue().encode("utf-8"))
    buffer = io.BytesIO()
    table = pyarrow.table({name: pyarrow.array(values, _type(values)) for name, values in columns.items()})
    parquet.write_table(table, buffer)
    write_atomically(out / PARQUET, buffer.getvalue())


def _column(values: Sequence[Any]) -> list[Any]:
    """Return a column's values as one type: whole numbers, numbers, flags, or else texts; None stays."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 and not kinds - {int, float, bool, str}:
        return list(values)
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]


def _type(values: Sequence[Any]) -> Any:
    import pyarrow

    types = {int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    return types.get(next((type(value) for value in values if value is not None), str), pyarrow.string())


@dataclass(frozen=True)
class Standing:
    """A run over its folds and seeds.

    Attributes:
        label: the run's name without its seed.
        validation: mean UA on validation; None where some fold has none.
        test: mean UA on test.
        std: sample standard deviation of UA on test over folds and seeds; None for a single one.
        wa: mean WA on test.
        num: folds times seeds.
    """

    label: str
    validation: float | None
    test: float
    std: float | None
    wa: float
    num: int


def standings(rows: Iterable[Row], label: Callable[[str], str]) -> list[Standing]:
    """Return runs over their folds and seeds, the best on validation first; those without validation come last.

    The test numbers are for readers: nothing is ordered by them.

    Args:
        rows: rows of results.
        label: returns a run's name without its seed.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label(row["run"]), []).append(row)
    found = []
    for name, several in groups.items():
        test = [row["ua"] for row in several]
        chosen_on = [row["validation_ua"] for row in several if row["validation_ua"] is not None]
        validation = mean(chosen_on) if len(chosen_on) == len(several) else None
        std = stdev(test) if len(test) > 1 else None
        found.append(Standing(name, validation, mean(test), std, mean(row["wa"] for row in several), len(several)))
    return sorted(found, key=lambda one: (one.validation is None, -(one.validation or 0.0)))


def summary(ablation: Ablation, rows: Sequence[Row]) -> str:
    """Return the best runs by UA on validation, with their test numbers, and the fusions in the order of the file."""
    labels = ablation.labels
    fused = {fusion.name for fusion in ablation.fusions}
    runs = standings((row for row in rows if row["run"] not in fused), labels.__getitem__)
    order = list(dict.fromkeys(fusion.label for fusion in ablation.fusions))
    fusions = standings((row for row in rows if row["run"] in fused), labels.__getitem__)
    fusions.sort(key=lambda one: order.index(one.label))
    lines = []
    if runs:
        title = f"The best {_SHOWN} of {len(runs)}" if len(runs) > _SHOWN else "The runs"
        lines += [f"{title}, by mean UA on validation; test is for reading, not for choosing:", _table(runs[:_SHOWN])]
    if fusions:
        lines += ["", "Fusions, in the order of the file:", _table(fusions)]
    lines += show.provisos(list({row["run"]: row for row in rows}.values()))
    return "\n".join(lines)


def _table(found: Sequence[Standing]) -> str:
    rows = [["run", "UA on validation", "UA on test", "WA on test", "folds x seeds"]]
    for one in found:
        spread = "" if one.std is None else f" ± {100 * one.std:.1f}"
        validation = "none" if one.validation is None else f"{100 * one.validation:.1f}"
        rows.append([one.label, validation, f"{100 * one.test:.1f}{spread}", f"{100 * one.wa:.1f}", str(one.num)])
    return show.table(rows)
