"""Which runs are meant by the folders of a command: runs, and folders that hold runs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import ConfigError, ScoresError
from featcache.files import listed
from heads.fold_files import natural_key
from heads.runs import UNFINISHED
from pipelines.reporting.wording import distinct

_DEEPEST = 2


@dataclass(frozen=True)
class Found:
    """Run folders.

    Attributes:
        runs: folders that have scores.
        names: the shortest ends of their paths that tell them apart.
        unfinished: names of the folders, beside these or in them, in which a training has begun and not ended.
    """

    runs: Sequence[Path]
    names: Sequence[str]
    unfinished: Sequence[str]


def find_runs(folders: Sequence[Path]) -> Found:
    """Return the runs that are meant by some folders.

    Args:
        folders: run folders, and folders of runs, such as an ablation's: those stand for every run in them and in
            their own folders (``seed-0/RUN``), in natural order. Hidden folders are left out.

    Raises:
        ConfigError: nothing was named, or one run twice.
        ScoresError: a folder neither is a run nor holds one, be it unfinished; or no run is finished.
    """
    if not folders:
        raise ConfigError("There is nothing to report: no run was given.")
    runs, unfinished = [], []
    for folder in folders:
        inside = _inside(folder, _DEEPEST)
        own = [path for path in inside if _is_run(path)]
        if not inside and folder.is_dir():
            raise ScoresError(
                f"{str(folder)!r} is not a run: there is no 'scores.csv' in it, nor in the folders in it. "
                "Name the folder that holds the file, or one that holds such folders."
            )
        runs += own if inside else [folder]
        unfinished += [path.name for path in inside if not _is_run(path)]
    if not runs:
        raise ScoresError(
            f"There are no scores yet: training was interrupted, or is still at work, in {listed(unfinished)}. The "
            "command that began it goes on with it."
        )
    _check_once(runs)
    return Found(runs, distinct([os.path.abspath(folder) for folder in runs]), unfinished)


def _is_run(folder: Path) -> bool:
    return (folder / "scores.csv").is_file()


def _inside(folder: Path, depth: int) -> list[Path]:
    """Return a folder that is a run or an unfinished one, or those in it."""
    if _is_run(folder) or not folder.is_dir():
        return [folder] if _is_run(folder) else []
    below = sorted(
        (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: natural_key(path.name),
    )
    found = [one for path in below for one in _inside(path, depth - 1)] if depth else []
    # An ablation keeps a folder of that name as well, beside its runs.
    return found or ([folder] if (folder / UNFINISHED).is_dir() else [])


def _check_once(runs: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for folder in runs:
        place = folder.resolve()
        if place in seen:
            raise ConfigError(f"{str(folder)!r} is the same run as {str(seen[place])!r}. Name each run once.")
        seen[place] = folder
