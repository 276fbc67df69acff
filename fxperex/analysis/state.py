"""The states of the batch-axis proof, and what a rule sees of a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.registry import BatchAxis


@dataclass(frozen=True)
class Reduced:
    """A scalar `mean` or `sum` over the batch of something each example has: a loss in the making."""

    kind: str


State = None | BatchAxis | Reduced | tuple[Any, ...]


class Mixes(Exception):
    """A rule's refusal: why the operation would mix examples, and the way out."""


@dataclass
class Context:
    """One node at the proof: its twin (one more example), the states so far, and the two batch sizes."""

    node: fx.Node
    twin: fx.Node
    states: dict[fx.Node, State]
    rows: int
    twin_rows: int

    def state(self, index: int) -> State:
        """State of positional argument `index`; None for numbers and absent tensors."""
        arg = self.arg(index)
        return self.states.get(arg) if isinstance(arg, fx.Node) else None

    def axis(self, index: int) -> BatchAxis | None:
        """Batch axis of argument `index`, None if it has none; a batch-reduced scalar is refused."""
        state = self.state(index)
        if isinstance(state, Reduced):
            raise Mixes("an input was already summed or averaged over the batch, so every example would see all")
        return state if isinstance(state, BatchAxis) else None

    def arg(self, index: int, name: str = "", default: Any = None) -> Any:
        if index < len(self.node.args):
            return self.node.args[index]
        return self.node.kwargs.get(name, default)

    def shape(self, arg: Any) -> tuple[int, ...]:
        return tuple(arg.meta["val"].shape) if isinstance(arg, fx.Node) else ()

    @property
    def out(self) -> tuple[int, ...]:
        value = self.node.meta["val"]
        first = value[0] if isinstance(value, list | tuple) else value
        return tuple(first.shape)

    @property
    def scaling(self) -> list[int]:
        """Dimensions of the (first) output whose size differs between the twins: batch-sized ones."""
        value, other = self.node.meta["val"], self.twin.meta["val"]
        if isinstance(value, list | tuple):
            value, other = value[0], other[0]
        if not isinstance(value, torch.Tensor):
            return []
        return [d for d, (a, b) in enumerate(zip(value.shape, other.shape, strict=True)) if a != b]

    @property
    def touched(self) -> bool:
        """True if any input carries the batch, or the output is batch-sized."""
        return any(self.states.get(n) is not None for n in self.node.all_input_nodes) or bool(self.scaling)

    def refuse_batch_numbers(self) -> None:
        """A number that changes with the batch size must not become a value of the computation."""
        mine = [a for a in pytree.tree_leaves((self.node.args, self.node.kwargs)) if isinstance(a, int | float)]
        other = [a for a in pytree.tree_leaves((self.twin.args, self.twin.kwargs)) if isinstance(a, int | float)]
        if mine != other:
            raise Mixes("it computes with the batch size as a number, so a gradient would depend on how many "
                        "examples there are; divide by a constant instead")


def dim(value: int, rank: int) -> int:
    return value % rank if rank else 0
