"""How far rounding may move each output of a step graph, measured by running it with perturbed
numbers.

A compiler may add in another order, fuse, and keep more digits. So its outputs differ from the
eager ones by rounding. The perturbed run shows how much: every input and every intermediate result
is moved by a few units in its last place. The measure also holds for sums that cancel (an attention
key's bias) and for gates that rounding may open (ReLU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from fxperex.numerics.rounding import operands

# units of rounding; a gate that rounding may open (ReLU, max) opens more often so, and its effect
# is seen
MOVED = 8.0
DRAWS, MORE = 2, 6  # perturbed runs; and before something is called wrong


# What only moves numbers about, or makes new ones that are exact.
EXACT = {
    "reshape", "view", "_unsafe_view", "t", "transpose", "permute", "expand", "squeeze",
    "unsqueeze", "select", "slice", "clone", "cat", "stack", "split_with_sizes",
    "split_with_sizes_copy", "getitem", "detach", "alias", "ones_like", "zeros_like", "full_like",
    "empty_like", "new_zeros", "new_ones", "bernoulli", "bernoulli_", "where", "neg", "abs",
    "lift_fresh_copy"
}


def unit(graph: fx.GraphModule) -> float:
    """Returns the unit of rounding of the coarsest arithmetic in `graph`."""
    values = [
        v for n in graph.graph.nodes
        if isinstance(v := n.meta.get("val"), Tensor) and v.is_floating_point()
    ]
    units = [torch.finfo(v.dtype).eps / 2 for v in values] or [torch.finfo(torch.float32).eps / 2]
    products = [
        max(operands(device)) for device in {v.device
                                             for v in values
                                             if v.dtype == torch.float32}
    ]
    return max(units + products)


class _Shaken(fx.Interpreter):
    """Runs a graph with every real input and result moved up or down by a share `by`."""

    def __init__(self, graph: fx.GraphModule, by: float, generator: torch.Generator) -> None:
        super().__init__(graph)
        self.by, self.generator = by, generator

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        exact = n.op == "output" or (n.op == "call_function" and
                                     (_name(n) in EXACT or not any(map(_real, n.all_input_nodes))))
        return value if exact else tree_map(self._moved, value)

    def _moved(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            return x
        signs = torch.empty(x.shape, dtype=x.dtype,
                            device=x.device).bernoulli_(0.5, generator=self.generator)
        moved = x * signs.mul_(2 * self.by).add_(1 - self.by)
        return torch.where(torch.isfinite(moved), moved, x)  # the largest number stays what it is


def shaken(graph: fx.GraphModule, inputs: Sequence[Tensor], u: float, seed: int) -> list[Any]:
    """Returns the outputs of `graph` with all its real numbers moved by MOVED units of rounding
    `u`, by one if `u` is coarse.
    """
    generator = torch.Generator(next((x.device for x in inputs if x.is_cuda),
                                     "cpu")).manual_seed(seed)
    with torch.no_grad():
        return list(_Shaken(graph, u * (MOVED if u < 2.0**-20 else 1.0), generator).run(*inputs))


def _real(node: fx.Node) -> bool:
    return any(
        isinstance(v, Tensor) and v.dtype.is_floating_point
        for v in tree_leaves(node.meta.get("val")))


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "_opname", getattr(node.target, "__name__", "")))
