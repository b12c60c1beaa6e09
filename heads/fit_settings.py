"""How gradient heads train."""

import math
from dataclasses import dataclass
from typing import Literal

from featcache.errors import ConfigError


@dataclass(frozen=True)
class FitSettings:
    """How gradient heads train. Settings with several values are candidates, chosen on validation fold by fold.

    Attributes:
        steps: optimiser steps.
        batch_size: utterances in a batch.
        learning_rate: of Adam; one or several.
        weight_decay: decoupled (AdamW); one or several.
        gradient_clip: largest norm of a model's gradient; None is no bound.
        eval_every: steps between evaluations on validation; the best one's weights are kept.
        unit: what `steps`, `eval_every`, `halve_from` and `halve_every` count: optimiser steps, or ``"epoch"``: passes
            over the fold's training part, of the number of steps nearest to ``utterances / (batch_size * accumulate)``.
        accumulate: batches whose gradients are averaged for one optimiser step.
        average: weights of so many evaluations, the best on validation, are averaged and taken in place of the best
            one's alone (Morais et al. 2022, section 2.3).
        optimiser: ``"adamw"``, or ``"sgd"`` with `momentum`, whose weight decay is not decoupled.
        momentum: of ``"sgd"``.
        halve_from: the learning rate is halved when so many units are done, and then every `halve_every` units; None
            never halves it.
        halve_every: see `halve_from`.
        pretrained_rate: learning rate of what a head did not begin at random, see
            :meth:`heads.head.GradientHead.pretrained`; None is `learning_rate`. It is halved alike.
        bucketed: batches are of utterances of like length, in random order; see :meth:`heads.inputs.Inputs.sizes`.
        patience: a model that was not better than ever before at so many evaluations in a row is done, even if it
            trains on beside others; None never stops early.
        select_by: metric on validation that chooses weights and candidates: ``"ua"`` or ``"wa"``.
        balanced: weigh classes by the inverse of their frequency in train.
        precision: what modules compute in; ``"bfloat16"`` is mixed precision: weights, losses and the optimiser stay
            float32. It pays where processor or GPU have it in hardware.
        seed: of initial weights, dropout and the order of batches; `pipelines.train_heads` also draws random folds
            and the validation cut from it.
    """

    steps: int = 2000
    batch_size: int = 32
    learning_rate: tuple[float, ...] = (1e-3,)
    weight_decay: tuple[float, ...] = (0.0,)
    gradient_clip: float | None = 1.0
    eval_every: int = 50
    unit: Literal["step", "epoch"] = "step"
    accumulate: int = 1
    average: int = 1
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    halve_from: int | None = None
    halve_every: int = 1
    pretrained_rate: float | None = None
    bucketed: bool = False
    patience: int | None = None
    select_by: Literal["ua", "wa"] = "ua"
    balanced: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "accumulate", "average", "halve_every", "halve_from"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be 0 to below 1, got {self.momentum}.")
        if self.pretrained_rate is not None and not (math.isfinite(self.pretrained_rate) and self.pretrained_rate > 0):
            raise ConfigError(f"pretrained_rate must be positive and finite, or None, got {self.pretrained_rate}.")
        if not self.learning_rate or not all(math.isfinite(rate) and rate > 0 for rate in self.learning_rate):
            raise ConfigError(f"learning_rate needs one or more positive, finite numbers, got {self.learning_rate}.")
        if not self.weight_decay or not all(math.isfinite(decay) and decay >= 0 for decay in self.weight_decay):
            raise ConfigError(f"weight_decay needs one or more finite numbers, 0 or more, got {self.weight_decay}.")
        if self.gradient_clip is not None and not (math.isfinite(self.gradient_clip) and self.gradient_clip > 0):
            raise ConfigError(f"gradient_clip must be positive and finite, or None, got {self.gradient_clip}.")
