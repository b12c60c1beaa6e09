"""Fine-tune an encoder on every fold, and save it as a checkpoint for each, which knows what it has learnt from.

Training is that of :mod:`pipelines.train_heads`, by a head that holds the encoder. What it leaves beside the run's own
files is ``encoders/FOLD/``: an ordinary Hugging Face folder with its provenance (:mod:`featcache.tuned`).
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from featcache import registry
from featcache.cache import Cache
from featcache.cache import open as open_cache
from featcache.errors import ConfigError, ScoresError
from featcache.families import family_name, is_family
from featcache.files import listed, read_plain, write_json
from featcache.manifest import Manifest
from featcache.settings import build
from featcache.stream import Stream
from featcache.tuned import FLAG, PROVENANCE, Tuned, folder_name, read_tuned, write_tuned
from heads.encoder import written_aside
from heads.head import OnProgress
from heads.learnt import audio_of
from heads.task import Task
from pipelines import train_heads
from pipelines.config import ExtractConfig, TrainConfig, train_config
from pipelines.provenance import all_streams, records_of_run
from pipelines.restore import fold_weights
from pipelines.run_folders import ENCODERS
from pipelines.train_heads import Preparer, Trained, load_head

HEAD = "finetune"

KINDS = {
    "waveform": "hidden_states",
    "conv_features": "hidden_states",
    "hidden_states": "hidden_states",
    "tokens": "token_states",
    "token_states": "token_states",
    "ge2e_mels": "ge2e_states",
    "ge2e_states": "ge2e_states",
}
"""Stream that an encoder was trained from, to the stream that has all layers of the fine-tuned one."""


OWN_OUTPUT: Mapping[str, Mapping[str, Any]] = {
    "hidden_states": {"tap": "final_norm", "layers": "last"},
    "token_states": {"layers": "last", "special_tokens": True},
}
"""Settings with which a stream is what was pooled in fine-tuning: the encoder's own output."""


@runtime_checkable
class SavesEncoder(Protocol):
    """A head that can save the encoder it trained."""

    def save_encoder(self, task: Task, weights: Mapping[str, np.ndarray], folder: Path) -> None:
        """Save the encoder that a fold ended with as a checkpoint."""
        ...


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning left.

    Attributes:
        trained: the run.
        encoders: fold to the folder of its checkpoint.
        kind: stream that has the layers of these; None where nobody knows one.
        name: what the run is called in their provenance, and behind the ``@`` of a family of streams.
        digest: the run's, which stands there where another run's streams have that name.
    """

    trained: Trained
    encoders: Mapping[str, Path]
    kind: str | None
    name: str
    digest: str

    def family(self, kind: str, cache: Path) -> str:
        """Return what names the streams of a kind that a cache has of the encoders, or will have."""
        return family_name(Cache(cache), kind, self.name, self.digest)


def default_preset(streams: Sequence[str]) -> str:
    """Return the preset that is taken where none is named: the one whose rates suit what starts from these streams."""
    return "finetune-ge2e" if any(name.startswith("ge2e_") for name in streams) else "finetune"


def configured(preset: Mapping[str, Any], options: Mapping[str, Any], overrides: Sequence[str]) -> TrainConfig:
    """Return what to train: as :func:`pipelines.config.train_config`, by the head `finetune` where none is named."""
    told = (preset.get("train") or {}).get("head")
    given = options if options.get("head") or told else {**options, "head": HEAD}
    return train_config(preset, given, overrides)


def extraction(
    preset: Mapping[str, Any], kinds: Sequence[str], out: Path, device: str | None = None
) -> ExtractConfig | None:
    """Return what to extract of the encoders: a preset's settings of these streams, from the run's checkpoints.

    Args:
        preset: what :func:`pipelines.config.read_preset` returned.
        kinds: streams; none gives None.
        out: the run folder.
        device: where models run.

    Raises:
        ConfigError: settings that do not fit.
    """
    if not kinds:
        return None
    section = preset.get("extract") or {}
    name = out.resolve().name
    stated = section.get("streams") or {}
    own = {
        kind: {**OWN_OUTPUT.get(kind, {}), **(stated.get(f"{kind}@{name}") or stated.get(kind) or {})} for kind in kinds
    }
    streams = {kind: {**values, "checkpoint": str(out / ENCODERS)} for kind, values in own.items()}
    values = {**section, "streams": streams} | ({} if device is None else {"device": device})
    return build(ExtractConfig, values, "extract")


def check_extraction(later: ExtractConfig | None, config: TrainConfig, cache: str | Path) -> None:
    """Refuse, before anything trains, streams that cannot be extracted of the encoders.

    Args:
        later: what is to be extracted of them.
        config: what trains them.
        cache: the cache's folder.

    Raises:
        UnknownNameError: no such stream.
        ConfigError: settings that it does not have, or a stream that is not made by such an encoder.
    """
    if later is None:
        return
    opened = open_cache(cache)
    given = {KINDS.get(opened[name].spec.kind) for name in config.streams if not is_family(name)} - {None}
    for kind, settings in later.streams.items():
        plugin = registry.load("featcache.streams", kind, Stream)
        takes = any(one.name == "checkpoint" for one in fields(plugin))  # type: ignore[arg-type]
        if not takes or (given and KINDS.get(kind) not in given):
            raise ConfigError(
                f"{kind!r} cannot be extracted of an encoder that is trained from {listed(config.streams)}. Extract "
                f"{' or '.join(sorted(map(str, given))) or 'a stream with the setting checkpoint'}."
            )
        build(plugin, settings, f"stream {kind}")


def train(
    config: TrainConfig,
    manifest: Manifest,
    cache: str | Path,
    out: str | Path,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_message: Callable[[str], None] = lambda _: None,
    meant: Mapping[str, str] = {},
) -> Trained:
    """Fine-tune as configured: :func:`pipelines.train_heads.run`, of heads that hold an encoder.

    Raises:
        ConfigError: the head holds none; and what is raised there.
    """
    _encoder_head(config)
    going = _encoders_in(Path(out)) if overwrite else ""
    if going:
        on_message(
            f"--overwrite: {going} are deleted when the new training is done. Runs that were trained on their features "
            "need them to predict: interrupt now and copy the folder, or give another --out, to keep them."
        )
    return train_heads.run(config, manifest, cache, out, overwrite, on_progress, on_message, meant)


def save(
    trained: Trained,
    config: TrainConfig,
    manifest: Manifest,
    cache: str | Path,
    out: str | Path,
    on_progress: OnProgress = lambda *_: None,
    meant: Mapping[str, str] = {},
) -> Finetuned:
    """Save the encoder of every fold that is not saved yet.

    Args:
        trained: what :func:`train` returned.
        config: what was trained.
        manifest: the utterances it was trained on.
        cache: the cache's folder.
        out: the run folder.
        on_progress: called with checkpoints saved and to be saved.
        meant: as :class:`pipelines.prepare.Preparer` has it.
    """
    out, head = Path(out), _encoder_head(config)
    prepared = Preparer(manifest, cache, meant).prepare(config)
    streams = all_streams(list(prepared.streams.values()), Cache(Path(cache)))
    records = records_of_run(out, audio_of(streams, prepared.manifest.ids))
    encoders = {name: out / ENCODERS / folder_name(name) for name in records}
    there = {name: found for name, folder in encoders.items() if (found := _saved(folder, records[name]))}
    # All folds are of one name, also where the folder was renamed in between.
    run_name = next((found.run for found in there.values()), out.resolve().name)
    wanted = [name for name in encoders if name not in there]
    tasks = {fold.name: task for task in (prepared.tasks() if wanted else ()) for fold in task.folds}
    for number, name in enumerate(wanted):
        on_progress(number, len(wanted))
        _save(head, tasks[name], fold_weights(out, name), encoders[name], replace(records[name], run=run_name))
    on_progress(len(wanted), len(wanted))
    kinds = {KINDS.get(stream.spec.kind) for stream in prepared.streams.values()} - {None}
    kind = kinds.pop() if len(kinds) == 1 else None
    digest = str((trained.run.config or {}).get("digest"))
    return Finetuned(trained, encoders, kind, run_name, digest)


def run(
    config: TrainConfig,
    manifest: Manifest,
    cache: str | Path,
    out: str | Path,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_message: Callable[[str], None] = lambda _: None,
    meant: Mapping[str, str] = {},
) -> Finetuned:
    """Fine-tune as configured, and save; what is there of the very same is kept, what a kill cut off goes on.

    Args:
        config: what to train; its head must hold an encoder.
        manifest: labelled utterances.
        cache: the cache's folder.
        out: the run folder.
        overwrite: replace another run that lies there.
        on_progress: called with what is done and what there is to do of the training.
        on_message: called with a sentence for each thing worth knowing.
        meant: as :class:`pipelines.prepare.Preparer` has it.

    Raises:
        ConfigError: a head without an encoder, settings that do not fit, or `out` holds another run.
        CacheError: the cache lacks utterances and `config.missing` is ``"error"``.
        ProtocolError: folds that would leak, or labels that are missing.
    """
    trained = train(config, manifest, cache, out, overwrite, on_progress, on_message, meant)
    return save(trained, config, manifest, cache, out, meant=meant)


def _encoders_in(out: Path) -> str:
    """Return whose encoders a run folder has, in words; nothing where it has none."""
    records = []
    for path in sorted((out / ENCODERS).glob(f"*/{PROVENANCE}")):
        with suppress(OSError, ValueError):
            records.append(read_tuned(path))
    runs = listed(dict.fromkeys(f"{record.run!r} (digest {record.digest})" for record in records))
    return f"the encoders of {runs} in {str(out / ENCODERS)!r}" if records else ""


def _encoder_head(config: TrainConfig) -> SavesEncoder:
    head = load_head(config)
    if not isinstance(head, SavesEncoder):
        raise ConfigError(
            f"The head {config.head!r} trains no encoder that could be saved. Use the head {HEAD!r}, or train-heads."
        )
    return head


def _saved(folder: Path, record: Tuned) -> Tuned | None:
    """Return what the checkpoint of a fold tells that this run has saved; None where there is none.

    A folder gets its name when it is whole. It is never saved again: weights would hardly be the same to the last bit,
    and features were extracted of these.
    """
    try:
        found = read_tuned(folder / PROVENANCE)
    except (OSError, ValueError):
        return None
    return found if found.lineage == record.lineage else None


def _save(
    head: SavesEncoder, task: Task, weights: Mapping[str, np.ndarray], folder: Path, record: Tuned
) -> None:  # fmt: skip
    """Save a fold's encoder with its provenance; it gets its name when both are whole."""
    for left in folder.parent.glob(".tmp-*"):  # of a kill
        shutil.rmtree(left, ignore_errors=True)
    with written_aside(folder) as aside:
        head.save_encoder(task, weights, aside)
        write_json(aside / "config.json", {**_config(aside), FLAG: record.sha256})
        write_tuned(aside / PROVENANCE, record)
        mode = (aside / PROVENANCE).stat().st_mode  # what umask gives; safetensors makes files for their owner alone
        for path in aside.iterdir():
            if path.is_file():
                path.chmod(mode)


def _config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_plain(folder / "config.json"))
    except (OSError, ValueError) as error:
        raise ScoresError(f"The encoder saved in {str(folder)!r} has no usable config.json ({error}).") from None
    return dict(values)


def next_commands(done: Finetuned, manifest: Path, cache: Path, out: Path) -> str:
    """Return the commands that extract the fine-tuned encoders' features, and that train on them."""
    kind = done.kind or "KIND"
    own = "".join(f" --set {kind}.{name}={_typed(value)}" for name, value in OWN_OUTPUT.get(kind, {}).items())
    return (
        f"Extract its features, a stream a fold:\n"
        f"  featcache extract {manifest} --cache {cache} --stream {kind} --set {kind}.checkpoint={out / ENCODERS}"
        f"{own}\n"
        f"and train on them, each fold on those of its own encoder:\n"
        f"  featcache train-heads {manifest} --cache {cache} --stream {done.family(kind, cache)}"
    )


def _typed(value: Any) -> str:
    """Return a setting as it is typed behind --set."""
    return value if isinstance(value, str) else json.dumps(value)
