"""The tensors that a private loader hands out: what is computed of them is written down.

So `y.float()` or `x.flatten(1)` in the user's loop become part of the program that is proved, and
`x - x.mean(0)` is refused like any mixing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxperex.errors import StateError


@dataclass(frozen=True)
class Written:
    """How a tensor was computed: the `item`-th tensor that a call returned; None: all of it."""

    tensor: Tensor
    version: int
    call: Call
    item: int | None


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a function of torch on rows."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class History:
    """The calls on one part's rows, until the part is done."""

    def __init__(self, batch: tuple[Tensor, ...]) -> None:
        self.batch = tuple(row(x, self) for x in batch)
        self._written: dict[int, Written] = {}

    def write(self, call: Call, result: Any) -> None:
        """Writes down that `call` returned `result`."""
        arguments = {id(x) for x in pytree.tree_leaves((call.args, call.kwargs))}
        items = [result] if isinstance(result, Tensor) else list(result)
        for place, x in enumerate(items):
            if isinstance(x, Row) and id(x) not in arguments:
                item = None if result is x else place
                self._written[id(x)] = Written(x, x._version, call, item)
                x.history = self

    def of(self, x: Row) -> Written:
        """Returns how `x` was computed. Raises StateError if it is of an earlier part, or was
        written to since.
        """
        written = self._written.get(id(x))
        if written is None:
            raise StateError(f"a tensor {list(x.shape)} of an earlier batch is used in this loss; "
                             "a row's gradient must depend on this row alone")
        if written.version != x._version:
            raise StateError(f"a tensor {list(x.shape)} that was computed of the batch was written "
                             "to in place; compute a new one")
        return written

    def clear(self) -> None:
        """Lets go of everything."""
        self._written.clear()


class Row(torch.Tensor):
    """A tensor of the batch, or computed of it."""

    history: History

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any,
                           args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if not all(issubclass(t, Tensor) for t in types):
            return NotImplemented  # a formula of the model's output writes it down
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, Row) or (isinstance(result, tuple | list)
                                       and any(isinstance(x, Row) for x in result)):
            leaves = pytree.tree_leaves((args, kwargs or {}))
            owner = next((x for x in leaves if isinstance(x, Row) and "history" in vars(x)), None)
            if owner is not None:
                owner.history.write(Call(function, args, kwargs or {}), result)
        return result


def row(x: Tensor, history: History) -> Row:
    """Returns `x` as a Row of `history`; both share their values."""
    rows = x.as_subclass(Row)
    rows.history = history
    return rows


def plain(x: Any) -> Any:
    """Returns `x`, as an ordinary tensor if it is a Row."""
    return x.as_subclass(Tensor) if isinstance(x, Row) else x
