"""From a model's states to NumPy arrays: one copy, and on a GPU one that the next batch does not wait for.

An extractor that starts a batch and hands it over later lets a GPU run the next one meanwhile. On the CPU there is
nothing to wait for; the code is the same.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.stream import Extractor, Features

if TYPE_CHECKING:
    import torch


class StagedExtractor(Extractor):
    """An extractor that can start a batch before the one before it was fetched."""

    @abstractmethod
    def start(self, inputs: Sequence[Any]) -> Callable[[], list[Features]]:
        """Start a batch.

        Args:
            inputs: as :meth:`extract` takes them.

        Returns:
            What waits for the batch and returns what :meth:`extract` does; it is called once.

        Raises:
            StreamError: an input cannot be used.
        """

    def extract(self, inputs: Sequence[Any]) -> list[Features]:
        """Compute one batch and wait for it."""
        return self.start(inputs)()


class Staging:
    """Brings states to where NumPy reads them: through page-locked memory and a stream of its own on a GPU."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def start(self, states: "Sequence[torch.Tensor]") -> Callable[[], np.ndarray]:
        """Start to copy.

        Args:
            states: ``(batch, frames, dim)`` of each layer, on one device.

        Returns:
            What waits for the copy and returns ``(batch, layers, frames, dim)`` float32.
        """
        import torch

        # Layers first: each copy then goes to one contiguous block, which a GPU writes without a detour.
        shape, on_gpu = (len(states), *states[0].shape), states[0].is_cuda
        copied = torch.empty(shape, dtype=torch.float32, pin_memory=on_gpu)
        if not on_gpu:
            for layer, state in enumerate(states):
                copied[layer].copy_(state)
            return lambda: copied.numpy().swapaxes(0, 1)
        device = states[0].device
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            for layer, state in enumerate(states):
                copied[layer].copy_(state, non_blocking=True)
                state.record_stream(self._stream)  # its memory is another's only after the copy
            done = self._stream.record_event()

        def finish() -> np.ndarray:
            done.synchronize()
            return copied.numpy().swapaxes(0, 1)

        return finish


def to_device(values: np.ndarray, device: "torch.device", dtype: "torch.dtype | None" = None) -> "torch.Tensor":
    """Return an array on a device; to a GPU without waiting for what it computes."""
    import torch

    tensor = torch.from_numpy(values)
    on_gpu = device.type == "cuda"
    return (tensor.pin_memory() if on_gpu else tensor).to(device, dtype, non_blocking=on_gpu)
