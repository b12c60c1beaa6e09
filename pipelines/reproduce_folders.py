"""What lies in the folders of a reproduction: the runs wanted, others, or nothing yet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from featcache.errors import ConfigError, FeatcacheError
from heads.runs import read_run
from pipelines.config import TrainConfig, recorded_config
from pipelines.paper import FusionOf
from pipelines.probe import SPEAKER
from pipelines.reporting.differences import differences
from pipelines.run_folders import UNFINISHED, check_folder, existing_run

if TYPE_CHECKING:
    from pipelines.reproduce_rows import Probe, Training

State = Literal["to do", "begun", "done", "another"]
"""Of a run's folder: empty, not finished, holding the run wanted, or another."""

_SHOWN = 3


def state_of(folder: Path, differing: Callable[[], Sequence[str]]) -> State:
    """Return what lies in a run folder; whether inputs changed since is seen when it is trained.

    Args:
        folder: the run folder.
        differing: returns in what the run there differs from the one wanted; called where there is one.
    """
    if not (folder / "scores.csv").is_file():
        return "begun" if (folder / UNFINISHED).is_dir() else "to do"
    try:
        return "another" if differing() else "done"
    except FeatcacheError:
        return "another"


def other_training(folder: Path, config: TrainConfig) -> list[str]:
    """Return in what a training differs from the one that lies in its folder."""
    found = recorded_config(read_run(folder).config or {})
    if found.digest() == config.digest():
        return []
    return differences(config, found) or [f"streams {', '.join(config.streams)} ({', '.join(found.streams)})"]


def other_probe(folder: Path, probe: "Probe") -> list[str]:
    """Return in what a probe differs from the one that lies in its folder; the record has folds and label in words."""
    record, config = read_run(folder).config or {}, probe.config
    names = ["streams", "label", "folds", "validation_by", "allow", "drop_unlabelled"]
    names += [] if probe.of.target == SPEAKER else ["validation"]  # elsewhere the run's folds bring it
    found = replace(recorded_config(record), **{name: getattr(config, name) for name in names})
    pairs = {
        "target": (probe.of.target, record.get("target")),
        "of run": (probe.of.run, PurePath(str(_entry(record, "of_run", "folder"))).name),
        "phones": (", ".join(config.streams), _entry(record, "streams", "phones") or ""),
    }
    lines = [f"{name} {ours} ({theirs})" for name, (ours, theirs) in pairs.items() if ours != theirs]
    return lines + differences(config, found)


def _entry(record: Mapping[str, Any], name: str, key: str) -> Any:
    """Return an entry of a section of a record; None where there is none."""
    section = record.get(name)
    return section.get(key) if isinstance(section, Mapping) else None


def _other_fusion(folder: Path) -> list[str]:
    """Return what lies in the folder of a fusion and is none; another fusion is made anew in a moment."""
    head = (read_run(folder).config or {}).get("head")
    return [] if head == "fusion" else [f"head fusion ({head})"]


def fusion_state(folder: Path) -> State:
    """Return what lies in the folder of a fusion."""
    return state_of(folder, lambda: _other_fusion(folder))


def check_folders(
    trainings: Mapping[str, "Training"],
    probes: Mapping[str, "Probe"],
    fusions: Mapping[str, FusionOf],
    out: Path,
    overwrite: bool,
) -> None:
    """Refuse folders that hold something else than what would be written there.

    Raises:
        ConfigError: some do; says in what the first differs.
    """
    for key in (*trainings, *probes, *fusions):
        check_folder(out / key)
    if overwrite:
        return
    states = {key: one.state for key, one in trainings.items()} | {key: one.state for key, one in probes.items()}
    for key, state in states.items():
        if state in ("to do", "begun"):
            existing_run(out / key, "", overwrite)  # refuses files that are not of a run
    states |= {key: fusion_state(out / key) for key in fusions}
    others = [key for key, state in states.items() if state == "another"]
    if not others:
        return
    first = others[0]
    try:
        if first in trainings:
            lines = other_training(out / first, trainings[first].config)
        else:
            lines = other_probe(out / first, probes[first]) if first in probes else _other_fusion(out / first)
        told = f"it differs in {'; '.join(lines[:_SHOWN])}"
    except FeatcacheError as error:
        told = str(error)
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    raise ConfigError(
        f"Other runs lie in {str(out)!r}: {', '.join(others[:_SHOWN])}{more}. Of {first}: {told}. Give another --out, "
        "or --overwrite to replace them."
    )
