"""MLP probe: linear layers on a few consecutive frames, to ask what a stream holds.

Source: Makiuchi, Uto and Shinoda 2021, section 6.2 (https://doi.org/10.1109/ASRU51503.2021.9688036): four linear layers
of 2048, 1024, 1024 and as many neurons as there are speakers, on the codes of their speech model. What the paper leaves
out is taken from the authors' published code (https://github.com/mmakiuchi/multimodal_emotion_recognition,
``analysis/cls_helpers.py``): softplus behind each hidden layer; a window's codes are one row; an utterance's rows add
up their probabilities.

Where this departs from the published code:

- A step draws one row of each utterance of its batch; the code takes a step for every row in turn, so that there a long
  utterance counts for more.
- The best step on validation is kept; the code keeps the last, after ten passes.
- There are as many outputs as classes in train, the paper's 8; the code has 10, of which a fold never sees two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from featcache.cache import CachedStream
from featcache.errors import ConfigError, StreamError
from heads.head import GradientHead, chosen_layers
from heads.inputs import Inputs
from heads.task import Task

_ACTIVATIONS: Mapping[str, type[nn.Module] | None] = {"softplus": nn.Softplus, "relu": nn.ReLU, "none": None}
_MOST_ROWS = 1024
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class MlpProbe(GradientHead["RowInputs"]):
    """Linear layers on groups of consecutive frames of one layer.

    Attributes:
        hidden: width of each hidden layer; none makes the probe linear.
        activation: behind each hidden layer.
        frames: consecutive frames that are flattened into one row; 0 is what the stream says (``blocks``: a window of
            codes), or 1 where it says nothing.
        layer: the layer read: a position, negative from the end.
    """

    title: ClassVar[str] = "linear layers on windows of codes, or on frames, to ask what they hold"
    tier: ClassVar[Literal["frames", "stats"]] = "frames"
    stacked: ClassVar[bool] = False

    hidden: tuple[int, ...] = (2048, 1024, 1024)
    activation: Literal["softplus", "relu", "none"] = "softplus"
    frames: int = 0
    layer: int = -1

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden) or self.frames < 0:
            raise ConfigError(
                f"mlp_probe needs hidden layers of 1 or more and frames of 0 or more, got hidden {self.hidden} and "
                f"frames {self.frames}."
            )

    def inputs(self, task: Task) -> "RowInputs":
        """Return the rows."""
        stream = self.source(task)
        [layer] = chosen_layers(self.layer, len(stream.spec.layers), self.kind())
        return RowInputs(task, stream, self._frames(stream), layer)

    def shapes(self, task: Task) -> dict[str, int]:
        """Return the arguments of :meth:`module` for a task."""
        return super().shapes(task) | {"frames": self._frames(self.source(task))}

    def of_classes(self) -> str:
        """Return the last layer's name."""
        return f"{len(self.hidden) * (1 if _ACTIVATIONS[self.activation] is None else 2)}."

    def module(self, num_layers: int, dim: int, num_classes: int, frames: int = 0) -> nn.Sequential:
        """Return a fresh probe: ``(batch, frames * dim)`` to logits ``(batch, classes)``.

        Args:
            num_layers: layers of the stream; one is read.
            dim: size of a frame.
            num_classes: number of classes.
            frames: frames in a row; 0 is what the settings say, or 1.
        """
        activation = _ACTIVATIONS[self.activation]
        blocks: list[nn.Module] = []
        size = self._size(dim, frames)
        for width in self.hidden:
            blocks += [nn.Linear(size, width), *([] if activation is None else [activation()])]
            size = width
        return nn.Sequential(*blocks, nn.Linear(size, num_classes))

    def example(self, shapes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a batch of two rows."""
        return (torch.zeros(2, self._size(shapes["dim"], shapes.get("frames", 0))),)

    def _frames(self, stream: CachedStream) -> int:
        blocks: Any = stream.spec.settings.get("blocks", 1)
        return self.frames or int(blocks)

    def _size(self, dim: int, frames: int) -> int:
        return (frames or self.frames or 1) * dim


@dataclass
class RowInputs(Inputs):
    """Rows of all items of a task: groups of consecutive frames, flattened; an utterance's last one is zero-padded.

    An item is an utterance with all of its rows; or, in a task of frames, the one row that a frame lies in.

    Attributes:
        task: the task.
        stream: what is read.
        frames: frames in a row.
        layer: position of the layer read.
        counts: ``(items,)`` rows of each item.

    Raises:
        StreamError: a place of the task lies outside its utterance; names it.
    """

    task: Task
    stream: CachedStream
    frames: int
    layer: int
    counts: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        places = self.task.places
        names = list(dict.fromkeys(name for name, _ in places)) if places else list(self.task.ids)
        self._view = self.task.view(self.stream, names, [self.layer])
        if not places:
            self._utterances = torch.arange(len(names))
            self._first = torch.zeros_like(self._utterances)
            self.counts = -(-self._view.lengths // self.frames)
            return
        positions = {name: number for number, name in enumerate(names)}
        self._utterances = torch.tensor([positions[name] for name, _ in places])
        at = torch.tensor([frame for _, frame in places])
        outside = torch.nonzero((at < 0) | (at >= self._view.lengths[self._utterances]))
        if len(outside):
            name, frame = places[int(outside[0])]
            raise StreamError(
                f"{self.task.ids[int(outside[0])]!r} stands for frame {frame} of {name!r}, which has "
                f"{self.stream.num_frames(name)} in {self.stream.name}."
            )
        self._first = at // self.frames
        self.counts = torch.ones_like(at)

    def batch(self, indices: torch.Tensor, layers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return the first row of each item, ``(1, batch, frames * dim)``."""
        return (self._rows(indices[0], torch.zeros_like(indices[0]))[None],)

    def training_batch(
        self, indices: torch.Tensor, layers: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, ...]:
        """Return one row of each item, drawn at random, ``(1, batch, frames * dim)``."""
        chosen = indices[0]
        counts = self.counts[chosen]
        drawn = (torch.rand(len(chosen), generator=generator) * counts).long()
        return (self._rows(chosen, torch.minimum(drawn, counts - 1))[None],)

    def scored(
        self, positions: torch.Tensor, layers: torch.Tensor | None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return every row of items, ``(rows, frames * dim)``, and whose each is."""
        counts = self.counts[positions]
        owners = torch.repeat_interleave(torch.arange(len(positions)), counts)
        first = torch.cumsum(counts, 0) - counts
        return (self._rows(positions[owners], torch.arange(len(owners)) - first[owners]),), owners

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return items in order: together about 64 MiB, at most 1024 rows, or one that alone has more."""
        most = max(1, min(_MOST_ROWS, _MOST_BYTES // (4 * self.frames * self.stream.spec.dim)))
        chunks: list[list[int]] = []
        room = 0
        for number, count in enumerate(self.counts[positions].tolist()):
            if count > room or not chunks:
                chunks.append([])
                room = most
            chunks[-1].append(number)
            room -= count
        return [torch.tensor(chunk) for chunk in chunks]

    def _rows(self, chosen: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Return the row of each item that has that number among its own, ``(batch, frames * dim)``."""
        starts = (self._first[chosen] + numbers) * self.frames
        frames, _ = self._view.windows(self._utterances[chosen], starts, self.frames)
        return frames[:, 0].flatten(1)
