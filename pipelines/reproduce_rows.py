"""What each run and each probe of a paper is in the form asked for: its preset, its configuration, what it reads."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from featcache.cache import Cache
from featcache.errors import ConfigError
from featcache.settings import build
from pipelines.config import ExtractConfig, TrainConfig, merge, parse_overrides, read_preset, train_config
from pipelines.paper import Paper, ProbeOf, RunOf
from pipelines.probe import COLUMNS_OF, PHONE, SPEAKER
from pipelines.reproduce_folders import State, other_probe, other_training, state_of
from pipelines.resolve import resolve_streams
from pipelines.run_folders import ENCODERS
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


def kind_of(stream: str) -> str:
    """Return the kind of a stream's full name; a family's name is a kind of its own."""
    return stream if run_of(stream) else stream.rpartition("-")[0]


def run_of(stream: str) -> str:
    """Return the run whose encoders made a stream such as ``hidden_states@KEY``; empty for others."""
    return stream.partition("@")[2]


def form_of(of: RunOf, options: Options) -> str | None:
    """Return the preset of the form that is run; None where a run has no such form."""
    return {"": of.preset, "demo": of.demo, "laptop": of.laptop}[options.form]


def check_settings(settings: Sequence[str]) -> None:
    """Refuse settings that would make other tables than the paper's, or that an option is for."""
    stray = [name for name in parse_overrides(settings) if name not in _SETTABLE]
    if stray:
        raise ConfigError(
            f"--set {stray[0]} is not for reproduce, where --set takes fit.NAME, settings.NAME, validation, "
            f"validation_by and drop_unlabelled. {_INSTEAD.get(stray[0], 'Leave it out.')}"
        )


def extractions(paper: Paper, options: Options) -> list[ExtractConfig]:
    """Return what the runs of a paper read of the corpus, in the form that is run; each extraction once.

    Raises:
        ConfigError: settings of a run that do not fit, so that nothing is extracted for what cannot train.
    """
    check_settings(options.settings)
    for key, of in paper.runs.items():
        if form_of(of, options) is not None:
            _configured(paper, key, of, options)
    found: list[ExtractConfig] = []
    for of in paper.runs.values():
        name = form_of(of, options)
        section = dict((read_preset(paper.preset(name)) if name else {}).get("extract") or {})
        streams = {stream: one or {} for stream, one in (section.pop("streams", None) or {}).items()}
        streams = {stream: one for stream, one in streams.items() if not run_of(stream)}
        if streams:
            values = {**section, "streams": streams, "device": options.device}
            config = build(ExtractConfig, values, f"extract of {name}")
            found += [config] if config not in found else []
    return found


def training_of(paper: Paper, key: str, of: RunOf, cache: Cache, out: Path, options: Options) -> Training:
    """Return what is trained for a run that has the form asked for.

    Raises:
        CacheError: the cache lacks a stream.
        ConfigError: settings that do not fit, or a family of a run that the paper lacks.
    """
    name = form_of(of, options) or of.preset
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


def probe_of(paper: Paper, key: str, of: ProbeOf, training: Training, out: Path, options: Options) -> Probe:
    """Return what is trained for a probe on the codes of a training."""
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


def columns_of(target: str) -> tuple[str, ...]:
    """Return the columns that may hold a target; none for what is no column."""
    return () if target in (SPEAKER, PHONE) else COLUMNS_OF.get(target, (target,))


def _configured(paper: Paper, key: str, of: RunOf, options: Options) -> TrainConfig:
    """Return what a run trains, its streams as the preset names them; settings of its head are checked.

    Raises:
        ConfigError: settings that do not fit; names the run.
    """
    preset = _with(read_preset(paper.preset(form_of(of, options) or of.preset)), of.train)
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


def _without(preset: Mapping[str, Any], streams: Collection[str]) -> dict[str, Any]:
    """Return a preset that reads no streams of other runs."""
    train = dict(preset.get("train") or {})
    return {**preset, "train": {**train, "streams": [one for one in train.get("streams") or () if one not in streams]}}


def _with(preset: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    return {**preset, "train": merge(preset.get("train") or {}, train)}
