"""Members of a job: models of one shape that train side by side, each with its own weights and settings.

Small heads spend their time on overhead, not on arithmetic. Stacked along a member axis, folds x layers x learning
rates cost little more than one model; the numbers are those of each trained alone (a test pins it down to 1e-5).
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state

State = dict[str, torch.Tensor]


class Members:
    """Modules of one architecture, stacked along a member axis.

    Args:
        modules: one for each member. With several, their forward pass is vectorised by ``torch.vmap``.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._module = modules[0]
        parameters, buffers = stack_module_state(list(modules))
        self._parameters: State = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        self._buffers: State = buffers
        self._names = list(self._parameters)
        self.size = len(modules)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Parameters, each ``(members, ...)``."""
        return list(self._parameters.values())

    def train(self, mode: bool) -> None:
        """Switch dropout and the like on or off."""
        self._module.train(mode)

    def __call__(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return logits ``(members, batch, classes)`` of a batch whose first axis is the members."""
        if self.size == 1:
            return self.one(0, tuple(item[0] for item in batch))[None]

        def forward(parameters: State, buffers: State, *items: torch.Tensor) -> torch.Tensor:
            return functional_call(self._module, (parameters, buffers), items)

        return torch.vmap(forward, randomness="different")(self._parameters, self._buffers, *batch)

    def one(self, member: int, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return logits ``(batch, classes)`` of one member."""
        logits: torch.Tensor = functional_call(self._module, self.state(member), batch)
        return logits

    def optimiser(
        self, learning_rate: Sequence[float], weight_decay: Sequence[float], gradient_clip: float | None
    ) -> "MemberAdamW":
        """Return what updates the members, each with its own rate and decay."""
        device = self.parameters[0].device
        rates, decays = (torch.tensor(values, device=device) for values in (learning_rate, weight_decay))
        return MemberAdamW(self.parameters, rates, decays, gradient_clip)

    def state(self, member: int) -> State:
        """Return one member's parameters and buffers, views of the stacked ones."""
        return {name: value[member] for name, value in (self._parameters | self._buffers).items()}

    def copy(self) -> State:
        """Return copies of all stacked parameters and buffers."""
        return {name: value.detach().clone() for name, value in (self._parameters | self._buffers).items()}

    def keep(self, best: State, members: Sequence[int]) -> None:
        """Copy what some members are now into `best`."""
        rows = torch.tensor(list(members), dtype=torch.int64, device=self.parameters[0].device)
        for name, value in (self._parameters | self._buffers).items():
            best[name][rows] = value.detach()[rows]

    def load(self, state: State) -> None:
        """Become what :meth:`copy` returned."""
        with torch.no_grad():
            for name, value in (self._parameters | self._buffers).items():
                value.copy_(state[name])


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

    def one(self, member: int, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return logits ``(batch, classes)``."""
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
            own = {name: state[f"{number}/{name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
            device = parameter.device
            self._optimiser.state[parameter] = {name: value.to(device) for name, value in own.items()}

    def step(self) -> None:
        """Update every parameter by its gradient, and clear the gradients."""
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)


class MemberAdamW:
    """AdamW (Loshchilov & Hutter 2019), as ``torch.optim.AdamW``, with a rate and a decay for each member.

    Args:
        parameters: each ``(members, ...)``.
        learning_rate: ``(members,)``.
        weight_decay: ``(members,)``.
        gradient_clip: largest norm of one member's gradient over all of its parameters; None is no bound.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        learning_rate: torch.Tensor,
        weight_decay: torch.Tensor,
        gradient_clip: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self._parameters = list(parameters)
        self._rate = learning_rate[:, None]
        self._decay = weight_decay[:, None]
        self._clip = gradient_clip
        self._betas = betas
        self._eps = eps
        self._step = 0
        self._first = [torch.zeros_like(_rows(parameter)) for parameter in self._parameters]
        self._second = [torch.zeros_like(_rows(parameter)) for parameter in self._parameters]

    def state(self) -> State:
        """Return all that later steps depend on."""
        moments = {"first": self._first, "second": self._second}
        named = {f"{number}/{name}": value for name, all_ in moments.items() for number, value in enumerate(all_)}
        return named | {"step": torch.tensor(self._step)}

    def load(self, state: State) -> None:
        """Become what :meth:`state` returned."""
        self._step = int(state["step"])
        for name, moments in {"first": self._first, "second": self._second}.items():
            for number, value in enumerate(moments):
                value.copy_(state[f"{number}/{name}"])

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter by its gradient, and clear the gradients."""
        self._step += 1
        beta1, beta2 = self._betas
        gradients = [_rows(parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        if self._clip is not None:
            # As torch.nn.utils.clip_grad_norm_ does.
            norm = torch.stack([gradient.square().sum(1) for gradient in gradients]).sum(0).sqrt()
            factor = (self._clip / (norm + 1e-6)).clamp(max=1.0)[:, None]
            for gradient in gradients:
                gradient.mul_(factor)
        correction1, correction2 = 1 - beta1**self._step, 1 - beta2**self._step
        for parameter, gradient, first, second in zip(
            self._parameters, gradients, self._first, self._second, strict=True
        ):
            values = _rows(parameter)
            values.mul_(1 - self._rate * self._decay)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (second / correction2).sqrt_().add_(self._eps)
            values.sub_(first / denominator * (self._rate / correction1))
            parameter.grad = None


def _rows(values: torch.Tensor) -> torch.Tensor:
    """Return ``(members, all the rest)`` of a contiguous tensor, as a view."""
    return values.view(len(values), -1)
