"""Members of a job: models of one shape that train side by side, each with its own weights and settings.

Small heads spend their time on overhead, not on arithmetic. Stacked along a member axis, the candidates of a fold
(layers x learning rates x weight decays) read each batch once and cost little more than one model; the numbers are
those of each trained alone (a test pins it down to 1e-5).
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from featcache.errors import ConfigError

State = dict[str, torch.Tensor]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


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
        self._parameters: State = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        # What is the same for all is kept once, or it would make a copy of the batch for each member.
        self._buffers: State = {
            name: value[:1].clone() if bool((value == value[:1]).all()) else value for name, value in buffers.items()
        }
        self.size = len(modules)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Parameters, each ``(members, ...)``."""
        return list(self._parameters.values())

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
        self, learning_rate: Sequence[float], weight_decay: Sequence[float], gradient_clip: float | None
    ) -> "MemberAdamW":
        """Return what updates the members, each with its own rate and decay."""
        return MemberAdamW(self.parameters, learning_rate, weight_decay, gradient_clip)

    def state(self, member: int) -> State:
        """Return one member's parameters and buffers, views of the stacked ones."""
        own = {name: value[member] for name, value in self._parameters.items()}
        return own | {name: value[member if len(value) > 1 else 0] for name, value in self._buffers.items()}

    def copy(self) -> State:
        """Return copies of all stacked parameters and buffers."""
        return {name: value.detach().clone() for name, value in (self._parameters | self._buffers).items()}

    def keep(self, best: State, members: Sequence[int]) -> None:
        """Copy what some members are now into `best`; buffers do not change in training."""
        rows = torch.tensor(list(members), dtype=torch.int64, device=self.parameters[0].device)
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
    def parameters(self) -> list[torch.Tensor]:
        """The module's parameters."""
        return list(self._module.parameters())

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
        self, learning_rate: Sequence[float], weight_decay: Sequence[float], gradient_clip: float | None
    ) -> "AloneAdamW":
        """Return what updates the module."""
        return AloneAdamW(self.parameters, learning_rate[0], weight_decay[0], gradient_clip)

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


class AloneAdamW:
    """``torch.optim.AdamW`` and the bound on the gradient's norm, in the form of :class:`MemberAdamW`."""

    def __init__(
        self, parameters: Sequence[torch.Tensor], learning_rate: float, weight_decay: float, gradient_clip: float | None
    ) -> None:
        self._parameters = list(parameters)
        self._clip = gradient_clip
        self._optimiser = torch.optim.AdamW(self._parameters, learning_rate, weight_decay=weight_decay, fused=True)

    def state(self) -> State:
        """Return all that later steps depend on."""
        return {
            f"{number}/{name}": value
            for number, parameter in enumerate(self._parameters)
            for name, value in self._optimiser.state[parameter].items()
        }

    def load(self, state: State) -> None:
        """Become what :meth:`state` returned."""
        for number, parameter in enumerate(self._parameters):
            own = {name: state[f"{number}/{name}"] for name in _MOMENTS}
            device = parameter.device
            self._optimiser.state[parameter] = {name: value.to(device) for name, value in own.items()}

    def step(self) -> None:
        """Update every parameter by its gradient, and clear the gradients."""
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)


class MemberAdamW:
    """``torch.optim.AdamW``, fused, with a rate, a decay and a bound on the gradient's norm for each member.

    Args:
        parameters: each ``(members, ...)``.
        learning_rate: of each member.
        weight_decay: of each member.
        gradient_clip: largest norm of one member's gradient over all of its parameters; None is no bound.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        learning_rate: Sequence[float],
        weight_decay: Sequence[float],
        gradient_clip: float | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self._clip = gradient_clip
        # Neighbours of the same settings are updated as one tensor.
        settings = list(zip(learning_rate, weight_decay, strict=True))
        runs = [list(run) for _, run in groupby(range(len(settings)), key=lambda member: settings[member])]
        self._sizes = [len(run) for run in runs]
        self._views = [parameter.detach().split(self._sizes) for parameter in self._parameters]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": list(views), "lr": settings[run[0]][0], "weight_decay": settings[run[0]][1]}
                for run, views in zip(runs, zip(*self._views, strict=True), strict=True)
            ],
            fused=True,
        )

    def state(self) -> State:
        """Return all that later steps depend on."""
        return {
            f"{number}/{run}/{name}": value
            for number, views in enumerate(self._views)
            for run, view in enumerate(views)
            for name, value in self._optimiser.state[view].items()
        }

    def load(self, state: State) -> None:
        """Become what :meth:`state` returned."""
        for number, views in enumerate(self._views):
            for run, view in enumerate(views):
                self._optimiser.state[view] = {
                    name: state[f"{number}/{run}/{name}"].to(view.device) for name in _MOMENTS
                }

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter by its gradient, and clear the gradients."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if self._clip is not None:
            # As torch.nn.utils.clip_grad_norm_ does.
            norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
            factor = (self._clip / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))
        for views, gradient in zip(self._views, gradients, strict=True):
            for view, own in zip(views, gradient.split(self._sizes), strict=True):
                view.grad = own
        self._optimiser.step()
        for parameter in self._parameters:
            parameter.grad = None
