"""Run folders: what a run leaves behind, for everything that compares, fuses or reports runs.

A folder holds ``scores.csv`` (test utterances of every fold), and may hold ``validation_scores.csv`` (the same
columns), ``metrics.json``, ``config.yaml`` and ``manifest.jsonl`` (who says what in the utterances), beside weights and
logs that are not looked at here. A folder with a ``scores.csv`` alone, made by any other program, is a run. Metrics are
always computed from the scores when a run is read, so that they cannot be out of date; ``metrics.json`` is there for
other programs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from featcache.errors import ManifestError, ScoresError
from featcache.files import read_plain, write_atomically, write_json
from featcache.manifest import Manifest
from heads.metrics import Metrics, evaluate
from heads.scores import Scores

UNFINISHED = ".unfinished"
"""Folder of a run that keeps what a training which was stopped goes on from."""

_MOST_VALUES, _DEEPEST = 1_000_000, 32
# What PyYAML lets through besides its own errors: dates, numbers and tags that it does not check, and deep nesting.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class Run:
    """A run that was read from its folder.

    Attributes:
        folder: where it lies.
        scores: test utterances of every fold.
        validation_scores: validation utterances of every fold, or None where the run kept none.
        metrics: of the test scores; see `heads.metrics.evaluate`.
        config: how it was made, or None where the run does not say.
        manifest: its utterances, with speakers, texts and recordings, or None where the run does not say.
    """

    folder: Path
    scores: Scores
    validation_scores: Scores | None
    metrics: Metrics
    config: Mapping[str, Any] | None
    manifest: Manifest | None = None

    @property
    def name(self) -> str:
        """The folder's name, for tables and messages."""
        return self.folder.name or str(self.folder.resolve().name)


def read_run(folder: str | Path) -> Run:
    """Read a run folder; only ``scores.csv`` has to be there.

    Raises:
        ScoresError: the folder or its scores are missing, or a file of it is not usable.
    """
    folder = Path(folder)
    if not (folder / "scores.csv").is_file():
        if (folder / UNFINISHED).is_dir():
            raise ScoresError(
                f"{str(folder)!r} is not a run yet: there is no 'scores.csv' in it, since its training was interrupted "
                "or is still at work. The command that began it goes on with it."
            )
        what = "no 'scores.csv' in it" if folder.is_dir() else "no such folder"
        raise ScoresError(f"{str(folder)!r} is not a run: there is {what}. Name the folder that holds the file.")
    scores = Scores.read(folder / "scores.csv")
    validation_path = folder / "validation_scores.csv"
    validation = Scores.read(validation_path) if validation_path.is_file() else None
    if validation is not None and validation.classes != scores.classes:
        raise ScoresError(
            f"{str(folder)!r}: 'scores.csv' has the classes {list(scores.classes)} and 'validation_scores.csv' "
            f"{list(validation.classes)}."
        )
    config = read_config(folder / "config.yaml")
    return Run(folder, scores, validation, evaluate(scores), config, _read_manifest(folder / "manifest.jsonl", scores))


def write_run(
    folder: str | Path,
    scores: Scores,
    validation_scores: Scores | None = None,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """Write the score files of a run, and its metrics and configuration.

    ``scores.csv`` is taken away first and written last, so that a folder never shows one run's scores beside
    another's files, wherever a kill strikes. Other files in the folder stay.

    Args:
        folder: the run folder; made when missing.
        scores: test utterances of every fold.
        validation_scores: validation utterances of every fold.
        config: how the run was made, in plain values.

    Returns:
        The run, as `read_run` gives it.
    """
    folder = Path(folder)
    result = evaluate(scores)
    text = None if config is None else yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    for name in ("scores.csv", "validation_scores.csv", "metrics.json", "config.yaml"):
        (folder / name).unlink(missing_ok=True)
    if text is not None:
        write_atomically(folder / "config.yaml", text.encode("utf-8"))
    if validation_scores is not None:
        validation_scores.write(folder / "validation_scores.csv")
    write_json(folder / "metrics.json", result)
    scores.write(folder / "scores.csv")
    return Run(folder, scores, validation_scores, result, config)


def _read_manifest(path: Path, scores: Scores) -> Manifest | None:
    if not path.is_file():
        return None
    try:
        manifest = Manifest.read(path)
    except ManifestError as error:
        raise ScoresError(f"{error} Make the run again, or remove the file.") from None
    lacking = sorted(set(scores.ids) - set(manifest.ids))
    if lacking:
        raise ScoresError(
            f"{str(path)!r} lacks {len(lacking)} of the utterances that are scored, such as {lacking[0]!r}. It may be "
            "another run's: make the run again, or remove the file."
        )
    return manifest


def read_config(path: Path) -> Mapping[str, Any] | None:
    """Return what a run's ``config.yaml`` says; None where there is no such file.

    Raises:
        ScoresError: it is not usable.
    """
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(read_plain(path).decode("utf-8"))
    except (OSError, yaml.YAMLError, *_UNREADABLE) as error:
        raise ScoresError(f"{str(path)!r} cannot be read: {error}. Make the run again, or remove the file.") from None
    if content is not None and not isinstance(content, dict):
        raise ScoresError(f"{str(path)!r} must hold settings by name, got {type(content).__name__}.")
    if not _is_small(content):
        raise ScoresError(
            f"{str(path)!r} refers to itself, or unfolds to far more than a run's settings. Make the run again, or "
            "remove the file."
        )
    return content or {}


def _is_small(content: Any) -> bool:
    """Return whether a value can be written out: YAML may say one thing many times, each in another many times."""
    waiting = [(content, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES or depth > _DEEPEST:
            return False
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple | set):
            waiting += [(item, depth + 1) for item in value]
    return True
