"""The states of the batch-axis proof, what they promise, and what a rule sees of a node.

A rule takes the states of an operation's operands and returns those of its results. It may return a
state only if the promise of that state follows from the promises of the operands. For every number
of examples and every `b`:

* `None`: the tensor is the same whatever the examples hold and however many there are.
* `BatchAxis(dim, outer, inner)`: the entries `(o * B + b) * inner + i` of `dim`, over all `o` and
  `i`, are the slice of example `b`. It is one function of example `b`, the same for every `b` and
  `B`; neither `b` nor `B` enters it.
* with `rows`: every entry of slice `b` is the number `b` itself. This is the one exception to "`b`
  does not enter", so nothing may read the values but an index of the batch dimension, which turns
  them into example `b`'s own row.
* with `fresh`: all entries of `dim` are alike. They hold the same numbers, or draws of one
  distribution that are independent of each other, and no example reaches them. Therefore any other
  `outer` and `inner` describe them as well.
* `Reduced(kind)`: a scalar, the mean or sum over the batch of what each example has by itself.

Obligations that follow, each with a way to meet it:

* A rule that moves, merges or cuts dimensions keeps `fresh` only if each entry of the new `dim` is
  made of the entries of one old one, in one way for all (`refactor`). A pattern that repeats along
  `dim`, like a table written down `B` times, is not fresh.
* A rule that fills a dimension with something that has no batch (`expand`, `repeat`) says how the
  dimension is ordered: `written`.
* Results of several operands are joined by `join` alone: it keeps `fresh` only if all that have the
  batch are fresh, and lets examples in another order meet only what is fresh.
* Where a parameter enters (`Context.site`), nothing is fresh. Its gradient is cut at that node into
  the examples' shares by the node's own axis, so nobody may read the rows in another order later.
* Numbers that change with the batch size are sizes, or refused (`refuse_batch_numbers`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.sites import BatchAxis


@dataclass(frozen=True)
class Reduced:
    """A scalar `mean` or `sum` over the batch of something each example has: a loss in the making.

    `axis`: where the examples are in what a loss operation reduced; None for sums and means, whose
    input says it.
    """

    kind: str
    axis: BatchAxis | None = None


State = None | BatchAxis | Reduced | tuple[Any, ...]
SUMMED = "an input was already summed or averaged over the batch, so every example would see all"


class Mixes(Exception):
    """A rule's refusal: why the operation would mix examples, and the way out."""


def join(axes: Iterable[BatchAxis | None]) -> BatchAxis | None:
    """Returns the one axis of a result whose operands have these, in the result's dimensions;
    refuses disagreement.

    Fresh only if every operand with the batch is. A fresh operand takes the order of one that is
    not.
    """
    joined: BatchAxis | None = None
    for axis in axes:
        joined = axis if joined is None else joined if axis is None else _joined(joined, axis)
    return joined


def _joined(one: BatchAxis, two: BatchAxis) -> BatchAxis:
    if one.place == two.place:
        return BatchAxis(*one.place, fresh=one.fresh and two.fresh)
    if (one.fresh or two.fresh) and one.dim == two.dim:
        return two if one.fresh else one
    raise Mixes(f"one input has the examples in dimension {one.dim}, the other in {two.dim} "
                f"(or in another order inside it): every pair of examples would meet")


def arguments(node: fx.Node) -> dict[str, Any]:
    """Returns {name: value} of all arguments in the schema of an operator's node, defaults where
    none is given."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values = {a.name: v for a, v in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    # In the schema's order: who takes tensors by their order must not find an optional one first.
    return {a.name: values.get(a.name, a.default_value) for a in schema
            if a.name in values or a.has_default_value()}


def readable(name: str) -> tuple[list[str], bool]:
    """Returns (alternatives, whether an overload may lack all of them) of a name as rules write it:
    `"self|input?"`."""
    return name.removesuffix("?").split("|"), name.endswith("?")


@dataclass
class Context:
    """One node at the proof: its twin (one more example), the states so far, and the two batch
    sizes.

    Arguments are read by their names in the operator's schema, never by position. `"self|input"` is
    whichever of the two the overload has; a name that ends in `?` may be absent from some
    overloads. A rule declares what it reads (`reads`).
    """

    node: fx.Node
    twin: fx.Node
    states: dict[fx.Node, State]
    rows: int
    twin_rows: int
    site: bool = False
    reads: frozenset[str] | None = None
    _values: dict[str, Any] | None = field(default=None, repr=False)

    def arg(self, name: str, default: Any = None) -> Any:
        """Value of the argument `name`; `default` where the overload has none of that name."""
        if self.reads is not None and name not in self.reads:
            raise LookupError(f"the rule of {self.node.target} reads {name!r}, which it does not "
                              "declare")
        if self._values is None:
            self._values = arguments(self.node)
        names, optional = readable(name)
        present = next((n for n in names if n in self._values), None)
        if present is None and not optional:
            raise LookupError(f"{self.node.target} has no argument {name!r}")
        return default if present is None else self._values[present]

    def state(self, name: str) -> State:
        """State of argument `name`; None for numbers and absent tensors."""
        return self.state_of(self.arg(name))

    def state_of(self, arg: Any) -> State:
        """State of an argument's value. Where a parameter enters nothing is fresh."""
        state = self.states.get(arg) if isinstance(arg, fx.Node) else None
        return settled(state) if self.site else state

    def axis(self, name: str) -> BatchAxis | None:
        """Batch axis of argument `name`, None if it has none; a batch-reduced scalar is refused."""
        return self.axis_of(self.arg(name))

    def axis_of(self, arg: Any) -> BatchAxis | None:
        state = self.state_of(arg)
        if isinstance(state, Reduced):
            raise Mixes(SUMMED)
        return state if isinstance(state, BatchAxis) else None

    @property
    def tensors(self) -> list[fx.Node]:
        """All tensor arguments in the order of the schema, with those in lists."""
        values = arguments(self.node).values() if hasattr(self.node.target,
                                                          "_schema") else self.node.args
        return [a for a in pytree.tree_leaves(list(values)) if isinstance(a, fx.Node)]

    def shape(self, arg: Any) -> tuple[int, ...]:
        return tuple(arg.meta["val"].shape) if isinstance(arg, fx.Node) else ()

    def for_each_result(self, axis: BatchAxis | None) -> State:
        """`axis` for every result, where the operator returns several."""
        value = self.node.meta["val"]
        return tuple(axis for _ in value) if isinstance(value, list | tuple) else axis

    @property
    def out(self) -> tuple[int, ...]:
        value = self.node.meta["val"]
        tensor = value[0] if isinstance(value, list | tuple) else value
        return tuple(tensor.shape)

    @property
    def scaling(self) -> list[int]:
        """Dimensions of the (first) output whose size differs between the twins: batch-sized
        ones.
        """
        value, twin_value = self.node.meta["val"], self.twin.meta["val"]
        if isinstance(value, list | tuple):
            value, twin_value = value[0], twin_value[0]
        if not isinstance(value, torch.Tensor):
            return []
        return [
            d for d, (a, b) in enumerate(zip(value.shape, twin_value.shape, strict=True)) if a != b
        ]

    @property
    def touched(self) -> bool:
        """True if any input carries the batch, or the output is batch-sized."""
        return any(self.states.get(n) is not None
                   for n in self.node.all_input_nodes) or bool(self.scaling)

    def refuse_batch_numbers(self, *names: str) -> None:
        """A number that changes with the batch size must not become a value: any, or those of the
        arguments `names`."""
        node, twin = self.node, self.twin
        if names:
            present = [n for name in names for n in readable(name)[0]]
            pair = [{k: v for k, v in arguments(n).items() if k in present} for n in (node, twin)]
        else:
            pair = [{"": (n.args, n.kwargs)} for n in (node, twin)]
        numbers, twin_numbers = ([a
                                  for a in pytree.tree_leaves(p)
                                  if isinstance(a, int | float)]
                                 for p in pair)
        if numbers != twin_numbers:
            raise Mixes("it computes with the batch size as a number, so a gradient would depend "
                        "on how many examples there are; divide by a constant instead")


def settled(state: State) -> State:
    """The same state, its rows no longer exchangeable."""
    if isinstance(state, tuple):
        return tuple(map(settled, state))
    return replace(state, fresh=False) if isinstance(state, BatchAxis) and state.fresh else state


def dim(value: int, rank: int) -> int:
    return value % rank if rank else 0
