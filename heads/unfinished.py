"""Training that was not finished: what a job needs to go on as if it had never stopped.

A job writes its state after a step, at most once in :attr:`Unfinished.every_s` seconds, under a temporary name and
renamed into place. A run that is started again takes it up, and ends with the same numbers as an unbroken one: the
state has weights, the best weights so far, the optimiser's moments, and every generator of random numbers.
"""

import json
import logging
import secrets
import shutil
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from featcache.files import sync

logger = logging.getLogger(__name__)

_PAUSE = 20


@dataclass(frozen=True)
class Unfinished:
    """Where a run keeps what is not finished.

    Attributes:
        folder: a folder of that run alone: its name must follow from all that decides the run's numbers.
        every_s: least time between two states of a job, in seconds; 0 keeps one at every step.
    """

    folder: Path
    every_s: float = 60.0

    def pause_s(self, took_s: float) -> float:
        """Return the time to the next state, in seconds, where keeping the last took `took_s`.

        A state of a large model takes gigabytes: keeping them is to take 5 % of the time at most.
        """
        return max(self.every_s, _PAUSE * took_s) if self.every_s else 0.0

    def save(self, job: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the state of a job, in place of the one before; training goes on where it cannot be written."""
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        path = self.folder / f"{job}.safetensors"
        aside = self.folder / f".tmp-{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(plain, aside, {"facts": json.dumps(facts)})  # straight to the file: a state may be gigabytes
            sync(aside)
            aside.replace(path)
            sync(self.folder, below=False)
        except (OSError, SafetensorError) as error:
            logger.warning("%s: what is done so far cannot be kept (%s); training goes on.", self.folder, error)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def load(self, job: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the state of a job; None where there is none, or where it is damaged."""
        path = self.folder / f"{job}.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["facts"])  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
            logger.warning("%s is damaged (%s): that part of the run begins anew.", path, error)
            return None

    def clear(self) -> None:
        """Remove everything that was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)
