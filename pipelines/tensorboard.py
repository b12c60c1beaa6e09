"""A run as TensorBoard event files: learning curves, test metrics and settings, from what the run folder holds.

One folder for each fold, so that TensorBoard draws the folds as curves of one chart, and ``run`` with the mean over
folds. Records are written as https://www.tensorflow.org/tensorboard reads them; their times are the steps, so the same
run gives the same bytes. Nothing is sent anywhere.
"""

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote

from featcache.errors import ConfigError, MissingExtraError, ScoresError
from heads.runs import Run, read_run
from pipelines.run_folders import TENSORBOARD

_EVENTS = "events.out.tfevents.0.featcache"
"""TensorBoard wants the middle of the name; a time and a host, which usually follow, would make each file another."""

_METRICS = ("ua", "wa", "macro_f1", "weighted_f1")
_SETTINGS = ("head", "streams", "settings", "fit", "folds", "validation", "validation_by", "label")


def run(folder: Path, out: Path | None = None) -> Path:
    """Write event files of a run; those of an earlier call are replaced.

    Args:
        folder: the run folder.
        out: folder to write; None is ``tensorboard`` in the run folder.

    Returns:
        The folder that was written: ``tensorboard --logdir`` shows it.

    Raises:
        ScoresError: the folder is not a run, or its learning curves are damaged.
        ConfigError: `out` is there and holds something else.
        MissingExtraError: the package tensorboard is not installed.
    """
    _check_installed()
    found = read_run(folder)
    out = folder / TENSORBOARD if out is None else out
    if out.exists() and not (out.is_dir() and all((one / _EVENTS).is_file() for one in out.iterdir())):
        raise ConfigError(f"{str(out)!r} holds other files than those of TensorBoard. Give another --out.")
    curves = _curves(folder / "curves.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(prefix=".tmp-", dir=out.parent))
    try:
        for measured in found.metrics["folds"]:
            name = measured["fold"]
            values: Mapping[str, Any] = measured
            points = curves.get(name, [])
            last = int(points[-1]["step"]) if points else 0
            scalars = [
                ("train/loss" if key == "loss" else f"validation/{key}", int(point["step"]), value)
                for point in points
                for key, value in point.items()
                if key != "step"
            ]
            scalars += [(f"test/{metric}", last, values[metric]) for metric in _METRICS]
            _write(temporary / f"fold-{quote(name, safe='')}", scalars)
        means = [(f"test/{metric}", 0, found.metrics["mean"][metric]) for metric in _METRICS]
        _write(temporary / "run", means, _hparams(found))
        shutil.rmtree(out, ignore_errors=True)
        temporary.chmod(0o755)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _check_installed() -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise MissingExtraError("Event files", "tensorboard", "tensorboard") from None


def _curves(path: Path) -> dict[str, list[dict[str, float]]]:
    """Return fold to the points of its learning curve; none where the head had no steps."""
    if not path.is_file():
        return {}
    curves: dict[str, list[dict[str, float]]] = {}
    try:
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")):
            fold = row.pop("fold")
            curves.setdefault(fold, []).append({key: float(value) for key, value in row.items() if value})
        if any(not math.isfinite(point["step"]) for points in curves.values() for point in points):
            raise ValueError("a step is no number")
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ScoresError(f"{str(path)!r} is damaged ({error!r}). Make the run again with --overwrite.") from None
    return curves


def _write(folder: Path, scalars: Sequence[tuple[str, int, float]], summaries: Sequence[Any] = ()) -> None:
    """Write one event file of scalars ``(name, step, value)`` and of further summaries."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar

    folder.mkdir(parents=True)
    with (folder / _EVENTS).open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
        events = [Event(wall_time=0.0, summary=summary) for summary in summaries]
        events += [
            Event(wall_time=float(step), step=step, summary=scalar(name, value)) for name, step, value in scalars
        ]
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))


def _hparams(found: Run) -> tuple[Any, ...]:
    """Return the summaries by which TensorBoard lists settings beside metrics."""
    from torch.utils.tensorboard.summary import hparams

    config = found.config or {}
    settings = _flat({name: config[name] for name in _SETTINGS if name in config})
    return hparams(settings, {f"test/{metric}": found.metrics["mean"][metric] for metric in _METRICS})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted names; what TensorBoard has no type for as text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
