"""The gate before the optimizer: it steps on what a committed logical step released, and on nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxperex.errors import ConfigError, CoverageError, DivergedError, LedgerError


class Gate:
    """Holds an optimizer over exactly `parameters`. Raises ConfigError or CoverageError."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}")
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ConfigError(f"{type(optimizer).__name__} evaluates the loss several times per step, unseen by the account; "
                              "use SGD, Adam or another first-order optimizer")
        self.optimizer, self._parameters = optimizer, parameters
        self._released: list[Tensor] | None = None
        self.check()
        self._handle = optimizer.register_step_pre_hook(self._guard)

    def check(self) -> None:
        """Raises CoverageError unless the optimizer holds exactly the parameters of the private step."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        names = {id(p): n for n, p in self._parameters.items()}
        missing = [n for i, n in names.items() if i not in held]
        extra = len(held - names.keys())
        if missing or extra:
            raise CoverageError("the optimizer must hold exactly the parameters of the private step; it lacks "
                                f"{missing or 'none'} and holds {extra} others. Make it over private.parameters.values()")

    def update(self, released: Sequence[Tensor]) -> None:
        """One optimizer step on the noised means `released`. Raises DivergedError if parameters come out not finite."""
        parameters = self._parameters.values()
        self._released = [r.to(p.dtype) for r, p in zip(released, parameters, strict=True)]
        try:
            for p, value in zip(parameters, self._released, strict=True):
                p.grad = value
            self.optimizer.step()
        finally:
            self._released = None
        # After the noise, so this looks at nothing private.
        bad = [n for n, p in self._parameters.items() if not bool(torch.isfinite(p).all())]
        if bad:
            raise DivergedError(f"after this update {', '.join(bad[:5])} is not finite; the step is spent. Go back to a "
                                "checkpoint with a smaller learning rate")

    def clear(self) -> None:
        for p in self._parameters.values():
            p.grad = None

    def close(self) -> None:
        self._handle.remove()

    def _guard(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        ours = self._released is not None and all(
            p.grad is r for p, r in zip(self._parameters.values(), self._released, strict=True))
        if not ours:
            raise LedgerError("optimizer.step() was called outside a committed logical step, or its gradients were changed (a "
                              "GradScaler does both): what is in .grad has no noise. Let the engine step")
