"""Members of a job: models of one shape that train side by side, each with its own weights and settings.

Small heads spend their time on overhead, not on arithmetic. Stacked along a member axis, the candidates of a fold
(layers x learning rates x weight decays) read each batch once and cost little more than one model; the numbers are
those of each trained alone (a test pins it down to 1e-5).
"""

from collections.abc import Collection, Sequence
from itertools import groupby

import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from featcache.errors import ConfigError
from heads.fit_settings import FitSettings

State = dict[str, torch.Tensor]


class Members:
    """Modules of one architecture, stacked along a member axis.

    Args:
        modules: one for each member. With several, their forward pass is vectorised by ``torch.vmap``.

    Raises:
        ConfigError: they draw random numbers, of which several jobs at once have one generator.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        if any(isinstance(block, nn.modules.dropout._DropoutNd) for block in modules[0].modules()):
            raise ConfigError(
                "A module with dropout cannot train side by side with others: set the head's stacked to False."
            )
        self._module = modules[0]
        parameters, buffers = stack_module_state(list(modules))
        trained = dict(modules[0].named_parameters())
        self._parameters: State = {
            name: value.detach().requires_grad_(trained[name].requires_grad) for name, value in parameters.items()
        }
        # What is the same for all is kept once, or it would make a copy of the batch for each member.
        self._buffers: State = {
            name: value[:1].clone() if bool((value == value[:1]).all()) else value for name, value in buffers.items()
        }
        self.size = len(modules)

    @property
    def parameters(self) -> State:
        """Parameters that train, by name, each ``(members, ...)``."""
        return {name: value for name, value in self._parameters.items() if value.requires_grad}

    def train(self, mode: bool) -> None:
        """Switch dropout and the like on or off."""
        self._module.train(mode)

    def __call__(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return logits ``(members, batch, classes)`` of a batch whose first axis is the members, or 1 for all."""
        if self.size == 1:
            state = {name: value[0] for name, value in (self._parameters | self._buffers).items()}
            logits: torch.Tensor = functional_call(self._module, state, tuple(item[0] for item in batch))
            return logits[None]

        def forward(parameters: State, buffers: State, *items: torch.Tensor) -> torch.Tensor:
            return functional_call(self._module, (parameters, buffers), items)

        buffers = {name: _axis(value) for name, value in self._buffers.items()}
        items = [_axis(item) for item in batch]
        in_dims = (0, {name: axis for name, (_, axis) in buffers.items()}, *(axis for _, axis in items))
        given = {name: value for name, (value, _) in buffers.items()}
        return torch.vmap(forward, in_dims)(self._parameters, given, *(item for item, _ in items))

    def optimiser(
        self,
        settings: FitSettings,
        learning_rate: Sequence[float],
        weight_decay: Sequence[float],
        pretrained: Collection[str] = (),
    ) -> "Optimiser":
        """Return what updates the members, each with its own rate and decay."""
        return Optimiser(self.parameters, pretrained, settings, learning_rate, weight_decay)

    def state(self, member: int) -> State:
        """Return one member's parameters and buffers, views of the stacked ones."""
        own = {name: value[member] for name, value in self._parameters.items()}
        return own | {name: value[member if len(value) > 1 else 0] for name, value in self._buffers.items()}

    def copy(self) -> State:
        """Return copies of all stacked parameters and buffers."""
        return {name: value.detach().clone() for name, value in (self._parameters | self._buffers).items()}

    def keep(self, best: State, members: Sequence[int]) -> None:
        """Copy what some members are now into `best`; buffers do not change in training."""
        rows = torch.tensor(list(members), dtype=torch.int64, device=next(iter(self._parameters.values())).device)
        for name, value in self._parameters.items():
            best[name][rows] = value.detach()[rows]

    def load(self, state: State) -> None:
        """Become what :meth:`copy` returned."""
        with torch.no_grad():
            for name, value in (self._parameters | self._buffers).items():
                value.copy_(state[name])


def _axis(values: torch.Tensor) -> tuple[torch.Tensor, int | None]:
    """Return values for ``torch.vmap``, and the axis of the members: none where all share them."""
    return (values[0], None) if len(values) == 1 else (values, 0)


class Alone:
    """One module that trains by itself, in the form of :class:`Members`; for what ``torch.vmap`` does not take."""

    size = 1

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @property
    def parameters(self) -> State:
        """The module's parameters that train, by name."""
        return {name: value for name, value in self._module.named_parameters() if value.requires_grad}

    def train(self, mode: bool) -> None:
        """Switch dropout and the like on or off."""
        self._module.train(mode)

    def __call__(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return what the module gives for a batch whose first axis is the one member, in that form."""
        output = self._module(*(item[0] for item in batch))
        return (output[0][None], output[1][None]) if isinstance(output, tuple) else output[None]

    def one(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return logits ``(batch, classes)`` of a batch without the members' axis."""
        logits: torch.Tensor = self._module(*batch)
        return logits

    def optimiser(
        self,
        settings: FitSettings,
        learning_rate: Sequence[float],
        weight_decay: Sequence[float],
        pretrained: Collection[str] = (),
    ) -> "Optimiser":
        """Return what updates the module."""
        return Optimiser(self.parameters, pretrained, settings, learning_rate, weight_decay, alone=True)

    def state(self, member: int) -> State:
        """Return the module's parameters and buffers."""
        return dict(self._module.state_dict())

    def copy(self) -> State:
        """Return copies of all parameters and buffers."""
        return {name: value.clone() for name, value in self._module.state_dict().items()}

    def keep(self, best: State, members: Sequence[int]) -> None:
        """Copy what the module is now into `best`, if it is among `members`."""
        if members:
            for name, value in self._module.state_dict().items():
                best[name].copy_(value)

    def load(self, state: State) -> None:
        """Become what :meth:`copy` returned."""
        self._module.load_state_dict(state)


def average(slots: Sequence[State], counts: Sequence[int], stacked: bool) -> State:
    """Return the mean of each member's own slots; numbers that count something are those of its first.

    Args:
        slots: what :meth:`Members.copy` returned, or :meth:`Alone.copy`.
        counts: ``(members,)`` slots of each member, from the first on; one without any has the first.
        stacked: whether the first axis of every tensor is the members.
    """
    if max(counts) <= 1:
        return slots[0]
    result = {}
    for name, first in slots[0].items():
        if not first.is_floating_point():
            result[name] = first
        elif not stacked:
            result[name] = torch.stack([slot[name].double() for slot in slots[: counts[0]]]).mean(0).to(first.dtype)
        else:
            rows = [
                torch.stack([slot[name][row].double() for slot in slots[: max(1, counts[member])]]).mean(0)
                for row, member in enumerate(range(len(first)) if len(first) > 1 else [0])
            ]
            result[name] = torch.stack(rows).to(first.dtype)
    return result


class Optimiser:
    """``torch.optim.AdamW``, fused, or SGD, with a rate, a decay and a bound on the gradient's norm for each member.

    Args:
        parameters: those that train, by name, each ``(members, ...)``; or without that axis where there is one alone.
        pretrained: names of those that have a rate of their own.
        settings: how to train.
        learning_rate: of each member.
        weight_decay: of each member.
        alone: whether there is one member, without an axis.
    """

    def __init__(
        self,
        parameters: State,
        pretrained: Collection[str],
        settings: FitSettings,
        learning_rate: Sequence[float],
        weight_decay: Sequence[float],
        alone: bool = False,
    ) -> None:
        self._parameters, self._alone = list(parameters.values()), alone
        self._clip = settings.gradient_clip
        # Neighbours of the same settings are updated as one tensor.
        own = list(zip(learning_rate, weight_decay, strict=True))
        runs = [list(run) for _, run in groupby(range(len(own)), key=lambda member: own[member])]
        self._sizes = [len(run) for run in runs]
        self._views = [self._split(parameter.detach()) for parameter in self._parameters]
        apart = settings.pretrained_rate is not None
        kinds = [apart and name in pretrained for name in parameters]
        groups = []
        for number, run in enumerate(runs):
            rate, decay = own[run[0]]
            for kind in sorted(set(kinds)):
                views = [view[number] for view, of in zip(self._views, kinds, strict=True) if of == kind]
                slow = settings.pretrained_rate if kind else None
                groups.append({"params": views, "lr": rate if slow is None else slow, "weight_decay": decay})
        self._optimiser: torch.optim.Optimizer
        if settings.optimiser == "sgd":
            self._optimiser = torch.optim.SGD(groups, momentum=settings.momentum)
        else:
            self._optimiser = torch.optim.AdamW(groups, fused=True)
        self._rates = [float(group["lr"]) for group in self._optimiser.param_groups]

    def state(self) -> State:
        """Return all that later steps depend on."""
        return {
            f"{number}/{run}/{name}": value
            for number, views in enumerate(self._views)
            for run, view in enumerate(views)
            for name, value in self._optimiser.state[view].items()
            if isinstance(value, torch.Tensor)
        }

    def load(self, state: State) -> None:
        """Become what :meth:`state` returned."""
        for key, value in state.items():
            number, run, name = key.split("/")
            view = self._views[int(number)][int(run)]
            self._optimiser.state[view][name] = value.to(view.device)

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """Update every parameter by its gradient, and clear the gradients.

        Args:
            factor: what the rates are multiplied by.
        """
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate
        gradients = [of.grad for of in self._parameters]
        self._bound([gradient for gradient in gradients if gradient is not None])
        for views, gradient in zip(self._views, gradients, strict=True):
            for number, view in enumerate(views):
                view.grad = None if gradient is None else self._split(gradient)[number]
        self._optimiser.step()
        for parameter in self._parameters:
            parameter.grad = None

    def _split(self, values: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return views of neighbours of the same settings."""
        return values[None].split(1) if self._alone else values.split(self._sizes)

    def _bound(self, gradients: Sequence[torch.Tensor]) -> None:
        """Scale each member's gradient to the largest norm allowed, as ``torch.nn.utils.clip_grad_norm_`` does."""
        if self._clip is None or not gradients:
            return
        axes = [gradient[None] if self._alone else gradient for gradient in gradients]
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in axes])
        factors = (self._clip / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for gradient in axes:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
