"""Which utterances a step reads: shuffled passes over a training part, cut into batches."""

import hashlib
import math

import torch

from heads.fit_settings import FitSettings

_POOL = 50
"""Batches that are sorted by length together: enough for tight ones, few enough for other neighbours in each pass."""


class Order:
    """Batches of one fold: one shuffled pass over its training part after another.

    What is left of a pass begins the next, so every batch is whole, and every utterance is read once a pass. Where
    batches are of like length, the one that begins a pass is not.

    Args:
        train: ``(utterances,)`` positions of the training part.
        fold: its fold's name; the order follows from it and the seed.
        settings: how to train.
        sizes: ``(positions,)`` length of every utterance of the task, in any unit, for batches of like length; None
            draws each batch from the whole pass.

    Attributes:
        left: ``(utterances,)`` what is left of passes that were begun.
        generator: shuffles.
    """

    def __init__(
        self, train: torch.Tensor, fold: str, settings: FitSettings, sizes: torch.Tensor | None = None
    ) -> None:
        self._train, self._size, self._sizes = train, settings.batch_size, sizes
        self.left = torch.empty(0, dtype=torch.int64)
        self.generator = generator(settings, fold)

    def next(self) -> torch.Tensor:
        """Return the next batch, ``(batch,)`` positions."""
        while len(self.left) < self._size:
            shuffled = self._train[torch.randperm(len(self._train), generator=self.generator)]
            if self._sizes is not None:
                # What is left of a pass is made a whole batch, or an utterance would meet itself in a bucket.
                first = -len(self.left) % self._size
                shuffled = torch.cat([shuffled[:first], self._bucketed(shuffled[first:], self._sizes)])
            self.left = torch.cat([self.left, shuffled])
        batch, self.left = self.left[: self._size], self.left[self._size :]
        return batch

    def _bucketed(self, positions: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """Return positions such that batches of like length follow one another in random order."""
        whole = len(positions) // self._size * self._size
        batches: list[torch.Tensor] = []
        for pool in positions[:whole].split(_POOL * self._size):
            batches += pool[sizes[pool].argsort(stable=True)].split(self._size)
        order = torch.randperm(len(batches), generator=self.generator).tolist()
        return torch.cat([*(batches[number] for number in order), positions[whole:]])


def generator(settings: FitSettings, name: str) -> torch.Generator:
    """Return random numbers that follow from the seed and a name alone."""
    key = hashlib.blake2b(f"{settings.seed} {name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(key))


def unit_steps(settings: FitSettings, num_train: int) -> int:
    """Return the optimiser steps of one unit: 1, or those nearest to a pass over a training part, at least one."""
    if settings.unit == "step":
        return 1
    return max(1, math.floor(num_train / (settings.batch_size * settings.accumulate) + 0.5))


def num_steps(settings: FitSettings, num_train: int) -> int:
    """Return the optimiser steps of a training on so many utterances."""
    return settings.steps * unit_steps(settings, num_train)


def rate_factor(settings: FitSettings, unit: int) -> float:
    """Return what the learning rate is multiplied by in a unit.

    Args:
        settings: how to train.
        unit: units done before: 0 in the first step or epoch.
    """
    if settings.halve_from is None or unit < settings.halve_from:
        return 1.0
    return float(0.5 ** (1 + (unit - settings.halve_from) // settings.halve_every))
