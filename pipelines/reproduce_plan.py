"""What reproducing a paper takes: which rows, from which streams, in which form, and what is there already.

All that can be refused is refused here, before anything trains: presets and settings, streams that the cache lacks,
utterances that a stream lacks, folds that would leak, folders that hold something else.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from featcache.cache import Cache
from featcache.cache import open as open_cache
from featcache.errors import CacheError, ConfigError, ProtocolError, UnknownNameError
from featcache.manifest import Manifest, Utterance
from featcache.settings import build
from heads.folds import FoldSet, make_folds
from pipelines.config import ExtractConfig, TrainConfig, merge, parse_overrides, read_preset, train_config
from pipelines.paper import FusionOf, Paper, ProbeOf, RunOf
from pipelines.prepare import learnable
from pipelines.probe import COLUMNS_OF, PHONE, SPEAKER
from pipelines.reproduce_folders import State, check_folders, other_probe, other_training, state_of
from pipelines.resolve import resolve_streams
from pipelines.run_folders import ENCODERS, check_folder
from pipelines.train_heads import load_head

_SETTABLE = ("fit", "settings", "validation", "validation_by", "drop_unlabelled")
_INSTEAD = {
    "streams": "Name one with --stream.",
    "folds": "Say it with --folds.",
    "allow": "Say it with --allow.",
    "missing": "Say it with --missing.",
    "device": "Say it with --device.",
    "label": "What is learnt is the paper's; train-heads learns another column.",
    "head": "Which heads there are is the paper's; train-heads trains another.",
}


@dataclass(frozen=True)
class Options:
    """How a paper is reproduced.

    Attributes:
        demo: run the small forms, of the rows that have one.
        laptop: run the forms that need no download and whose weights are real, of the rows that have one.
        folds: as `TrainConfig.folds`; None is the presets'.
        allow: names of protocol errors to let pass.
        streams: full names of streams that are taken where several fit a row, or none does.
        settings: ``KEY=VALUE`` texts for every training, such as ``fit.steps=500``; of probes the seed alone.
        missing: ``error``, or ``drop`` the utterances that a stream lacks from every row.
        drop_unlabelled: leave utterances without a label out of every row, instead of refusing.
        skip_missing: leave rows out whose streams the cache lacks, instead of refusing.
        overwrite: replace other runs that lie in the folder.
        jobs: processes at a time; None is chosen by the machine.
        device: where training runs.
    """

    demo: bool = False
    laptop: bool = False
    folds: str | None = None
    allow: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    missing: Literal["error", "drop"] = "error"
    drop_unlabelled: bool = False
    skip_missing: bool = False
    overwrite: bool = False
    jobs: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.demo and self.laptop:
            raise ConfigError("--demo and --laptop are two forms of the same rows. Give one of them.")

    @property
    def form(self) -> Literal["", "demo", "laptop"]:
        """Which form is run; empty is the paper's."""
        return "demo" if self.demo else "laptop" if self.laptop else ""


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
        families: name in the configuration to what is extracted by the encoders of another run, for streams such as
            ``hidden_states@KEY``.
    """

    key: str
    preset: str
    config: TrainConfig
    published: TrainConfig
    published_preset: Mapping[str, Any]
    state: State
    families: Mapping[str, ExtractConfig] = field(default_factory=dict)

    @property
    def after(self) -> tuple[str, ...]:
        """Keys of the runs that are to be done before."""
        start = (Path(self.config.start).name,) if self.config.start else ()
        return tuple(dict.fromkeys((*map(run_of, self.families), *start)))


@dataclass(frozen=True)
class Probe:
    """A probe to train on the codes of a run.

    Attributes:
        key: its name in the paper's file, and of its folder.
        of: what is asked, of which run.
        preset: the preset that is run.
        config: how it is trained.
        published: how the paper's own preset would train it.
        state: what lies in its folder.
    """

    key: str
    of: ProbeOf
    preset: str
    config: TrainConfig
    published: TrainConfig
    state: State


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
        form: see :attr:`Options.form`.
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
    form: str = ""

    @property
    def num_unlabelled(self) -> int:
        """Utterances of the manifest that are left out because they have no label."""
        return max((folds.num_unlabelled for folds in self.folds.values()), default=0)


def make_plan(paper: Paper, manifest: Manifest, cache: Path, out: Path, options: Options) -> Plan:
    """Return what reproducing a paper takes; nothing is written.

    Args:
        paper: the paper.
        manifest: labelled utterances.
        cache: the cache's folder.
        out: folder of all that would be written.
        options: how.

    Raises:
        ConfigError: settings that do not fit, a stream that no row reads, or a folder below `out` holds something else.
        CacheError: there is no cache.
        UnknownNameError: a preset or a stream that does not exist.
        ProtocolError: folds that would leak, or labels that are missing.
    """
    check_folder(out)
    _check_settings(options.settings)
    opened = open_cache(cache)
    presets = {key: _form(of, options) for key, of in paper.runs.items()}
    _check_streams(opened, options.streams, [read_preset(paper.preset(name)) for name in presets.values() if name])
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
    not_run |= {key: sentence for sentence, keys in missing.items() for key in keys}
    for key, training in trainings.items():
        votes = training.config.votes
        if votes and not any(utterance.column(votes) for utterance in manifest):
            not_run[key] = f"no utterance has the column {votes}"
    trainings = _possible(trainings, not_run)
    _check_families(trainings)
    probes = _probes(paper, manifest, trainings, not_run, out, options)
    fusions = _fusions(paper, trainings, not_run)
    check_folders(trainings, probes, fusions, out, options.overwrite)
    folds = _folds(manifest, trainings)
    return Plan(
        paper, manifest, num_dropped, cache, out, trainings, probes, fusions, not_run, missing, folds,
        {key: name for key, name in presets.items() if name is not None}, options.form,
    )  # fmt: skip


def _trainings(
    paper: Paper, cache: Cache, out: Path, options: Options
) -> tuple[dict[str, Training], dict[str, str], dict[str, list[str]]]:
    """Return the trainings, why others have no form, and what the cache lacks with the keys that need it."""
    trainings: dict[str, Training] = {}
    not_run: dict[str, str] = {}
    missing: dict[str, list[str]] = {}
    for key, of in paper.runs.items():
        if _form(of, options) is None:
            needed = _checkpoints(read_preset(paper.preset(of.preset)), of.preset)
            not_run[key] = f"needs {needed}, no {options.form} form"
            continue
        try:
            trainings[key] = _training(paper, key, of, cache, out, options)
        except CacheError as error:
            missing.setdefault(str(error), []).append(key)
    return trainings, not_run, missing


def _form(of: RunOf, options: Options) -> str | None:
    """Return the preset of the form that is run; None where a run has no such form."""
    return {"": of.preset, "demo": of.demo, "laptop": of.laptop}[options.form]


def _possible(trainings: Mapping[str, Training], not_run: dict[str, str]) -> dict[str, Training]:
    """Return the trainings whose own inputs there will be, each after those that it needs; others go to `not_run`."""
    left = {key: training for key, training in trainings.items() if key not in not_run}
    possible: dict[str, Training] = {}
    while left:
        ready = {key: one for key, one in left.items() if all(before in possible for before in one.after)}
        if not ready:
            break
        possible |= ready
        left = {key: one for key, one in left.items() if key not in ready}
    for key, training in left.items():
        lacking = [before for before in training.after if before not in possible]
        not_run[key] = f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} left out"
    return possible


def _check_families(trainings: Mapping[str, Training]) -> None:
    """Refuse runs that want one stream of another run's encoders with several settings."""
    seen: dict[str, tuple[str, ExtractConfig]] = {}
    for key, training in trainings.items():
        for stream, config in training.families.items():
            other, wanted = seen.setdefault(stream, (key, config))
            if wanted != config:
                raise ConfigError(f"{other} and {key} read {stream!r} with different settings of the preset's extract.")


def _probes(
    paper: Paper,
    manifest: Manifest,
    trainings: Mapping[str, Training],
    not_run: dict[str, str],
    out: Path,
    options: Options,
) -> dict[str, Probe]:
    """Return the probes; why others are left out goes into `not_run`."""
    probes = {}
    for key, of in paper.probes.items():
        columns = _columns(of.target)
        if of.run not in trainings:
            not_run[key] = f"{of.run} is left out"
        elif options.form and of.demo is None:
            not_run[key] = f"no {options.form} form"
        elif columns and not any(utterance.column(column) for utterance in manifest for column in columns):
            not_run[key] = f"no utterance has the column {' or '.join(columns)}"
        else:
            probes[key] = _probe(paper, key, of, trainings[of.run], out, options)
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


def kind_of(stream: str) -> str:
    """Return the kind of a stream's full name; a family's name is a kind of its own."""
    return stream if run_of(stream) else stream.rpartition("-")[0]


def _check_settings(settings: Sequence[str]) -> None:
    """Refuse settings that would make other tables than the paper's, or that an option is for."""
    stray = [name for name in parse_overrides(settings) if name not in _SETTABLE]
    if stray:
        raise ConfigError(
            f"--set {stray[0]} is not for reproduce, where --set takes fit.NAME, settings.NAME, validation, "
            f"validation_by and drop_unlabelled. {_INSTEAD.get(stray[0], 'Leave it out.')}"
        )


def _check_streams(cache: Cache, names: Sequence[str], presets: Sequence[Mapping[str, Any]]) -> None:
    """Refuse streams that the cache lacks, or that no row reads."""
    read = dict.fromkeys(
        str(kind)
        for preset in presets
        for kind in (preset.get("train") or {}).get("streams") or ()
        if not run_of(str(kind))
    )
    for name in names:
        if name not in list(cache):
            raise UnknownNameError(f"stream in the cache {str(cache.path)!r} for --stream", name, list(cache))
        if kind_of(name) not in read:
            raise ConfigError(f"--stream {name}: no row reads a stream of that kind. Rows read: {', '.join(read)}.")


def _training(paper: Paper, key: str, of: RunOf, cache: Cache, out: Path, options: Options) -> Training:
    name = _form(of, options) or of.preset
    preset = _with(read_preset(paper.preset(name)), of.train)
    published_preset = _with(read_preset(paper.preset(of.preset)), of.train)
    config = _configured(paper, key, of, options)
    published = train_config(published_preset, {"folds": of.folds or None}, [])
    families = {stream: _family(paper, key, stream, preset, out) for stream in config.streams if run_of(stream)}
    resolved = resolve_streams(cache, _without(preset, families), options.streams)
    config = replace(
        config,
        streams=tuple(resolved.get(stream, stream) for stream in config.streams),
        start=str(out / of.start) if of.start else "",
    )
    state = state_of(out / key, lambda: other_training(out / key, config))
    return Training(key, name, config, published, published_preset, state, families)


def _configured(paper: Paper, key: str, of: RunOf, options: Options) -> TrainConfig:
    """Return what a run trains, its streams as the preset names them; settings of its head are checked.

    Raises:
        ConfigError: settings that do not fit; names the run.
    """
    preset = _with(read_preset(paper.preset(_form(of, options) or of.preset)), of.train)
    given = {
        "folds": _folds_of(of, options), "allow": options.allow, "device": options.device,
        "drop_unlabelled": options.drop_unlabelled or None,
    }  # fmt: skip
    try:
        config = train_config(preset, given, options.settings)
        load_head(config)
    except ConfigError as error:
        raise ConfigError(f"{key} of {paper.name}: {error}") from None
    return config


def run_of(stream: str) -> str:
    """Return the run whose encoders made a stream such as ``hidden_states@KEY``; empty for others."""
    return stream.partition("@")[2]


def _folds_of(of: RunOf, options: Options) -> str | None:
    """Return a run's folds; those asked for, divided within where the run's are."""
    if of.folds and options.folds:
        within = of.folds.partition(":")[0] == "within"
        return f"within:{options.folds}" if within else options.folds
    return of.folds or options.folds


def _family(paper: Paper, key: str, stream: str, preset: Mapping[str, Any], out: Path) -> ExtractConfig:
    """Return what is extracted by the encoders of a run, as a preset states it for that stream, or for its kind.

    Raises:
        ConfigError: the paper has no such run.
    """
    kind, _, run = stream.partition("@")
    if run not in paper.runs:
        raise ConfigError(
            f"{key} of the paper {paper.name!r} reads {stream!r}, and there is no run {run!r} whose encoders could "
            f"make it. Runs: {', '.join(paper.runs)}."
        )
    section = dict(preset.get("extract") or {})
    stated = section.pop("streams", None) or {}
    settings = {**(stated.get(stream) or stated.get(kind) or {}), "checkpoint": str(out / run / ENCODERS)}
    return build(ExtractConfig, {**section, "streams": {kind: settings}}, f"extract of {key}")


def extractions(paper: Paper, options: Options) -> list[ExtractConfig]:
    """Return what the runs of a paper read of the corpus, in the form that is run; each extraction once.

    Raises:
        ConfigError: settings of a run that do not fit, so that nothing is extracted for what cannot train.
    """
    _check_settings(options.settings)
    for key, of in paper.runs.items():
        if _form(of, options) is not None:
            _configured(paper, key, of, options)
    found: list[ExtractConfig] = []
    for of in paper.runs.values():
        name = _form(of, options)
        section = dict((read_preset(paper.preset(name)) if name else {}).get("extract") or {})
        streams = {stream: one or {} for stream, one in (section.pop("streams", None) or {}).items()}
        streams = {stream: one for stream, one in streams.items() if not run_of(stream)}
        if streams:
            values = {**section, "streams": streams, "device": options.device}
            config = build(ExtractConfig, values, f"extract of {name}")
            found += [config] if config not in found else []
    return found


def _without(preset: Mapping[str, Any], streams: Collection[str]) -> dict[str, Any]:
    """Return a preset that reads no streams of other runs."""
    train = dict(preset.get("train") or {})
    return {**preset, "train": {**train, "streams": [one for one in train.get("streams") or () if one not in streams]}}


def _columns(target: str) -> tuple[str, ...]:
    """Return the columns that may hold a target; none for what is no column."""
    return () if target in (SPEAKER, PHONE) else COLUMNS_OF.get(target, (target,))


def _probe(paper: Paper, key: str, of: ProbeOf, training: Training, out: Path, options: Options) -> Probe:
    name = of.demo if options.form and of.demo is not None else of.preset
    fit = parse_overrides(options.settings).get("fit") or {}
    seed = {"fit": {"seed": fit["seed"]}} if "seed" in fit else {}
    config = train_config(_with(read_preset(paper.preset(name)), seed), {"device": options.device}, [])
    published = train_config(read_preset(paper.preset(of.preset)), {}, [])
    if of.target == PHONE:  # asked of one code, and the very phones that the run was trained with
        phones = tuple(stream for stream in training.config.streams if kind_of(stream) == "phones")
        config = replace(config, streams=phones, settings={"frames": 1, **config.settings})
        published = replace(published, settings={"frames": 1, **published.settings})
    probe = Probe(key, of, name, config, published, "to do")
    return replace(probe, state=state_of(out / key, lambda: other_probe(out / key, probe)))


def _with(preset: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    return {**preset, "train": merge(preset.get("train") or {}, train)}


def _checkpoints(preset: Mapping[str, Any], name: str) -> str:
    """Return the checkpoints that a preset's streams need, or its name where they need none."""
    streams = (preset.get("extract") or {}).get("streams") or {}
    named = [str(settings["checkpoint"]) for settings in streams.values() if settings and "checkpoint" in settings]
    return " and ".join(named) or f"the preset {name}"


def _lacking(cache: Cache, manifest: Manifest, trainings: Mapping[str, Training]) -> dict[str, list[str]]:
    """Return the utterances that each stream lacks, or failed on, of streams that lack any."""
    wanted: dict[str, dict[str, None]] = {}
    for training in trainings.values():
        config = training.config
        labelled = [one.id for one in learnable(manifest, config) if one.label or not config.drop_unlabelled]
        for name in (stream for stream in config.streams if stream not in training.families):
            wanted.setdefault(name, {}).update(dict.fromkeys(labelled))
    found = {}
    for name, ids in wanted.items():
        stream = cache[name]
        failed = stream.failures  # also of what is held for an earlier input
        lacking = [item for item in ids if item not in stream or item in failed]
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
        what = (config.label, config.folds, config.validation, config.validation_by, config.fit.seed, config.allow,
                config.drop_unlabelled, config.copies)  # fmt: skip
        if what not in made:
            corpus = learnable(manifest, config)
            _check_labels(corpus, config)
            made[what] = make_folds(
                corpus, config.folds, validation=config.validation, validation_by=config.validation_by,
                seed=config.fit.seed, allow=config.allow, drop_unlabelled=config.drop_unlabelled,
            )  # fmt: skip
        found[key] = made[what]
    return found


def _check_labels(corpus: Sequence[Utterance], config: TrainConfig) -> None:
    unlabelled = [utterance.id for utterance in corpus if not utterance.label]
    if unlabelled and not config.drop_unlabelled:
        raise ProtocolError(
            f"{len(unlabelled)} of {len(corpus)} utterances have no {config.label}, such as {unlabelled[0]!r}, so they "
            "can neither train nor be scored. Take them out of the manifest, or leave them out of every row with "
            "--drop-unlabelled."
        )
