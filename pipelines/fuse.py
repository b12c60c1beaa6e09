"""Fuse runs by fixed weights, and write the result as a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from featcache.errors import ConfigError
from heads.fusion import Space, fuse_runs
from heads.runs import Run, read_run, write_run
from pipelines.train_heads import TRAINING_FILES, check_folder


def run(
    folders: Sequence[Path],
    weights: str,
    out: Path,
    space: str = "prob",
    standardise: bool = False,
    overwrite: bool = False,
    on_message: Callable[[str], None] = lambda _: None,
) -> Run:
    """Fuse run folders.

    Args:
        folders: runs over the same utterances; a ``scores.csv`` is enough.
        weights: one a run, separated by commas.
        out: run folder to write.
        space: ``"prob"`` or ``"log"``.
        standardise: standardise each run's scores by its validation scores first.
        overwrite: replace another run in `out`.
        on_message: called with a sentence for each thing worth knowing.

    Raises:
        ConfigError: weights that are not numbers or not one a run, or `out` is a file or holds a run already.
        ScoresError: runs that do not fit together.
    """
    try:
        numbers = [float(text) for text in weights.split(",")]
    except ValueError:
        raise ConfigError(f"--weights takes numbers separated by commas, such as 0.6,1.0, got {weights!r}.") from None
    if space not in ("prob", "log"):
        raise ConfigError(f"There is no space {space!r}. Use prob or log.")
    check_folder(out)
    if (out / "scores.csv").exists() and not overwrite:
        raise ConfigError(f"{str(out)!r} holds a run already. Give another --out, or --overwrite to replace it.")
    runs = [read_run(folder) for folder in folders]
    chosen: Space = "log" if space == "log" else "prob"
    fused = fuse_runs(runs, numbers, space=chosen, standardise=standardise)
    if fused.validation_scores is None:
        on_message(f"No validation scores were fused: {fused.why_no_validation}")
    record = {
        "head": "fusion",
        "fused": [run.name for run in runs],
        "weights": numbers,
        "space": space,
        "standardise": standardise,
        "speaker_independent": all((run.config or {}).get("speaker_independent") for run in runs),
        "synthetic": any((run.config or {}).get("synthetic") for run in runs),
        "allowed_leaks": [leak for run in runs for leak in (run.config or {}).get("allowed_leaks", [])],
    }
    for name in TRAINING_FILES:  # of a training run that lay there
        (out / name).unlink(missing_ok=True)
    return write_run(out, fused.scores, fused.validation_scores, record)
