"""Typed run configuration: presets in YAML, options, dotted overrides, and a digest that names what was run.

A preset is a YAML file with the sections ``about``, ``extract`` and ``train``, and ``runs``: several trainings by
name, each stating what differs from ``train``. A preset states only what differs from the defaults. Later sources
win: defaults, preset, options, ``--set``.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from featcache.errors import ConfigError, UnknownNameError
from featcache.extract import Options
from featcache.files import canonical_json
from featcache.settings import build
from featcache.view import Place
from heads.fit_settings import FitSettings


@dataclass(frozen=True)
class ExtractConfig(Options):
    """What to extract, and how to compute and store it.

    Attributes:
        streams: stream to its settings, in the order they run.
    """

    streams: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, and how it is judged.

    Attributes:
        head: head plug-in.
        streams: streams it reads, by kind or full name.
        settings: settings of the head.
        fit: how it trains.
        folds: ``session``, ``speaker``, ``split``, ``column:NAME``, ``random:K`` or a file.
        validation: share of each training part that becomes validation, where the folds bring none.
        validation_by: cut validation by ``utterance`` or by whole ``speaker``.
        allow: names of protocol errors to let pass; the report shows them.
        missing: what to do with utterances that a stream lacks: ``error`` or ``drop``.
        label: the manifest's column to learn.
        drop_unlabelled: leave utterances without a label out, instead of refusing.
        votes: the manifest's column of votes, class to number, whose shares the loss aims at in place of the label
            (soft labels); empty aims at the label.
        copies: whether augmented copies train beside their originals.
        start: folder of a run whose weights each fold's training begins with; empty begins at random.
        device: where training runs.
        place: where the frames that a head reads are held: ``memory`` (of the device), ``disk``, or ``auto``, which is
            memory where they take at most 40 % of what is free.
    """

    head: str = "layer_mix"
    streams: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: FitSettings = field(default_factory=FitSettings)
    folds: str = "session"
    validation: float = 0.2
    validation_by: Literal["utterance", "speaker"] = "utterance"
    allow: tuple[str, ...] = ()
    missing: Literal["error", "drop"] = "error"
    label: str = "label"
    drop_unlabelled: bool = False
    votes: str = ""
    copies: bool = True
    start: str = ""
    device: str = "auto"
    place: Place = "auto"

    def __post_init__(self) -> None:
        for name, value in self.settings.items():
            numbers = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ConfigError(f"settings.{name} must be finite, got {value}.")

    def digest(self, *context: Any) -> str:
        """Return 16 digits that name this configuration together with what it ran on; device and place have no part."""
        values = asdict(self)
        for name in ("device", "place"):
            values.pop(name)
        for section, later in ((values, _LATER), (values["fit"], _LATER_FIT)):
            for name, default in later.items():
                if section[name] == default:
                    del section[name]
        return hashlib.sha256(canonical_json([values, *context])).hexdigest()[:16]


_LATER: Mapping[str, Any] = {"votes": "", "copies": True, "start": ""}
_LATER_FIT: Mapping[str, Any] = {
    "unit": "step", "accumulate": 1, "average": 1, "optimiser": "adamw", "momentum": 0.9, "halve_from": None,
    "halve_every": 1, "pretrained_rate": None, "bucketed": False,
}  # fmt: skip
"""Settings that came later, and what stood in their place: runs that were trained before them keep their digest."""


def seeded(config: TrainConfig, folder: Path, seeds: str | None) -> list[tuple[Path, TrainConfig]]:
    """Return the run folder and configuration of each of some seeds; of the configuration's own for None.

    Args:
        config: what is trained.
        folder: the run folder; with seeds, where one for each is made.
        seeds: whole numbers with commas between.

    Raises:
        ConfigError: they are not that, or one occurs twice.
    """
    if seeds is None:
        return [(folder, config)]
    try:
        numbers = [int(text) for text in seeds.split(",")]
    except ValueError:
        raise ConfigError(f"Seeds are whole numbers with commas between, such as 0,1,2; got {seeds!r}.") from None
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"A seed occurs twice in {seeds!r}: its run would be the same.")
    return [(folder / f"seed-{seed}", replace(config, fit=replace(config.fit, seed=seed))) for seed in numbers]


def preset_names() -> list[str]:
    """Return the names of the presets that come with this project."""
    folder = resources.files("pipelines") / "presets"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def read_preset(name: str | None) -> dict[str, Any]:
    """Return a preset, by its name or as a path; nothing for None.

    Raises:
        UnknownNameError: no such preset.
        ConfigError: it is not in the form of one.
    """
    if name is None:
        return {}
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"There is no preset file {name!r}.")
        text = path.read_text(encoding="utf-8")
    elif name in preset_names():
        text = (resources.files("pipelines") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UnknownNameError("preset", name, preset_names())
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The preset {name!r} is not valid YAML: {error}") from None
    if not isinstance(values, dict) or set(values) - {"about", "extract", "train", "runs"}:
        raise ConfigError(f"The preset {name!r} must hold the sections about, extract, train and runs, and no others.")
    return values


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return nested values from ``NAME.KEY=VALUE`` texts; values are YAML: numbers, flags, lists, text.

    Raises:
        ConfigError: a text of another form.
    """
    nested: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes KEY=VALUE, such as fit.steps=500, got {text!r}.")
        place = nested
        *parents, last = key.strip().split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {text!r}: {parent!r} was given a value before.")
        try:
            place[last] = _number(yaml.safe_load(value))
        except yaml.YAMLError:
            raise ConfigError(f"--set {text!r}: the value is not valid YAML. Quote it.") from None
    return nested


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}")


def _number(value: Any) -> Any:
    """Read 1e-4 as a number, which YAML 1.1 takes for text; a revision such as 12e45678 stays text."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str) and _NUMBER.fullmatch(value) and math.isfinite(float(value)):
        return float(value)
    return value


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return mappings merged key by key, later ones winning; None wins too, but leaves a mapping as it is."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(merged.get(key), Mapping) and (value is None or isinstance(value, Mapping)):
                merged[key] = merge(merged[key], value or {})
            else:
                merged[key] = value
    return merged


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given on the command line."""
    return {name: value for name, value in options.items() if value not in (None, (), [])}


def extract_config(
    preset: Mapping[str, Any], streams: Sequence[str], options: Mapping[str, Any], overrides: Sequence[str]
) -> ExtractConfig:
    """Return what to extract.

    Args:
        preset: what :func:`read_preset` returned.
        streams: streams asked for; empty is the preset's.
        options: other options by field name; None is not given.
        overrides: ``STREAM.KEY=VALUE`` texts.

    Raises:
        ConfigError: no streams, or an override of a stream that is not extracted.
    """
    section = dict(preset.get("extract") or {})
    known = dict(section.pop("streams", None) or {})
    known = {name: settings for name, settings in known.items() if "@" not in name}  # of encoders fine-tuned meanwhile
    wanted = {name: dict(known.get(name) or {}) for name in (streams or known)}
    if not wanted:
        from featcache import registry

        names = ", ".join(registry.names("featcache.streams"))
        raise ConfigError(f"Say what to extract with --stream NAME or --preset NAME. Streams: {names}.")
    settings = parse_overrides(overrides)
    stray = sorted(set(settings) - set(wanted))
    if stray:
        raise ConfigError(
            f"--set names {', '.join(stray)}, which is not extracted. Streams of this run: {', '.join(wanted)}."
        )
    for name, values in settings.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"--set {name}={values}: give a setting of the stream, such as {name}.checkpoint=FOLDER.")
        wanted[name] = merge(wanted[name], values)
    return build(ExtractConfig, {**merge(section, _given(options)), "streams": wanted}, "extract")


def train_config(preset: Mapping[str, Any], options: Mapping[str, Any], overrides: Sequence[str]) -> TrainConfig:
    """Return what to train.

    Args:
        preset: what :func:`read_preset` returned.
        options: options by field name; None is not given.
        overrides: ``KEY=VALUE`` texts: ``fit.steps=500``, ``settings.projector_dim=128``, ``validation=0.1``.
    """
    section = preset.get("train") or {}
    values = merge(_differing(section, _given(options)), parse_overrides(overrides))
    for name in ("fit", "settings"):
        values[name] = {} if values.get(name) is None else values[name]
        if not isinstance(values[name], Mapping):
            raise ConfigError(f"{name} takes values by name, such as {name}.NAME=VALUE, got {values[name]!r}.")
    values["fit"] = build(FitSettings, values["fit"], "fit")
    return build(TrainConfig, values, "train")


def recorded_config(record: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration that a run was trained by, from its ``config.yaml``.

    Raises:
        ConfigError: it is not that of a training.
    """
    names = [item.name for item in fields(TrainConfig)]
    lacking = [name for name in ("head", "streams", "fit", "folds") if name not in record]
    if lacking:
        raise ConfigError(f"config.yaml does not say {', '.join(lacking)}: it is not that of a trained head.")
    values = {name: record[name] for name in names if name in record}
    values["fit"] = build(FitSettings, values["fit"], "fit")
    return build(TrainConfig, values | {"streams": tuple(values["streams"])}, "train")


def preset_runs(preset: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a preset for each of its runs, by name; none where it has no section ``runs``."""
    runs = preset.get("runs") or {}
    return {
        name: {**preset, "train": _differing(preset.get("train") or {}, differences or {})}
        for name, differences in runs.items()
    }


def _differing(section: Mapping[str, Any], differences: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with differences; another head does not take over settings that are not its own."""
    if differences.get("head", section.get("head")) != section.get("head"):
        section = {name: value for name, value in section.items() if name != "settings"}
    return merge(section, differences)
