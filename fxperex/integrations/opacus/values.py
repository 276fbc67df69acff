"""What a private model returns in training: a formula of the batch, and numbers only when asked.

`loss.backward()` hands the formula from batch to loss to the private step, which proves that no
example sees another in it. Nothing is computed before; `output.argmax(1)` or `loss.item()` asks for
numbers, which costs a forward pass unless the step has them already.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxperex.errors import ConfigError, StateError
from fxperex.integrations.opacus.rows import plain

# Methods of a tensor whose answer is Python's or numpy's: they need the numbers.
ASKS = frozenset({"item", "tolist", "numpy", "size", "dim", "ndimension", "numel", "stride",
                  "is_floating_point", "is_complex", "element_size", "nelement", "storage",
                  "get_device", "is_contiguous", "data_ptr"})


class Trainer(Protocol):
    """The run that a value belongs to."""

    def note(self, value: Value) -> None:
        """Takes notice of a new value, which may need its numbers before the next update."""

    def numbers(self, value: Value) -> Any:
        """Returns what the model returns for the arguments of `value`. Raises StateError if its
        parameters have changed since.
        """

    def backward(self, loss: Value) -> Tensor:
        """Adds the clipped gradients of `loss` to the step; returns its mean over the rows."""


class Value:
    """A call that was written down: of the model (`function` None), or of a function of torch."""

    def __init__(self, trainer: Trainer, function: Callable[..., Any] | None,
                 args: tuple[Any, ...], kwargs: dict[str, Any], updates: int = 0) -> None:
        self._trainer, self._function = trainer, function
        self._args, self._kwargs, self._updates = args, kwargs, updates
        self._numbers: Any = None
        self._settled = False
        trainer.note(self)

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any,
                           args: tuple[Any, ...] = (), kwargs: Any = None) -> Value:
        return recorded(function, *args, **(kwargs or {}))

    @property
    def call(self) -> tuple[Callable[..., Any] | None, tuple[Any, ...], dict[str, Any]]:
        """The function, its arguments and its keyword arguments. Raises StateError if settled."""
        if self._settled:
            raise StateError("a loss uses an output or a loss of an earlier step. Take a number of "
                             "it, by .item(), before that step's optimizer.step()")
        return self._function, self._args, self._kwargs

    @property
    def updates(self) -> int:
        """How many updates the parameters had when this was written down."""
        return self._updates

    def settle(self) -> None:
        """Keeps the numbers alone, and lets go of batch and model output."""
        self.numbers()
        self._settled, self._args, self._kwargs = True, (), {}

    @property
    def has_numbers(self) -> bool:
        """Whether the numbers are there, so that asking for them costs nothing."""
        return self._numbers is not None

    def numbers(self) -> Any:
        """Returns the tensor, or what else the call returns. Raises StateError after an update."""
        if self._numbers is None:
            with torch.no_grad():
                if self._function is None:
                    self._numbers = self._trainer.numbers(self)
                else:
                    args, kwargs = pytree.tree_map(_numbers, (self._args, self._kwargs))
                    self._numbers = self._function(*args, **kwargs)
        return self._numbers

    def backward(self, gradient: Any = None, retain_graph: bool | None = None,
                 create_graph: bool = False, inputs: Any = None) -> None:
        """Runs the private step on this batch. Raises an FxperexError."""
        if gradient is not None or create_graph or inputs is not None:
            raise ConfigError("backward() of a private loss takes no gradient, create_graph or "
                              "inputs: the step clips the gradient of the loss itself, for every "
                              "parameter")
        self._numbers = self._trainer.backward(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        method = vars(torch.Tensor).get(name, getattr(torch.Tensor, name, None))
        if method is None:
            return recorded(getattr, self, name)
        if not callable(method) or name in ASKS:
            return getattr(self.numbers(), name)
        return lambda *args, **kwargs: recorded(getattr(torch.Tensor, name), self, *args, **kwargs)

    def __iter__(self) -> Iterator[Value]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return len(self.numbers())

    def __float__(self) -> float:
        return float(self.numbers())

    def __int__(self) -> int:
        return int(self.numbers())

    def __bool__(self) -> bool:
        return bool(self.numbers())

    def __array__(self, dtype: Any = None) -> Any:
        return self.numbers().__array__(dtype)

    def __format__(self, how: str) -> str:
        return format(self.numbers(), how)

    def __repr__(self) -> str:
        return repr(self.numbers())

    def __hash__(self) -> int:
        return id(self)

    def __getitem__(self, index: Any) -> Value:
        return recorded(operator.getitem, self, index)

    def __neg__(self) -> Value:
        return recorded(operator.neg, self)

    def __add__(self, x: Any) -> Value:
        return recorded(operator.add, self, x)

    def __radd__(self, x: Any) -> Value:
        return recorded(operator.add, x, self)

    def __sub__(self, x: Any) -> Value:
        return recorded(operator.sub, self, x)

    def __rsub__(self, x: Any) -> Value:
        return recorded(operator.sub, x, self)

    def __mul__(self, x: Any) -> Value:
        return recorded(operator.mul, self, x)

    def __rmul__(self, x: Any) -> Value:
        return recorded(operator.mul, x, self)

    def __truediv__(self, x: Any) -> Value:
        return recorded(operator.truediv, self, x)

    def __rtruediv__(self, x: Any) -> Value:
        return recorded(operator.truediv, x, self)

    def __matmul__(self, x: Any) -> Value:
        return recorded(operator.matmul, self, x)

    def __pow__(self, x: Any) -> Value:
        return recorded(operator.pow, self, x)

    def __eq__(self, x: object) -> Any:
        return recorded(operator.eq, self, x)

    def __ne__(self, x: object) -> Any:
        return recorded(operator.ne, self, x)

    def __lt__(self, x: Any) -> Value:
        return recorded(operator.lt, self, x)

    def __le__(self, x: Any) -> Value:
        return recorded(operator.le, self, x)

    def __gt__(self, x: Any) -> Value:
        return recorded(operator.gt, self, x)

    def __ge__(self, x: Any) -> Value:
        return recorded(operator.ge, self, x)


def recorded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
    """Returns the Value of a call in which at least one argument is a Value."""
    value = next(v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Value))
    return Value(value._trainer, function, args, kwargs, value.updates)


def _numbers(x: Any) -> Any:
    return x.numbers() if isinstance(x, Value) else plain(x)
