"""Views: cached frames and stats as tensors, for a set of utterances.

A training batch is one gather. Where the frames wanted fit into memory they are held there, as stored, laid one
utterance after the other; otherwise each window is read from the maps of the cache. Either way torch converts it as it
copies it into the batch: it does so at the speed of the copy, NumPy at a tenth of that.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from featcache import dtypes
from featcache.cache import CachedStream
from featcache.errors import CacheError
from featcache.memory import available_bytes

Place = Literal["auto", "disk", "memory"]
_SHARE_OF_MEMORY = 0.4
_AHEAD = 8
"""Windows that the system is asked to read before the first of them is copied."""
_SMALL_WINDOW = 32 * 2**10
"""Bytes of a window, as stored, up to which all of them are picked at once, and not one after the other."""


class Buffer:
    """Memory that batches take turns in: page faults on fresh memory cost more than filling it.

    What a :class:`View` gave with a buffer is valid until the next call with the same one, which overwrites it. So in
    training the backward pass comes before the next batch, and what is to be kept is cloned. Threads that read at the
    same time need a buffer, and a view, each.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def take(self, shape: Sequence[int], dtype: torch.dtype, pinned: bool = False) -> torch.Tensor:
        """Return an uninitialised tensor on the CPU that starts where the last one started.

        Args:
            shape: its shape.
            dtype: its type.
            pinned: whether a GPU is to copy from it.
        """
        size = math.prod(shape) * dtype.itemsize
        if self._memory.nbytes < size:
            self._memory = torch.empty(0, dtype=torch.uint8)  # gives the old back before there is a new one
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        return self._memory[:size].view(dtype).view(tuple(shape))


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

    def padded(self, indices: torch.Tensor, buffer: Buffer | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whole utterances, zero-padded at the end to the longest.

        Args:
            indices: ``(batch,)`` positions in :attr:`ids`.
            buffer: as in :meth:`windows`.

        Returns:
            Frames ``(batch, layers, frames, dim)`` float32, and their lengths ``(batch,)``.
        """
        longest = int(self.lengths[indices.cpu()].max())
        return self.windows(indices, torch.zeros_like(indices), longest, buffer)

    def windows(
        self, indices: torch.Tensor, starts: torch.Tensor, length: int, buffer: Buffer | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one window of each utterance, zero-padded at the end where the utterance ends first.

        Args:
            indices: ``(batch,)`` positions in :attr:`ids`.
            starts: ``(batch,)`` first frame of each window, inside its utterance.
            length: frames in a window.
            buffer: memory that the frames may lie in, until the next call with the same buffer; None gives every call
                its own.

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
        buffer = Buffer() if buffer is None else buffer
        shape = (len(indices), len(self.layers), length, self.stream.spec.dim)
        scale = self._scales(indices)
        held = self._held()
        if held is not None and math.prod(shape[1:]) * held.itemsize <= _SMALL_WINDOW:
            frames = _pick(held, 1 + self._starts[indices] + starts, counts, length).to(torch.float32)
        elif held is not None:
            at = (1 + self._starts[indices] + starts).tolist()
            windows = (held[:, first : first + count] for first, count in zip(at, counts.tolist(), strict=True))
            on_cpu = self.device.type == "cpu"
            frames = buffer.take(shape, torch.float32) if on_cpu else torch.empty(shape, device=self.device)
            _fill(frames, windows)
        elif self.device.type == "cpu":
            frames = buffer.take(shape, torch.float32)
            _fill(frames, self._read(indices, starts, counts))
        else:  # it goes over as stored, which is less, and is converted there
            staged = buffer.take(shape, self._stored_dtype(), pinned=self.device.type == "cuda")
            _fill(staged, self._read(indices, starts, counts))
            frames = staged.to(self.device).to(torch.float32)
        return (frames if scale is None else frames.mul_(scale)), counts.to(self.device)

    def _held(self) -> torch.Tensor | None:
        """Return ``(layers, 1 + frames, dim)`` as stored, on the device; None where frames stay on disk.

        Frame 0 is zeros, for what lies behind an utterance.
        """
        if self._flat is None and self._place != "disk":
            shape = (len(self.layers), 1 + int(self.lengths.sum()), self.stream.spec.dim)
            num_bytes = math.prod(shape) * self._stored_dtype().itemsize
            if self._place == "auto" and num_bytes > _SHARE_OF_MEMORY * self._free_bytes():
                self._place = "disk"
                return None
            flat = torch.empty(shape, dtype=self._stored_dtype(), device=self.device)
            flat[:, 0] = 0
            order = torch.tensor(sorted(range(len(self.ids)), key=self._place_on_disk), dtype=torch.int64)
            windows = self._read(order, torch.zeros_like(order), self.lengths[order])
            for start, window in zip((1 + self._starts[order]).tolist(), windows, strict=True):
                flat[:, start : start + window.shape[1]].copy_(window)
            self._flat = flat
        return self._flat

    def _read(self, indices: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor) -> Iterator[torch.Tensor]:
        """Give windows ``(layers, frames, dim)`` as stored, in order, most of them views of files."""
        rows = zip(indices.tolist(), starts.tolist(), counts.tolist(), strict=True)
        windows = (
            self.stream.stored_window(self.ids[index], start, count, self.layers) for index, start, count in rows
        )
        return map(_shared, _ahead(windows, _AHEAD))

    def _scales(self, indices: torch.Tensor) -> torch.Tensor | None:
        """Return what int8 frames are multiplied by, ``(batch, layers, 1, dim)``; None for other types."""
        if np.dtype(self.stream.spec.dtype) != np.int8:
            return None
        if self._scale is None:
            self._scale = self._to_device(self.stream.array(dtypes.SCALE, self.ids)[:, self.layers])
        return self._scale[indices.to(self.device)][:, :, None]

    def _stored_dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.stream.spec.dtype)).dtype

    def _place_on_disk(self, number: int) -> tuple[str, int]:
        located = self.stream.locate(self.ids[number])
        return located.index.name, located.entry.start

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _free_bytes(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return available_bytes()


def _fill(batch: torch.Tensor, windows: Iterable[torch.Tensor]) -> None:
    """Copy windows ``(layers, frames, dim)`` into the rows of a batch; zeros behind them."""
    for row, window in zip(batch, windows, strict=True):
        count = window.shape[1]
        row[:, :count].copy_(window)
        row[:, count:].zero_()


def _pick(held: torch.Tensor, first: torch.Tensor, counts: torch.Tensor, length: int) -> torch.Tensor:
    """Return what :func:`_fill` gives, by one indexing: for windows that are not worth a call each.

    Args:
        held: ``(layers, frames, dim)``; frame 0 is zeros.
        first: ``(batch,)`` each window's first frame.
        counts: ``(batch,)`` how many of its frames are real.
        length: frames in a window.
    """
    at = torch.arange(length)
    rows = torch.where(at < counts[:, None], first[:, None] + at, 0).to(held.device)
    picked = held.index_select(1, rows.flatten())
    return picked.view(len(held), *rows.shape, held.shape[2]).transpose(0, 1)


def _ahead(windows: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Give the same, but have the next `count` begun before each is given."""
    begun: deque[np.ndarray] = deque()
    for window in windows:
        begun.append(window)
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


class _Shared:
    """An array as others may see it: writable, since torch warns of what is not. Nobody writes to it here."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def _shared(array: np.ndarray) -> torch.Tensor:
    """Return a tensor in the same memory."""
    return torch.from_numpy(np.asarray(_Shared(array)))
