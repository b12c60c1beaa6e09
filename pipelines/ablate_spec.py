"""What an ablation runs: a base, what differs, and the runs that follow from both.

A spec is a short YAML file::

    about: which layer of which encoder tells emotions apart
    base:                              # what train-heads takes, and a preset
      preset: demo
      head: linear_probe
      fit: {steps: 500}
    seeds: [0, 1, 2]                   # every run once with each
    grid:                              # every combination, over the base
      streams: [ge2e_states, token_states]
      settings.layer: every            # a run for each layer of the stream
      fit.learning_rate: [1e-2, 1e-3]
    runs:                              # further runs, by name; each may have a grid of its own
      functionals: {head: svm, streams: egemaps}
      mix: {head: layer_mix, streams: ge2e_states, grid: {settings.projector_dim: [64, 256]}}
    fuse:                              # over runs by name or pattern; once for each seed
      both: {runs: [functionals, mix*], weights: search}

Keys may be dotted or nested. ``A..B`` in a grid, or as seeds, is every whole number from A to B. A value of a grid that
is itself a list is one value: several streams that are read together, or learning rates that a run chooses from.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from featcache import registry
from featcache.errors import ConfigError, UnknownNameError
from featcache.files import listed, quoted
from featcache.settings import build
from heads.fit_settings import FitSettings
from heads.fusion import Space
from heads.fusion_data import SearchOn, SelectBy
from heads.head import Head
from pipelines.ablate_names import folder_name, short_names, suggestion, value_text
from pipelines.config import TrainConfig, merge, parse_overrides, preset_runs, read_preset, train_config
from pipelines.train_heads import load_head

NumLayers = Callable[[Sequence[str]], int]
"""Returns how many layers there are of the streams that a run names."""

SEED = "fit.seed"
_SUFFIXES = (".yaml", ".yml")
_SECTIONS = ("about", "base", "grid", "runs", "seeds", "fuse")
_TAKEN = {"results.csv", "results.parquet", "report.html"}
_NAME = re.compile(r"\w[\w.+=~-]*")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_EVERY, _LAYER = "every", "settings.layer"
_LONGEST_RANGE = 10_000


@dataclass(frozen=True)
class Wanted:
    """A run of an ablation.

    Attributes:
        name: of the run and its folder: what differs, such as ``streams=ge2e_states,layer=3,seed=0``.
        label: the name without the seed.
        seed: which of the spec's seeds; None where it has none.
        config: what is trained.
        varied: dotted key to value, of what the spec says of this run beside its base.
    """

    name: str
    label: str
    seed: int | None
    config: TrainConfig
    varied: Mapping[str, Any]


@dataclass(frozen=True)
class FusionOptions:
    """How a fusion is made, beside its weights; as `pipelines.fuse.run` takes it."""

    space: Space = "prob"
    standardise: bool = False
    search_on: SearchOn | None = None
    select_by: SelectBy | None = None


@dataclass(frozen=True)
class Fusion:
    """A fusion of an ablation.

    Attributes:
        name: of the run and its folder.
        label: the name without the seed.
        seed: which of the spec's seeds; None where it has none.
        runs: names of the runs.
        weights: one a run, with commas between, or ``search``, ``stack`` or ``joint``.
        options: how it is made beside that.
    """

    name: str
    label: str
    seed: int | None
    runs: tuple[str, ...]
    weights: str
    options: FusionOptions


@dataclass(frozen=True)
class Ablation:
    """An ablation.

    Attributes:
        name: of its file, without the suffix.
        about: what is asked, in a line; may be empty.
        runs: the runs, in the order of the file.
        fusions: the fusions.
        varied: dotted keys of all that differs, seeds left out.
    """

    name: str
    about: str
    runs: tuple[Wanted, ...]
    fusions: tuple[Fusion, ...]
    varied: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        """Name to label, of all runs and then all fusions."""
        runs = {run.name: run.label for run in self.runs}
        return runs | {fusion.name: fusion.label for fusion in self.fusions}


def ablation_names() -> list[str]:
    """Return the names of the ablations that come with this project."""
    folder = resources.files("pipelines") / "ablations"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def read_ablation(
    name: str, num_layers: NumLayers, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> Ablation:
    """Return an ablation, by its name or as a path of a YAML file.

    Args:
        name: the name or path.
        num_layers: asked where a grid has every layer of a stream.
        overrides: ``KEY=VALUE`` texts that change the base.
        options: options of `pipelines.config.train_config` for all runs, such as ``device``.

    Raises:
        UnknownNameError: no such ablation, head or preset.
        ConfigError: the file is not in the form of one; the message says where, and what may be meant.
    """
    path = Path(name)
    if path.suffix not in _SUFFIXES:
        if name not in ablation_names():
            raise UnknownNameError("ablation", name, [*ablation_names(), "or a file that ends in .yaml"])
        path = Path(str(resources.files("pipelines") / "ablations" / f"{name}.yaml"))
    if not path.is_file():
        raise ConfigError(f"There is no ablation file {name!r}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  a SafeLoader
        return _Reader(path.stem, num_layers, options or {}).ablation(values, overrides)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The ablation {str(path)!r} is not valid YAML: {error}") from None
    except (ConfigError, UnknownNameError) as error:
        raise ConfigError(f"The ablation {str(path)!r}: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in keys if keys.count(key) > 1 and key != "<<"]
        if twice:
            raise yaml.YAMLError(f"the key {twice[0]!r} stands twice{node.start_mark}")
        return values


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}$"), list("-+.0123456789")
)


class _Reader:
    """Turns the values of a file into an ablation; every refusal names the place in it."""

    def __init__(self, name: str, num_layers: NumLayers, options: Mapping[str, Any]) -> None:
        self._name, self._num_layers, self._options = name, num_layers, options
        self._base: Mapping[str, Any] = {}
        self._overrides: Mapping[str, Any] = {}
        self._short: Mapping[str, str] = {}

    def ablation(self, values: Any, overrides: Sequence[str]) -> Ablation:
        values = _mapping(values, "the file")
        _known(values, _SECTIONS, "the file")
        self._base = self._keyed(values.get("base"), "base")
        self._overrides = parse_overrides(overrides)
        _known(_flat(self._overrides), self._keys(), "--set")
        described = list(self._described(values))
        seeds = _values(values.get("seeds"), "seeds") if values.get("seeds") is not None else [None]
        if seeds != [None] and not all(type(seed) is int for seed in seeds):
            raise ConfigError(f"seeds are whole numbers, such as [0, 1, 2] or 0..4; got {quoted(values['seeds'])}.")
        keys = list(dict.fromkeys(key for _, fixed, grid in described for key in [*_flat(fixed), *grid]))
        self._check_varied(keys, seeds)
        self._short = short_names(keys)
        runs = [run for name, fixed, grid in described for run in self._runs(name, fixed, grid, seeds)]
        _check_names([run.name for run in runs])
        fusions = tuple(self._fusions(_mapping(values.get("fuse") or {}, "fuse"), runs))
        _check_names([run.name for run in runs] + [fusion.name for fusion in fusions])
        columns = tuple(key for key in keys if key != SEED)
        return Ablation(self._name, str(values.get("about") or ""), tuple(runs), fusions, columns)

    def _described(self, values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, list[Any]]]]:
        """Yield name, differences and grid, of the base and of each further run; the name may be empty."""
        runs = values.get("runs") or {}
        if values.get("grid") is not None or not runs:
            yield "" if values.get("grid") else "base", {}, self._grid(values.get("grid") or {}, "grid")
        named = runs.items() if isinstance(runs, Mapping) else [(None, one) for one in _list(runs, "runs")]
        for number, (name, one) in enumerate(named, start=1):
            where = f"runs[{number}]" if name is None else f"runs.{name}"
            differences = dict(_mapping(one or {}, where))
            name = differences.pop("name", "") if name is None else name
            if name != "":
                _check_name(name, "runs")
            grid = self._grid(differences.pop("grid", None) or {}, f"{where}.grid")
            yield str(name), self._keyed(differences, where), grid

    def _runs(
        self, name: str, fixed: Mapping[str, Any], grid: Mapping[str, list[Any]], seeds: Sequence[int | None]
    ) -> Iterator[Wanted]:
        """Yield the runs of one description."""
        shown = {} if name else _flat(fixed)
        for combination in product(*grid.values()):
            for chosen in self._every_layer(fixed, dict(zip(grid, combination, strict=True))):
                told = {key: value for key, value in (shown | chosen).items() if key != SEED}
                parts = [f"{self._short[key]}={value_text(value)}" for key, value in told.items()]
                label = folder_name([*([name] if name else []), *parts]) or "base"
                for seed in seeds:
                    varied = {**_flat(fixed), **chosen} | ({} if seed is None else {SEED: seed})
                    own = varied.get(SEED)
                    full = label if own is None else folder_name([label, f"seed={own}"])
                    yield Wanted(full, label, own, self._config(varied, full), varied)

    def _every_layer(self, fixed: Mapping[str, Any], chosen: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a combination for each layer of its stream, where it has every layer."""
        if chosen.get(_LAYER) != _EVERY:
            yield dict(chosen)
            return
        streams = self._section({**_flat(fixed), **chosen}).get("streams") or ()
        if not streams:
            raise ConfigError(f"{_LAYER}: {_EVERY} is a run for each layer of a stream. Say which one, with streams.")
        for layer in range(self._num_layers([streams] if isinstance(streams, str) else streams)):
            yield {**chosen, _LAYER: layer}

    def _section(self, varied: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what is trained as a preset's section: the preset, the base, --set, and what differs."""
        layers = [dict(self._base), dict(self._overrides), _nested(varied)]
        names = [name for layer in layers if (name := layer.pop("preset", None)) is not None]
        preset: dict[str, Any] = {"train": read_preset(str(names[-1]) if names else None).get("train") or {}}
        for layer in layers:
            preset = preset_runs({"train": preset["train"], "runs": {"": layer}})[""]
        section: Mapping[str, Any] = preset["train"]
        return section

    def _config(self, varied: Mapping[str, Any], name: str) -> TrainConfig:
        """Return the configuration of a run; the head and its settings are looked at as well."""
        try:
            config = train_config({"train": self._section(varied)}, self._options, [])
            cls = registry.load("heads.models", config.head, Head)
            settings = [item.name for item in fields(cls)]  # type: ignore[arg-type]
            _known(config.settings, settings, f"{config.head}'s settings")
            load_head(config)
        except (UnknownNameError, ConfigError) as error:
            raise ConfigError(f"run {name!r}: {error}") from None
        return config

    def _fusions(self, values: Mapping[str, Any], runs: Sequence[Wanted]) -> Iterator[Fusion]:
        for name, one in values.items():
            where = f"fuse.{name}"
            one = _mapping(one, where)
            known = [item.name for item in fields(FusionOptions)]
            _known(one, ["runs", "weights", *known], where)
            options = build(FusionOptions, {key: value for key, value in one.items() if key in known}, where)
            _check_name(name, "fuse")
            patterns = [str(pattern) for pattern in _list(one.get("runs"), f"{where}.runs")]
            for pattern in patterns:
                if not any(_is_meant(run, pattern) for run in runs):
                    labels = list(dict.fromkeys(run.label for run in runs))
                    raise ConfigError(
                        f"{where}: no run is called {pattern!r}.{suggestion(pattern, labels)} Runs: {listed(labels)}."
                    )
            for seed in dict.fromkeys(run.seed for run in runs):
                members = dict.fromkeys(
                    run.name for pattern in patterns for run in runs if run.seed == seed and _is_meant(run, pattern)
                )
                if not members:  # patterns that name a seed
                    continue
                full = str(name) if seed is None else folder_name([str(name), f"seed={seed}"])
                yield Fusion(full, str(name), seed, tuple(members), _weights(one, where, members), options)

    def _grid(self, values: Any, where: str) -> dict[str, list[Any]]:
        grid = {key: _values(value, f"{where}.{key}") for key, value in _flat(_mapping(values, where)).items()}
        _known(grid, self._keys(), where)
        return grid

    def _keyed(self, values: Any, where: str) -> dict[str, Any]:
        """Return settings with nested keys, all of which there are."""
        values = _mapping(values or {}, where)
        _known(_flat(values), self._keys(), where)
        return _nested(values)

    def _keys(self) -> list[str]:
        """Return the dotted keys that are known; of a head's settings any, which are looked at with the head."""
        names = [item.name for item in fields(TrainConfig) if item.name not in ("device",)]
        return ["preset", *names, *(f"fit.{item.name}" for item in fields(FitSettings))]

    def _check_varied(self, keys: Sequence[str], seeds: Sequence[int | None]) -> None:
        if SEED in keys and seeds != [None]:
            raise ConfigError(f"there are seeds, and {SEED} beside them. Say it once.")
        differing = {*keys, *([] if seeds == [None] else [SEED])}
        both = [key for key in _flat(self._overrides) if key in differing]
        if both:
            raise ConfigError(f"{both[0]} differs between runs, so that --set {both[0]} cannot say it for all.")


def _weights(values: Mapping[str, Any], where: str, members: Mapping[str, None]) -> str:
    """Return weights as the command takes them: those given, or 1 for each run."""
    if len(members) < 2:
        raise ConfigError(f"{where} needs two or more runs, and there is {listed(members)}.")
    weights = values.get("weights", [1] * len(members))
    if weights in ("search", "stack", "joint"):
        return str(weights)
    numbers = weights.split(",") if isinstance(weights, str) else weights
    if not isinstance(numbers, list) or len(numbers) != len(members):
        raise ConfigError(
            f"{where}.weights is search, stack, joint, or a number for each of its {len(members)} runs "
            f"({listed(members)}); got {quoted(weights)}."
        )
    try:
        return ",".join(f"{float(number)!r}" for number in numbers)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}.weights has something that is no number: {quoted(weights)}.") from None


def _values(value: Any, where: str) -> list[Any]:
    """Return the values of a grid's key: a list, a range, or one value."""
    span = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if span:
        first, last = int(span[1]), int(span[2])
        if not first <= last < first + _LONGEST_RANGE:
            raise ConfigError(f"{where}: {value!r} has no numbers, or more than {_LONGEST_RANGE:,}.")
        return list(range(first, last + 1))
    values = value if isinstance(value, list) else [value]
    if not values or value is None:
        raise ConfigError(f"{where} has no values.")
    twice = [item for number, item in enumerate(values) if item in values[:number]]
    if twice:
        raise ConfigError(f"{where} has {quoted(twice[0])} twice: the run would be the same.")
    return values


def _known(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse keys that there are not."""
    for key in values:
        if key not in known and not (isinstance(key, str) and key.startswith("settings.")):
            shown = [name for name in known if "." not in name]
            meant = suggestion(str(key), known)
            raise ConfigError(f"{where} has no key {quoted(key)}.{meant} There is: {listed(shown)}.")


def _check_name(name: object, where: str) -> None:
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(
            f"the name {quoted(name)} in {where} is to be that of a folder: give it letters, digits and . _ + = -"
        )


def _check_names(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        folded = name.casefold()  # folders are the same to some file systems
        if folded in seen:
            raise ConfigError(f"two runs would be called {name!r}. Give them names, or say one of them once.")
        if folded in _TAKEN:
            raise ConfigError(f"a run cannot be called {name!r}: a file of the ablation is.")
        seen[folded] = name


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} takes values by name, got {quoted(value)}.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where} takes a list, got {quoted(value)}.")
    return value


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted keys: those below ``fit`` and ``settings`` by ``fit.NAME`` and ``settings.NAME``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inside = value if key in ("fit", "settings") and isinstance(value, Mapping) else None
        flat |= {str(key): value} if inside is None else {f"{key}.{name}": one for name, one in inside.items()}
    return flat


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted or nested keys by nested ones."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, dot, name = str(key).partition(".")
        nested = merge(nested, {section: {name: value}} if dot else {key: value})
    return nested


def _is_meant(run: Wanted, pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in (run.label, run.name))
