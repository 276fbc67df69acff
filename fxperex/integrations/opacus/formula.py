"""How a loss follows from model and batch: what the private step is made of, compared at each step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxperex.errors import StateError
from fxperex.integrations.opacus.rows import History, Row
from fxperex.integrations.opacus.values import Value


@dataclass(frozen=True)
class _Item:
    """Gives the `place`-th tensor of those that a function returns."""

    function: Callable[..., Any]
    place: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)[self.place]


class Formula:
    """How a loss follows from the model and the rows of `history`. Two steps must have the same.

    values: ids of the values in it. Raises StateError if the model is not in it, or a tensor that
    comes from an earlier batch is.
    """

    def __init__(self, loss: Value, history: History) -> None:
        self._loss, self._history = loss, history
        # Every call after its arguments; `entries` says the same without tensors, to be compared.
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self.entries: list[tuple[Any, ...]] = []
        self._places: dict[int, int] = {id(x): -1 - i for i, x in enumerate(history.batch)}
        self._describe(loss)
        self.values = frozenset(i for i, place in self._places.items() if place >= 0)
        if not any(entry[0] is None for entry in self.entries):
            raise StateError("backward() was called on a loss that does not use the private "
                             "model's output")

    def forward(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """Returns the loss of another batch: the same calls with its tensors."""
        values: list[Any] = []

        def replayed(x: Any) -> Any:
            place = self._places.get(id(x)) if isinstance(x, Value | Row) else None
            if place is None:
                return x
            return values[place] if place >= 0 else batch[-1 - place]

        for function, args, kwargs in self._calls:
            args, kwargs = pytree.tree_map(replayed, (args, kwargs))
            values.append((model if function is None else function)(*args, **kwargs))
        return values[-1]

    def check(self, later: Formula) -> None:
        """Raises StateError unless `later` is the same formula of its own batch."""
        for old, new in zip(self.entries, later.entries, strict=False):
            if not _same(old, new):
                raise StateError(f"the loss is not the one of the first step: {_text(old)} there, "
                                 f"{_text(new)} here. The private step was proved for the first. "
                                 "Numbers that change, such as the size of a batch, must not enter "
                                 "a loss (use .mean()), nor must new tensors that do not come "
                                 "from the batch")
        if len(self.entries) != len(later.entries):
            raise StateError(f"the loss has {len(later.entries)} operations, and had "
                             f"{len(self.entries)} in the first step; the private step was proved "
                             "for the first")

    def _describe(self, x: Value | Row) -> None:
        if id(x) in self._places:
            return
        function, args, kwargs = x.call if isinstance(x, Value) else self._call(x)
        leaves, tree = pytree.tree_flatten((args, kwargs))
        for leaf in leaves:
            if isinstance(leaf, Value | Row):
                self._describe(leaf)
        self._places[id(x)] = len(self.entries)
        self._calls.append((function, args, kwargs))
        self.entries.append((function, tree, tuple(map(self._leaf, leaves))))

    def _call(self, x: Row) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        written = self._history.of(x)
        call = written.call
        if written.item is None:
            return call.function, call.args, call.kwargs
        return _Item(call.function, written.item), call.args, call.kwargs

    def _leaf(self, x: Any) -> tuple[Any, ...]:
        if isinstance(x, Value | Row):
            return "computed", self._places[id(x)]
        return ("constant", id(x), x._version) if isinstance(x, Tensor) else ("plain", x)


def _same(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    return (old[0] is new[0] or old[0] == new[0]) and old[1] == new[1] and old[2] == new[2]


def _text(entry: tuple[Any, ...]) -> str:
    function, _, items = entry
    name = "model" if function is None else getattr(function, "__name__", repr(function))
    texts = (str(item[-1]) if item[0] == "plain" else item[0] for item in items)
    return f"{name}({', '.join(texts)})"
