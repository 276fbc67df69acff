"""Noise and clipping bounds that change from epoch to epoch, with Opacus' names and arguments.

The account holds every change. A new noise multiplier costs nothing to compute with; a new bound is
a new private step, as long as the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from fxperex.errors import ConfigError
from fxperex.integrations.opacus.objects import PrivateOptimizer


class Scheduler(ABC):
    """Sets a value of the optimizer at every `step()`, as torch's schedulers of learning rates do.

    Raises ConfigError for any but a private optimizer.
    """

    def __init__(self, optimizer: PrivateOptimizer, *, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, PrivateOptimizer):
            raise ConfigError("a scheduler of noise or clipping takes the optimizer that "
                              f"make_private returned; got {type(optimizer).__name__}")
        self.optimizer, self.last_epoch = optimizer, last_epoch
        self.base = self.value
        self.step()

    @property
    @abstractmethod
    def value(self) -> float:
        """The value that is scheduled, as the optimizer has it."""

    @abstractmethod
    def apply(self, value: float) -> None:
        """Sets the value at the optimizer."""

    @abstractmethod
    def next_value(self) -> float:
        """Returns the value of epoch `last_epoch`."""

    def step(self) -> None:
        """Goes to the next epoch."""
        self.last_epoch += 1
        self.apply(self.next_value())

    def state_dict(self) -> dict[str, Any]:
        """Returns epoch and values, without functions."""
        return {"last_epoch": self.last_epoch, "base": self.base, "value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self.last_epoch, self.base = state_dict["last_epoch"], state_dict["base"]
        self.apply(state_dict["value"])


class _Noise(Scheduler):
    @property
    def value(self) -> float:
        return self.optimizer.noise_multiplier

    def apply(self, value: float) -> None:
        self.optimizer.noise_multiplier = value


class _Bound(Scheduler):
    @property
    def value(self) -> float:
        return self.optimizer.max_grad_norm

    def apply(self, value: float) -> None:
        self.optimizer.max_grad_norm = value


class _Exponential(Scheduler):
    """Multiplies the value by gamma in every epoch."""

    def __init__(self, optimizer: PrivateOptimizer, *, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch=last_epoch)

    def next_value(self) -> float:
        return self.value if self.last_epoch == 0 else self.value * self.gamma


class _Step(Scheduler):
    """Multiplies the value by gamma every `step_size` epochs."""

    def __init__(self, optimizer: PrivateOptimizer, *, step_size: int, gamma: float,
                 last_epoch: int = -1) -> None:
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch=last_epoch)

    def next_value(self) -> float:
        turns = self.last_epoch > 0 and self.last_epoch % self.step_size == 0
        return self.value * self.gamma if turns else self.value


class ExponentialNoise(_Exponential, _Noise):
    """noise_multiplier times gamma in every epoch."""


class ExponentialGradClip(_Exponential, _Bound):
    """max_grad_norm times gamma in every epoch."""


class StepNoise(_Step, _Noise):
    """noise_multiplier times gamma every `step_size` epochs."""


class StepGradClip(_Step, _Bound):
    """max_grad_norm times gamma every `step_size` epochs."""


class LambdaNoise(_Noise):
    """The noise multiplier at the start times `noise_lambda(epoch)`."""

    def __init__(self, optimizer: PrivateOptimizer, *, noise_lambda: Callable[[int], float],
                 last_epoch: int = -1) -> None:
        self.noise_lambda = noise_lambda
        super().__init__(optimizer, last_epoch=last_epoch)

    def next_value(self) -> float:
        return self.base * self.noise_lambda(self.last_epoch)


class LambdaGradClip(_Bound):
    """The bound at the start times `scheduler_function(epoch)`."""

    def __init__(self, optimizer: PrivateOptimizer, *, scheduler_function: Callable[[int], float],
                 last_epoch: int = -1) -> None:
        self.scheduler_function = scheduler_function
        super().__init__(optimizer, last_epoch=last_epoch)

    def next_value(self) -> float:
        return self.base * self.scheduler_function(self.last_epoch)
