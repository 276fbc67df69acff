"""The gate before the optimizer: it steps on what a committed step released, and nothing else."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxperex.errors import ConfigError, CoverageError, DivergedError, LedgerError

# Optimizers with a gate, kept beside them: nothing is hung on the user's object but torch's hook.
_gated: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class Gate:
    """Holds an optimizer over exactly `parameters`, which has no other gate until `close`.

    Raises ConfigError, CoverageError, or LedgerError if there is another.
    """

    def __init__(self, optimizer: torch.optim.Optimizer,
                 parameters: dict[str, nn.Parameter]) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError("optimizer must be a torch.optim.Optimizer; got "
                              f"{type(optimizer).__name__}")
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ConfigError(f"{type(optimizer).__name__} evaluates the loss several times per "
                              "step, unseen by the account; use SGD, Adam or another first-order "
                              "optimizer")
        if optimizer in _gated:
            raise LedgerError("this optimizer belongs to an engine that was not closed, and steps "
                              "on that engine's releases alone. Call close() of the older engine "
                              "first (or make it as `with PrivacyEngine(...) as engine:`), or make "
                              "a new optimizer. What both spend adds up")
        self.optimizer, self._parameters = optimizer, parameters
        self._released: list[Tensor] | None = None
        self.check()
        self._handle = optimizer.register_step_pre_hook(self._guard)
        _gated.add(optimizer)
        self._holds = True

    def check(self) -> None:
        """Raises CoverageError unless the optimizer holds exactly the private parameters."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        names = {id(p): n for n, p in self._parameters.items()}
        missing = [n for i, n in names.items() if i not in held]
        extra = len(held - names.keys())
        if missing or extra:
            raise CoverageError("the optimizer must hold exactly the parameters of the private "
                                f"step; it lacks {missing or 'none'} and holds {extra} others. "
                                "Make it over private.parameters.values()")

    def update(self, released: Sequence[Tensor]) -> None:
        """One optimizer step on the noised means `released`.

        Raises DivergedError if parameters come out not finite.
        """
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
            raise DivergedError(f"after this update {', '.join(bad[:5])} is not finite; the step "
                                "is spent. Go back to a checkpoint with a smaller learning rate")

    def clear(self) -> None:
        for p in self._parameters.values():
            p.grad = None

    def close(self) -> None:
        """Lets the optimizer step unguarded, or another engine have it."""
        if self._holds:
            self._holds = False
            self._handle.remove()
            _gated.discard(self.optimizer)

    def _guard(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        ours = self._released is not None and all(
            p.grad is r for p, r in zip(self._parameters.values(), self._released, strict=True))
        if not ours:
            raise LedgerError("optimizer.step() was called outside a committed logical step, or "
                              "its gradients were changed (a GradScaler does both): what is in "
                              ".grad has no noise. Let the engine step")
