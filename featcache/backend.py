"""The contract of a backend: how the arrays of one part are written, and read back.

A part's arrays are ``frames``, ``(layers, frames, dim)``, utterances one after the other along the frame
axis; further arrays along the frames, ``(frames, ...)``; and arrays of one value an utterance,
``(utterances, ...)``. A backend knows nothing of what they mean.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from featcache import registry
from featcache.maps import fetch

CHUNK_FRAMES = 32
"""Frames in a chunk. A random window of 96 frames then touches 127 on average: 1.3 times what it needs."""

READ_ERRORS = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError)
"""What zarr and h5py raise on damaged files; whoever opens or reads a part catches them."""


class PartFile(ABC):
    """One part, open for reading; any of its methods may raise one of :data:`READ_ERRORS`."""

    @abstractmethod
    def frames(self, start: int, stop: int, layers: Sequence[int] | None = None) -> np.ndarray:
        """Return frames `start` to `stop` of the chosen layers, ``(layers, frames, dim)``, as stored.

        Where the layout allows it, consecutive layers are a read-only view of the file: nothing is copied, and the
        bytes are on their way from the disk where they have to come from there. Other layers are a copy.
        """

    @abstractmethod
    def array(self, name: str) -> np.ndarray:
        """Return another array whole."""

    @abstractmethod
    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return an array's dtype and shape without reading it."""

    @abstractmethod
    def ids(self) -> list[str]:
        """Return the ids that were written beside the arrays."""

    def metadata_changed(self, attributes: Mapping[str, Any]) -> bool:
        """Say whether what other programs read beside the numbers is not what was written.

        Args:
            attributes: as they were given to :meth:`Backend.write`.
        """
        return self.ids() != attributes["ids"]

    @abstractmethod
    def close(self) -> None:
        """Release files and maps."""


def as_slice(layers: Sequence[int] | None) -> slice | None:
    """Return consecutive layers as a slice, None (all) among them; None where they do not follow each other."""
    if layers is None:
        return slice(None)
    first = layers[0] if layers else 0
    return slice(first, first + len(layers)) if list(layers) == list(range(first, first + len(layers))) else None


def mapped_window(frames: np.ndarray, start: int, stop: int, layers: Sequence[int] | None) -> np.ndarray:
    """Return what :meth:`PartFile.frames` does, of frames that are mapped."""
    consecutive = as_slice(layers)
    if consecutive is not None:
        return fetch(frames[consecutive, start:stop])
    return np.concatenate([fetch(frames[layer : layer + 1, start:stop]) for layer in layers or ()])


class Backend(ABC):
    """A file format for parts.

    Attributes:
        suffix: what a part's path ends with.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def write(
        self, path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], compress: bool
    ) -> None:
        """Write a new part; the same arguments give the same bytes.

        Args:
            path: where; nothing exists there yet.
            arrays: name to array.
            attributes: JSON values for readers without this project: ids, stream name.
            compress: smaller files, which then cannot be mapped into memory.
        """

    @abstractmethod
    def open(self, path: Path) -> PartFile:
        """Open a part for reading."""


def load_backend(name: str) -> Backend:
    """Return a backend by its public name.

    Raises:
        UnknownNameError: no such backend.
    """
    return registry.load("featcache.backends", name, Backend)()
