"""Views: cached frames and stats as tensors, for a set of utterances.

A training batch is one gather. Where the frames wanted fit into memory they are held there, as stored, laid one
utterance after the other; otherwise each window is read from the maps of the cache.
"""

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from featcache import dtypes
from featcache.cache import CachedStream
from featcache.errors import CacheError

Place = Literal["auto", "disk", "memory"]
_SHARE_OF_MEMORY = 0.4


class View:
    """One stream of a cache, for chosen utterances and layers.

    Args:
        stream: the cached stream.
        ids: utterances, in the order that indices count them.
        layers: positions of the layers wanted; None is all.
        device: where tensors are returned.
        place: where frames are held: ``"memory"`` (of the device), ``"disk"``, or ``"auto"``, which is memory when
            they take at most 40 % of what is free.

    Raises:
        CacheError: the stream lacks utterances, or holds them only for an input that they no longer have; the message
            counts them and names the first.

    Attributes:
        lengths: ``(utterances,)`` int64, frames of each utterance, on the CPU.
    """

    def __init__(
        self,
        stream: CachedStream,
        ids: Sequence[str],
        layers: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
        place: Place = "auto",
    ) -> None:
        failures = stream.failures
        missing = [name for name in ids if name not in stream or name in failures]
        if missing:
            reason = failures.get(missing[0], "never extracted")
            raise CacheError(
                f"{stream.name} lacks {len(missing)} of {len(ids)} utterances, such as {missing[0]!r} ({reason}). "
                "Extract them, or leave them out on purpose with --missing drop."
            )
        self.stream = stream
        self.ids = list(ids)
        self.layers = list(range(len(stream.spec.layers))) if layers is None else list(layers)
        self.device = torch.device(device)
        self.lengths = torch.tensor([stream.num_frames(name) for name in self.ids], dtype=torch.int64)
        self._place = place
        self._flat: torch.Tensor | None = None
        self._starts = torch.cumsum(self.lengths, 0) - self.lengths
        self._scale: torch.Tensor | None = None

    def stats(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of every utterance, each ``(utterances, layers, dim)`` float32."""
        mean, std = self.stream.stats(self.ids)
        return self._to_device(mean[:, self.layers]), self._to_device(std[:, self.layers])

    def array(self, name: str) -> torch.Tensor:
        """Return an array of one value an utterance, ``(utterances, ...)``."""
        return self._to_device(self.stream.array(name, self.ids))

    def padded(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whole utterances, zero-padded at the end to the longest.

        Args:
            indices: ``(batch,)`` positions in :attr:`ids`.

        Returns:
            Frames ``(batch, layers, frames, dim)`` float32, and their lengths ``(batch,)``.
        """
        longest = int(self.lengths[indices.cpu()].max())
        return self.windows(indices, torch.zeros_like(indices), longest)

    def windows(self, indices: torch.Tensor, starts: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one window of each utterance, zero-padded at the end where the utterance ends first.

        Args:
            indices: ``(batch,)`` positions in :attr:`ids`.
            starts: ``(batch,)`` first frame of each window, inside its utterance.
            length: frames in a window.

        Returns:
            Frames ``(batch, layers, length, dim)`` float32, and how many of each window are real, ``(batch,)``.

        Raises:
            CacheError: a window starts outside its utterance.
        """
        indices, starts = indices.cpu(), starts.cpu()
        left = self.lengths[indices] - starts
        if bool((starts < 0).any()) or bool((left < 1).any()):
            first = int(torch.nonzero((starts < 0) | (left < 1))[0])
            raise CacheError(
                f"{self.stream.name}: a window at frame {int(starts[first])} was asked of "
                f"{self.ids[int(indices[first])]!r}, which has {int(self.lengths[indices[first]])}."
            )
        counts = left.clamp(max=length)
        held = self._held()
        if held is None:
            frames = self._read(indices, starts, counts, length)
        else:
            # Frame 0 of what is held is zeros: the padding of every window points to it.
            at = torch.arange(length)
            rows = torch.where(at < counts[:, None], 1 + self._starts[indices, None] + starts[:, None] + at, 0)
            picked = held.index_select(1, rows.reshape(-1).to(held.device)).to(torch.float32)
            frames = picked.view(len(self.layers), len(indices), length, -1).transpose(0, 1)
        if self._scale is not None:
            frames = frames * self._scale[indices.to(self._scale.device)][:, :, None]
        return frames, counts.to(self.device)

    def _held(self) -> torch.Tensor | None:
        """Return ``(layers, 1 + frames, dim)`` as stored, on the device; None where frames stay on disk."""
        if self._flat is None:
            if np.dtype(self.stream.spec.dtype) == np.int8 and self._scale is None:
                self._scale = self._to_device(self.stream.array(dtypes.SCALE, self.ids)[:, self.layers])
            shape = (len(self.layers), 1 + int(self.lengths.sum()), self.stream.spec.dim)
            num_bytes = int(np.prod(shape)) * np.dtype(self.stream.spec.dtype).itemsize
            if self._place == "disk" or (self._place == "auto" and num_bytes > _SHARE_OF_MEMORY * self._free_bytes()):
                self._place = "disk"
                return None
            flat = np.zeros(shape, self.stream.spec.dtype)
            for name, start, length in zip(self.ids, self._starts.tolist(), self.lengths.tolist(), strict=True):
                flat[:, 1 + start : 1 + start + length] = self.stream.stored_window(name, 0, length, self.layers)
            self._flat = torch.from_numpy(flat).to(self.device)
        return self._flat

    def _read(self, indices: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor, length: int) -> torch.Tensor:
        batch = np.zeros((len(indices), len(self.layers), length, self.stream.spec.dim), np.float32)
        rows = zip(indices.tolist(), starts.tolist(), counts.tolist(), strict=True)
        for row, (index, start, count) in enumerate(rows):
            batch[row, :, :count] = self.stream.stored_window(self.ids[index], start, count, self.layers)
        return self._to_device(batch)

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _free_bytes(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
