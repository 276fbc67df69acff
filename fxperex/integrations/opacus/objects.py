"""The objects that stand for the user's own in the loop: model, optimizer, data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from fxperex.errors import ConfigError
from fxperex.integrations.opacus.rows import plain
from fxperex.integrations.opacus.run import Run
from fxperex.privacy.checks import whole_number


class PrivateModule(nn.Module):
    """Holds the user's module, unchanged, as `_module`.

    In evaluation mode or under no_grad it returns what the module returns. In training it returns a
    formula of the batch (see `values`).
    """

    def __init__(self, module: nn.Module, run: Run) -> None:
        super().__init__()
        self._module, self.run = module, run
        self.training = module.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            return self.run.call(args, kwargs)
        args, kwargs = pytree.tree_map(plain, (args, kwargs))
        return self._module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_module"), name)

    def to_standard_module(self) -> nn.Module:
        """Returns the user's module."""
        return self._module


class PrivateOptimizer(torch.optim.Optimizer):
    """The user's optimizer, which steps on private means alone, once all parts of a draw are in.

    noise_multiplier and max_grad_norm may be set between steps; schedulers do.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, run: Run) -> None:
        # Not the base's: parameters, state and settings stay in the user's optimizer.
        self.original_optimizer, self.run = optimizer, run

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.original_optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.original_optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.original_optimizer.defaults

    @property
    def noise_multiplier(self) -> float:
        return self.run.noise_multiplier

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        self.run.noise_multiplier = value

    @property
    def max_grad_norm(self) -> Any:
        return self.run.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: Any) -> None:
        self.run.max_grad_norm = value

    @property
    def expected_batch_size(self) -> float:
        return self.run.asked.expected_batch

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Adds noise and updates if this was the last part of a draw; else waits for the others.

        Raises an FxperexError.
        """
        if closure is not None:
            raise ConfigError("a private optimizer takes no closure: it would evaluate the loss "
                              "unseen by the account")
        self.run.update()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears `.grad`, which holds the private mean after a step; a step's sum is not there."""
        self.original_optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.original_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.original_optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises ConfigError: the noise covers the parameters that were there."""
        raise ConfigError("parameters cannot join a private optimizer: the step and its noise were "
                          "made for those it has. Call make_private again")

    def __repr__(self) -> str:
        return f"PrivateOptimizer({self.original_optimizer!r})"


class PrivateLoader:
    """Iterating it draws the batches of one epoch, rows on the model's device. Its length is the
    number of steps of an epoch.
    """

    def __init__(self, data_loader: DataLoader[Any], run: Run, most: int | None = None) -> None:
        self.original, self.run, self._most = data_loader, run, most

    @property
    def dataset(self) -> Any:
        return self.original.dataset

    @property
    def sample_rate(self) -> float:
        """The share of the rows that a step draws, in the mean."""
        return self.run.asked.expected_batch / self.run.rows.size

    def __len__(self) -> int:
        return self.run.asked.per_epoch

    def __iter__(self) -> Iterator[list[Tensor]]:
        for _ in range(len(self)):
            yield from self.run.logical_step(self._most)

    def split(self, most: int) -> PrivateLoader:
        """Returns this loader with batches of at most `most` rows."""
        return PrivateLoader(self.original, self.run, most)

    def belongs_to(self, optimizer: PrivateOptimizer) -> bool:
        """Returns whether both came from one make_private."""
        return self.run is optimizer.run


class BatchMemoryManager:
    """A context whose value is the loader with batches of at most `max_physical_batch_size` rows.

    The optimizer updates after the last part of a draw alone. Raises ConfigError.
    """

    def __init__(self, *, data_loader: PrivateLoader, max_physical_batch_size: int,
                 optimizer: PrivateOptimizer) -> None:
        if not isinstance(data_loader, PrivateLoader) or not isinstance(optimizer,
                                                                        PrivateOptimizer):
            raise ConfigError("BatchMemoryManager takes the data loader and the optimizer that "
                              f"make_private returned; got {type(data_loader).__name__} and "
                              f"{type(optimizer).__name__}")
        if not data_loader.belongs_to(optimizer):
            raise ConfigError("this data loader and this optimizer come from two calls of "
                              "make_private; each step needs both of one")
        self._loader = data_loader
        self._most = whole_number(max_physical_batch_size, "max_physical_batch_size", 1)

    def __enter__(self) -> PrivateLoader:
        return self._loader.split(self._most)

    def __exit__(self, *error: object) -> None:
        return None
