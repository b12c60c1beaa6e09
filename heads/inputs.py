"""What modules read: features of all utterances of a task, as tensors, from a view of the cache."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from featcache.view import Buffer, View
from heads.layers import Standardise

_EVAL_BATCH = 256
_EVAL_BYTES = 256 * 2**20
_CACHED_BYTES = 4 * 2**20


class Inputs(ABC):
    """Features of all utterances of a task, as tensors for modules."""

    @abstractmethod
    def batch(self, indices: torch.Tensor, layers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return what modules take, for several members at once.

        Args:
            indices: ``(1, batch)`` positions in the task's ids; members of a job share their batches.
            layers: ``(members,)`` the one layer each member reads; None is all layers.

        Returns:
            Tensors whose first two axes are members and batch; 1 member stands for all where they read the same.
        """

    def training_batch(
        self, indices: torch.Tensor, layers: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, ...]:
        """Return what modules take in training, where that is something else: windows drawn at random, targets."""
        return self.batch(indices, layers)

    def scored(
        self, positions: torch.Tensor, layers: torch.Tensor | None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return what one member takes to score utterances, and the utterance of each row.

        Args:
            positions: ``(utterances,)`` positions in the task's ids.
            layers: ``(1,)`` the layer the member reads; None is all layers.

        Returns:
            Tensors whose first axis is rows; and ``(rows,)`` indices into `positions`. The probabilities of an
            utterance's rows are averaged.
        """
        batch = self.batch(positions[None], layers)
        return tuple(item[0] for item in batch), torch.arange(len(positions))

    def sizes(self) -> torch.Tensor | None:
        """Return each utterance's length, ``(utterances,)`` in any unit, for batches of like length; None: unknown."""
        return None

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return how to split utterances into batches that can be scored at once.

        Args:
            positions: ``(utterances,)`` positions in the task's ids.

        Returns:
            Indices into `positions`, ``(batch,)`` each; every index is in one of them, in any order.
        """
        return torch.arange(len(positions)).split(_EVAL_BATCH)


class StatsInputs(Inputs):
    """The stats tier: ``(utterances, layers, dim)`` of the mean, or of mean and standard deviation joined."""

    def __init__(self, view: View, with_std: bool) -> None:
        if with_std:
            self.values = torch.cat(view.stats(), dim=-1)
        else:
            mean = view.array("mean")
            self.values = mean if view.layers == list(range(mean.shape[1])) else mean[:, view.layers]

    def batch(self, indices: torch.Tensor, layers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return ``(1, batch, layers, dim)``, or ``(members, batch, dim)`` of one layer each."""
        # By index_select, which copies rows whole and in parallel; indexing by tensors goes element by element.
        chosen = indices[0].to(self.values.device)
        if layers is None:
            return (self.values.index_select(0, chosen)[None],)
        count = self.values.shape[1]
        rows = (layers.to(chosen.device)[:, None] + count * chosen).flatten()
        return (self.values.flatten(0, 1).index_select(0, rows).view(len(layers), len(chosen), -1),)

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return utterances in order, as many together as a processor's cache holds."""
        row_bytes = 4 * self.values[0].numel()
        return torch.arange(len(positions)).split(max(1, _CACHED_BYTES // row_bytes))

    def standardise(self, module: Standardise, train: torch.Tensor, layer: int | None) -> None:
        """Give a module the mean and standard deviation over a training part, of one layer or of each."""
        [values] = self.batch(train[None], None if layer is None else torch.tensor([layer]))
        std, mean = torch.std_mean(values[0], dim=0, correction=0)
        module.set_from(mean, std)


class FrameInputs(Inputs):
    """Whole utterances, padded: ``(1, batch, layers, frames, dim)`` and lengths ``(1, batch)``; one member only.

    A batch is valid until the next one is read, which lies in the same memory.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.buffer = Buffer()

    def sizes(self) -> torch.Tensor:
        """Return frames of each utterance."""
        return self.view.lengths

    def batch(self, indices: torch.Tensor, layers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return frames and lengths of the one member's batch."""
        frames, lengths = self.view.padded(indices[0], self.buffer)
        return frames[None], lengths[None]

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return utterances of like length together, at most 256 MiB padded, or one that alone is larger."""
        frame_bytes = 4 * len(self.view.layers) * self.view.stream.spec.dim  # padded() gives float32
        return longest_first(frame_bytes * self.view.lengths[positions][None])


def longest_first(sizes: torch.Tensor, most: int | None = None) -> list[torch.Tensor]:
    """Return batches of like size: the largest utterance that is left, and those after it for which there is room.

    Args:
        sizes: ``(streams, utterances)`` what an utterance takes in each stream, in any unit; each is padded by itself.
        most: what a batch may take, padded, over all streams, where it is more than one utterance; None is 256 MiB.

    Returns:
        Positions, ``(batch,)`` each.
    """
    most = _EVAL_BYTES if most is None else most
    order = sizes.sum(dim=0).argsort(descending=True, stable=True)
    batches = []
    while len(order):
        ahead = order[:_EVAL_BATCH]
        padded = sizes[:, ahead].cummax(dim=1).values.sum(dim=0) * torch.arange(1, len(ahead) + 1)
        size = max(1, int((padded <= most).sum()))
        batches.append(order[:size])
        order = order[size:]
    return batches
