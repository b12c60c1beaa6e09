"""What reproducing a paper takes: which rows, from which streams, in which form, and what is there already.

All that can be refused is refused here, before anything trains: presets and settings, streams that the cache lacks,
utterances that a stream lacks, folds that would leak, folders that hold something else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from featcache.cache import Cache
from featcache.cache import open as open_cache
from featcache.errors import CacheError, ConfigError, FeatcacheError
from featcache.manifest import Manifest
from heads.folds import FoldSet, make_folds
from heads.runs import read_run
from pipelines import show
from pipelines.config import TrainConfig, merge, read_preset, recorded_config, train_config
from pipelines.paper import FusionOf, Paper, ProbeOf, RunOf
from pipelines.probe import COLUMNS_OF, PHONE, SPEAKER
from pipelines.reporting.differences import differences
from pipelines.resolve import resolve_streams
from pipelines.run_folders import check_folder
from pipelines.train_heads import load_head

State = Literal["to do", "begun", "done", "another"]

_SHOWN = 3


@dataclass(frozen=True)
class Options:
    """How a paper is reproduced.

    Attributes:
        demo: run the small forms, where a row has one.
        folds: as `TrainConfig.folds`; None is the presets'.
        allow: names of protocol errors to let pass.
        streams: full names of streams that are taken for their kind, whatever a preset states.
        settings: ``KEY=VALUE`` texts for every training, such as ``fit.steps=500``.
        missing: ``error``, or ``drop`` the utterances that a stream lacks from every row.
        skip_missing: leave rows out whose streams the cache lacks, instead of refusing.
        overwrite: replace other runs that lie in the folder.
        jobs: processes at a time; None is chosen by the machine.
        device: where training runs.
    """

    demo: bool = False
    folds: str | None = None
    allow: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    missing: Literal["error", "drop"] = "error"
    skip_missing: bool = False
    overwrite: bool = False
    jobs: int | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Training:
    """A run to train.

    Attributes:
        key: its name in the paper's file, and of its folder.
        preset: the preset that is run.
        config: what is trained, its streams by full names.
        published: what the paper's own preset would train, its streams by kind.
        published_preset: that preset.
        state: what lies in its folder.
    """

    key: str
    preset: str
    config: TrainConfig
    published: TrainConfig
    published_preset: Mapping[str, Any]
    state: State


@dataclass(frozen=True)
class Probe:
    """A probe to train on the codes of a run."""

    key: str
    of: ProbeOf
    preset: str
    config: TrainConfig
    published: TrainConfig


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        paper: the paper.
        manifest: the utterances that every row is measured on.
        num_dropped: utterances left out because a stream lacks them.
        cache: the cache's folder.
        out: the folder of all that is written.
        trainings: by key.
        probes: by key.
        fusions: by key.
        not_run: key to reason, of what is left out.
        missing: sentence to the keys that the cache lacks something for.
        folds: the folds of each training, by key.
        presets: the preset of each of the paper's runs, by key.
    """

    paper: Paper
    manifest: Manifest
    num_dropped: int
    cache: Path
    out: Path
    trainings: Mapping[str, Training]
    probes: Mapping[str, Probe]
    fusions: Mapping[str, FusionOf]
    not_run: Mapping[str, str]
    missing: Mapping[str, Sequence[str]]
    folds: Mapping[str, FoldSet]
    presets: Mapping[str, str]


def make_plan(paper: Paper, manifest: Manifest, cache: Path, out: Path, options: Options) -> Plan:
    """Return what reproducing a paper takes; nothing is written.

    Args:
        paper: the paper.
        manifest: labelled utterances.
        cache: the cache's folder.
        out: folder of all that would be written.
        options: how.

    Raises:
        ConfigError: settings that do not fit, or a folder below `out` holds another run.
        CacheError: there is no cache.
        UnknownNameError: a preset that does not exist.
        ProtocolError: folds that would leak, or labels that are missing.
    """
    check_folder(out)
    opened = open_cache(cache)
    presets = {key: of.demo if options.demo else of.preset for key, of in paper.runs.items()}
    trainings, not_run, missing = _trainings(paper, opened, out, options)
    lacking = _lacking(opened, manifest, trainings)
    num_dropped = 0
    if options.missing == "drop":
        left_out = {item for ids in lacking.values() for item in ids}
        num_dropped = len(left_out)
        manifest = manifest.select(item for item in manifest.ids if item not in left_out)
        if not len(manifest):
            raise CacheError(f"Every utterance is lacking in one of {', '.join(lacking)}: nothing is left to train on.")
    else:
        for name, ids in lacking.items():
            keys = [key for key, training in trainings.items() if name in training.config.streams]
            missing[_uncovered(opened, name, ids, len(manifest))] = keys
    short = {key: sentence for sentence, keys in missing.items() for key in keys}
    trainings = {key: training for key, training in trainings.items() if key not in short}
    not_run |= short
    _check_trainings(trainings, out, options.overwrite)
    folds = _folds(manifest, trainings)
    probes = _probes(paper, manifest, trainings, not_run, options)
    fusions = _fusions(paper, trainings, not_run)
    return Plan(
        paper, manifest, num_dropped, cache, out, trainings, probes, fusions, not_run, missing, folds,
        {key: name for key, name in presets.items() if name is not None},
    )  # fmt: skip


def _trainings(
    paper: Paper, cache: Cache, out: Path, options: Options
) -> tuple[dict[str, Training], dict[str, str], dict[str, list[str]]]:
    """Return the trainings, why others have no form, and what the cache lacks with the keys that need it."""
    trainings: dict[str, Training] = {}
    not_run: dict[str, str] = {}
    missing: dict[str, list[str]] = {}
    for key, of in paper.runs.items():
        if options.demo and of.demo is None:
            not_run[key] = f"needs {_checkpoints(read_preset(paper.preset(of.preset)), of.preset)}, no demo form"
            continue
        try:
            trainings[key] = _training(paper, key, of, cache, out, options)
        except CacheError as error:
            missing.setdefault(str(error), []).append(key)
    return trainings, not_run, missing


def _probes(
    paper: Paper, manifest: Manifest, trainings: Mapping[str, Training], not_run: dict[str, str], options: Options
) -> dict[str, Probe]:
    """Return the probes; why others are left out goes into `not_run`."""
    probes = {}
    for key, of in paper.probes.items():
        columns = _columns(of.target)
        if of.run not in trainings:
            not_run[key] = f"{of.run} is left out"
        elif options.demo and of.demo is None:
            not_run[key] = "no demo form"
        elif columns and not any(utterance.column(column) for utterance in manifest for column in columns):
            not_run[key] = f"no utterance has the column {' or '.join(columns)}"
        else:
            probes[key] = _probe(paper, key, of, trainings[of.run], options)
    return probes


def _fusions(paper: Paper, trainings: Mapping[str, Training], not_run: dict[str, str]) -> dict[str, FusionOf]:
    """Return the fusions; why others are left out goes into `not_run`."""
    fusions = {}
    for key, fusion in paper.fusions.items():
        absent = [run for run in fusion.runs if run not in trainings]
        if absent:
            not_run[key] = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} left out"
        else:
            fusions[key] = fusion
    return fusions


def refusal(plan: Plan) -> CacheError:
    """Return what to say where rows lack something and are not to be left out."""
    rows = [f"  {', '.join(keys)}: {sentence}" for sentence, keys in plan.missing.items()]
    count = len({key for keys in plan.missing.values() for key in keys})
    presets = dict.fromkeys(plan.presets[key] for keys in plan.missing.values() for key in keys)
    rows += [f"  featcache extract MANIFEST --cache {plan.cache} --preset {preset}" for preset in presets]
    rows.insert(len(plan.missing), "What makes all that they read:")
    return CacheError(
        f"{count} of the {len(plan.paper.runs)} trainings of {plan.paper.name} cannot run:\n" + "\n".join(rows) + "\n"
        "Or leave these rows out with --skip-missing; --demo runs the small forms."
    )


def describe(plan: Plan) -> str:
    """Return a plan in words, for a dry run."""
    rows = [("row", "preset", "steps", "batch", "folds", "state", "reads")]
    for key, training in plan.trainings.items():
        fit, folds = training.config.fit, plan.folds[key]
        rows.append(
            (key, training.preset, f"{fit.steps:,}", str(fit.batch_size), f"{folds.kind} ({len(folds)})",
             training.state, ", ".join(training.config.streams))
        )  # fmt: skip
    for key, probe in plan.probes.items():
        fit = probe.config.fit
        rows.append(
            (key, probe.preset, f"{fit.steps:,}", str(fit.batch_size), "its own", _present(plan.out / key),
             f"the codes of {probe.of.run}, for {probe.of.target}")
        )  # fmt: skip
    for key, fusion in plan.fusions.items():
        rows.append(
            (key, "fusion", "", "", "", _present(plan.out / key), f"{' + '.join(fusion.runs)}: {fusion.weights}")
        )
    used = {run for table in plan.paper.tables for row in table.rows if (run := row.run)}
    lines = [show.table(rows), ""]
    lines += [f"{key}: not run: {reason}" for key, reason in plan.not_run.items() if key in used | set(plan.paper.runs)]
    if plan.num_dropped:
        lines.append(f"{plan.num_dropped} utterances are left out of every row: a stream lacks them.")
    steps = sum(len(plan.folds[key]) * training.config.fit.steps for key, training in plan.trainings.items())
    lines.append(f"{len(plan.manifest)} utterances, trainings: {len(plan.trainings)}, {steps:,} steps in all.")
    return "\n".join(lines)


def kind_of(stream: str) -> str:
    """Return the kind of a stream's full name."""
    return stream.rpartition("-")[0]


def _present(folder: Path) -> str:
    return "there" if (folder / "scores.csv").is_file() else "to do"


def _training(paper: Paper, key: str, of: RunOf, cache: Cache, out: Path, options: Options) -> Training:
    name = of.demo if options.demo and of.demo is not None else of.preset
    preset = _with(read_preset(paper.preset(name)), of.train)
    published_preset = _with(read_preset(paper.preset(of.preset)), of.train)
    given = {"folds": options.folds, "allow": options.allow, "device": options.device}
    config = train_config(preset, given, options.settings)
    load_head(config)  # its settings are checked before anything trains
    published = train_config(published_preset, {}, [])
    resolved = resolve_streams(cache, preset, options.streams)
    config = replace(config, streams=tuple(resolved[kind] for kind in config.streams))
    return Training(key, name, config, published, published_preset, _state(out / key, config))


def _columns(target: str) -> tuple[str, ...]:
    """Return the columns that may hold a target; none for what is no column."""
    return () if target in (SPEAKER, PHONE) else COLUMNS_OF.get(target, (target,))


def _probe(paper: Paper, key: str, of: ProbeOf, training: Training, options: Options) -> Probe:
    name = of.demo if options.demo and of.demo is not None else of.preset
    config = train_config(read_preset(paper.preset(name)), {"device": options.device}, [])
    if of.target == PHONE:  # the very phones that the run was trained with
        phones = tuple(stream for stream in training.config.streams if kind_of(stream) == "phones")
        config = replace(config, streams=phones)
    published = train_config(read_preset(paper.preset(of.preset)), {}, [])
    return Probe(key, of, name, config, published)


def _with(preset: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    return {**preset, "train": merge(preset.get("train") or {}, train)}


def _checkpoints(preset: Mapping[str, Any], name: str) -> str:
    """Return the checkpoints that a preset's streams need, or its name where they need none."""
    streams = (preset.get("extract") or {}).get("streams") or {}
    named = [str(settings["checkpoint"]) for settings in streams.values() if settings and "checkpoint" in settings]
    return " and ".join(named) or f"the preset {name}"


def _state(folder: Path, config: TrainConfig) -> State:
    """Return what lies in a run folder; whether inputs changed since is seen when it is trained."""
    if not (folder / "scores.csv").is_file():
        return "begun" if (folder / ".unfinished").is_dir() else "to do"
    try:
        found = recorded_config(read_run(folder).config or {})
    except FeatcacheError:
        return "another"
    return "done" if found.digest() == config.digest() else "another"


def _check_trainings(trainings: Mapping[str, Training], out: Path, overwrite: bool) -> None:
    others = [key for key, training in trainings.items() if training.state == "another"]
    if not others or overwrite:
        return
    first = out / others[0]
    told = ""
    try:
        found = recorded_config(read_run(first).config or {})
        lines = differences(trainings[others[0]].config, found)
        told = f" (it differs in {'; '.join(lines[:_SHOWN])})" if lines else ""
    except FeatcacheError as error:
        told = f" ({error})"
    raise ConfigError(
        f"{len(others)} folders in {str(out)!r} hold other runs, such as {str(first)!r}{told}. Give another --out, or "
        "--overwrite to replace them."
    )


def _lacking(cache: Cache, manifest: Manifest, trainings: Mapping[str, Training]) -> dict[str, list[str]]:
    """Return the utterances that each stream lacks, of streams that lack any."""
    names = dict.fromkeys(name for training in trainings.values() for name in training.config.streams)
    found = {}
    for name in names:
        stream = cache[name]
        lacking = [utterance.id for utterance in manifest if utterance.id not in stream]
        if lacking:
            found[name] = lacking
    return found


def _uncovered(cache: Cache, name: str, ids: Sequence[str], number: int) -> str:
    reason = cache[name].failures.get(ids[0], "never extracted")
    return (
        f"{name} lacks {len(ids)} of {number} utterances, such as {ids[0]!r} ({reason}). See 'featcache coverage "
        f"{cache.path} MANIFEST'; run its extract again, or leave them out of every row with --missing drop."
    )


def _folds(manifest: Manifest, trainings: Mapping[str, Training]) -> dict[str, FoldSet]:
    """Return the folds of each training; the same ones are made once."""
    made: dict[tuple[Any, ...], FoldSet] = {}
    found = {}
    for key, training in trainings.items():
        config = training.config
        what = (config.folds, config.validation, config.validation_by, config.fit.seed, config.allow,
                config.drop_unlabelled)  # fmt: skip
        if what not in made:
            made[what] = make_folds(
                manifest, config.folds, validation=config.validation, validation_by=config.validation_by,
                seed=config.fit.seed, allow=config.allow, drop_unlabelled=config.drop_unlabelled,
            )  # fmt: skip
        found[key] = made[what]
    return found
