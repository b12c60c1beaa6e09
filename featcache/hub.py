"""Snapshots of checkpoints from the Hugging Face Hub: what is on this machine first, then a download.

Only what transformers needs is fetched: JSON, vocabularies, and weights as safetensors; pickled weights only where
there are no others. Whatever goes wrong is a :class:`~featcache.errors.CheckpointError` that says what to do.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from featcache.errors import CheckpointError

_FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors"]
_PICKLES = ["pytorch_model.bin", "pytorch_model-*.bin"]


def snapshot(name: str, revision: str | None, is_whole: Callable[[Path], bool]) -> Path:
    """Return the folder of a checkpoint's files, downloaded where they are not on this machine yet.

    Args:
        name: name on the Hub, ``OWNER/MODEL`` or ``MODEL``.
        revision: branch, tag or commit; None is what is on this machine, else the default branch.
        is_whole: says of a folder whether it has all that is needed; an unfinished download on this machine has not.

    Raises:
        CheckpointError: no such checkpoint or revision, no right to it, or no way to the Hub.
    """
    here = _on_this_machine(name, revision)
    if here is not None and is_whole(here):
        return here
    folder = _fetch(name, revision, _FILES)
    if is_whole(folder) or any(folder.glob("*.safetensors")):
        return folder
    return _fetch(name, revision, _FILES + _PICKLES)


def _snapshot(name: str, revision: str | None, patterns: Sequence[str], local: bool) -> Path:
    import huggingface_hub

    return Path(
        huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],
            local_files_only=local,
        )
    )


def _on_this_machine(name: str, revision: str | None) -> Path | None:
    try:
        return _snapshot(name, revision, _FILES, local=True)
    except Exception:  # the client's many ways to say that it is not here; :func:`_fetch` then gives the reason
        return None


def _fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import errors

    try:
        return _snapshot(name, revision, patterns, local=False)
    except errors.HFValidationError:
        raise CheckpointError(
            f"{name!r} is neither a folder nor a name on the Hugging Face Hub (OWNER/MODEL). Check the spelling."
        ) from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"The checkpoint {name!r} is gated. Accept its terms at https://huggingface.co/{name}, then log in with: "
            "hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"The Hugging Face Hub has no checkpoint {name!r}, or it is private, and there is no folder of that name. "
            "Check the spelling; for a private one, log in with: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"The checkpoint {name!r} has no revision {revision!r}. See https://huggingface.co/{name}/commits."
        ) from None
    except Exception as error:  # the Hub's client passes on whatever its transport raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"The checkpoint {name!r} is not on this machine and cannot be downloaded ({reason}). Where there is a "
            f"network, run: hf download {name}. Or give the folder that it lies in."
        ) from error


def fetch_optional(name: str, revision: str | None, file: str, otherwise: str) -> None:
    """Download a file that a checkpoint may have and a snapshot on this machine may lack.

    Args:
        name: name on the Hub.
        revision: branch, tag or commit; None is the default branch.
        file: the file.
        otherwise: what a user can do instead, a sentence.

    Raises:
        CheckpointError: the Hub cannot be asked whether the checkpoint has the file.
    """
    import huggingface_hub
    from huggingface_hub import errors

    known = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
    if known is not None:  # here, or known not to exist
        return
    try:
        huggingface_hub.hf_hub_download(name, file, revision=revision)
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"Whether the checkpoint {name!r} has a {file} cannot be told without the Hub, and the numbers depend on "
            f"it. Where there is a network, run: hf download {name}. {otherwise}"
        ) from error
    except errors.EntryNotFoundError:
        return
