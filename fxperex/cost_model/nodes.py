"""Costs of the step outside the sites: each operation of forward and backward, as kernels and
traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxperex.costs import Cost, Work
from fxperex.graph.aten import packet

# (node, its input tensors, its result tensors) -> its work
Rule = Callable[[fx.Node, list[Tensor], list[Tensor]], tuple[Work, ...]]


def node_cost(node: fx.Node) -> Cost:
    """Returns the Cost of one captured or traced ATen node, from the shapes in its `meta`; a view
    costs nothing.
    """
    results = _tensors(node.meta.get("val"))
    inputs = [t for n in node.all_input_nodes for t in _tensors(n.meta.get("val"))]
    storages = {t.untyped_storage()._cdata for t in inputs}
    if not results or all(t.untyped_storage()._cdata in storages for t in results):
        return Cost(launches=0)
    rule = RULES.get(packet(node))
    if rule is not None:
        return Cost(rule(node, inputs, results), launches=0)
    moved = float(sum(t.numel() * t.element_size() for t in inputs + results))
    return Cost((), moved, launches=1)


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _convolution(node: fx.Node, inputs: list[Tensor], results: list[Tensor]) -> tuple[Work, ...]:
    x, weight = inputs[0], inputs[1]
    # A transposed convolution's windows stand at its input's positions.
    placed = x if node.args[6:7] == (True,) else results[0]
    groups: Any = node.args[8] if len(node.args) > 8 else 1
    return _windows(weight, x, placed, int(groups), ("conv_forward",))


def _convolution_backward(node: fx.Node, inputs: list[Tensor],
                          results: list[Tensor]) -> tuple[Work, ...]:
    g, x, weight = inputs[0], inputs[1], inputs[2]
    transposed, groups, mask = node.args[7], int(node.args[9]), node.args[10]  # type: ignore
    asked = zip(("conv_input", "conv_weight"), mask[:2], strict=True)
    kernels = tuple(kernel for kernel, needed in asked if needed)
    return _windows(weight, x, x if transposed else g, groups, kernels)


def _windows(weight: Tensor, x: Tensor, placed: Tensor, groups: int,
             kernels: tuple[str, ...]) -> tuple[Work, ...]:
    """Returns the work of `kernels` over the images `x`; windows stand at the positions of
    `placed`.
    """
    p, c, *kernel = weight.shape
    t, taps = math.prod(placed.shape[2:]), math.prod(kernel)
    if groups > 1 and c == 1:
        shape: tuple[int, ...] = (len(x), p, t, taps)
        kernels, calls = ("conv_depthwise",) * len(kernels), 1
    else:
        shape, calls = (len(x), c, p // groups, t, taps), groups
    return tuple(Work(k, shape, 2.0 * math.prod(shape), calls, _dtype(x)) for k in kernels)


def _mm(node: fx.Node, inputs: list[Tensor], results: list[Tensor]) -> tuple[Work, ...]:
    a, b = _operands(inputs)
    (m, k), n = a.shape, b.shape[1]
    return (Work("mm", (m, k, n), 2.0 * m * k * n, 1, _dtype(a)),)


def _bmm(node: fx.Node, inputs: list[Tensor], results: list[Tensor]) -> tuple[Work, ...]:
    a, b = _operands(inputs)
    (count, m, k), n = a.shape, b.shape[2]
    return (Work("bmm", (count, m, k, n), 2.0 * count * m * k * n, 1, _dtype(a)),)


def _operands(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the two factors: the last inputs, after an addend; or one tensor that is both."""
    return inputs[-2] if len(inputs) > 1 else inputs[0], inputs[-1]


def _attention(products: int) -> Rule:
    """Returns the rule of an attention: 2 products forward, 5 backward. Backward, the output's
    gradient comes before query and key.
    """
    place = 0 if products == 2 else 1

    def rule(node: fx.Node, inputs: list[Tensor], results: list[Tensor]) -> tuple[Work, ...]:
        query, key = (n.meta["val"] for n in node.args[place:place + 2])  # type: ignore
        batch, heads, t, d = query.shape
        shape = (batch * heads, t, d, key.shape[2])
        return (Work("bmm", shape, 2.0 * math.prod(shape), products, _dtype(query)),)

    return rule


RULES: dict[str, Rule] = {
    "convolution": _convolution, "convolution_backward": _convolution_backward, "mm": _mm,
    "addmm": _mm, "bmm": _bmm, "baddbmm": _bmm}
for _name in ("efficient_attention", "flash_attention", "cudnn_attention",
              "flash_attention_for_cpu"):
    _op = f"_scaled_dot_product_{_name}"
    RULES |= {_op: _attention(2), f"{_op}_backward": _attention(5)}
