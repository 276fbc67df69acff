"""Costs of the step outside the sites: every operation of forward and backward as kernels and
traffic.

And the three thresholds below which a site's ghost norm is the lesser, kept apart (they are often
confused): space `2 T^2 < p D`, norm flops `T (p + D) < p D`, total flops with book-keeping `T^2 (p
+ D) < p D`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxperex.costs import Cost, Work
from fxperex.layers.shapes import packet
from fxperex.sites import Dims


@dataclass(frozen=True)
class Thresholds:
    """Positions T below which `ghost` needs less than storing: bytes, flops of the norm, flops of
    norm and sum.
    """

    space: float
    norm_flops: float
    total_flops: float


def thresholds(dims: Dims) -> Thresholds:
    """Returns the Thresholds of one group of a site. Bu et al. 2205.10683 give the first,
    2210.00038 the parts of the last.
    """
    area, sides = dims.P * dims.D, dims.P + dims.D
    return Thresholds(math.sqrt(area / 2), area / sides, math.sqrt(area / sides))


def node_cost(node: fx.Node) -> Cost:
    """Returns the Cost of one captured or traced ATen node, from the shapes in its `meta`; a view
    costs nothing.
    """
    out = _tensors(node.meta.get("val"))
    inputs = [t for n in node.all_input_nodes for t in _tensors(n.meta.get("val"))]
    storages = {t.untyped_storage()._cdata for t in inputs}
    if not out or all(t.untyped_storage()._cdata in storages for t in out):
        return Cost(launches=0)
    rule = RULES.get(packet(node))
    if rule is not None:
        return Cost(rule(node, inputs, out), launches=0)
    return Cost((), float(sum(t.numel() * t.element_size() for t in inputs + out)), launches=1)


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _convolution(node: fx.Node, given: list[Tensor], out: list[Tensor]) -> tuple[Work, ...]:
    x, weight = given[0], given[1]
    # A transposed convolution's windows stand at its input's positions.
    ends = x if node.args[6:7] == (True,) else out[0]
    return _images(weight, x, ends,
                   int(node.args[8]) if len(node.args) > 8 else 1,
                   ("conv_forward", ))  # type: ignore[arg-type]


def _convolution_backward(node: fx.Node, given: list[Tensor],
                          out: list[Tensor]) -> tuple[Work, ...]:
    g, x, weight = given[0], given[1], given[2]
    mask: Any = node.args[10]
    kernels = tuple(
        k for k, asked in zip(("conv_input", "conv_weight"), mask[:2], strict=True) if asked)
    return _images(weight, x, x if node.args[7] else g, int(node.args[9]),
                   kernels)  # type: ignore[arg-type]


def _images(weight: Tensor, x: Tensor, out: Tensor, groups: int,
            kernels: tuple[str, ...]) -> tuple[Work, ...]:
    p, c, *kernel = weight.shape
    t, taps = math.prod(out.shape[2:]), math.prod(kernel)
    if groups > 1 and c == 1:
        shape = (len(x), p, t, taps)
        return tuple(
            Work("conv_depthwise", shape, 2.0 * math.prod(shape), 1, _dtype(x)) for _ in kernels)
    sizes = (len(x), c, p // groups, t, taps)
    return tuple(Work(k, sizes, 2.0 * math.prod(sizes), groups, _dtype(x)) for k in kernels)


def _mm(node: fx.Node, given: list[Tensor], out: list[Tensor]) -> tuple[Work, ...]:
    a, b = given[-2] if len(given) > 1 else given[0], given[-1]
    (m, k), n = a.shape, b.shape[1]
    return (Work("mm", (m, k, n), 2.0 * m * k * n, 1, _dtype(a)),)


def _bmm(node: fx.Node, given: list[Tensor], out: list[Tensor]) -> tuple[Work, ...]:
    a, b = given[-2] if len(given) > 1 else given[0], given[-1]
    (count, m, k), n = a.shape, b.shape[2]
    return (Work("bmm", (count, m, k, n), 2.0 * count * m * k * n, 1, _dtype(a)),)


def _attention(products: int) -> Any:
    """Two products forward, five backward, where the output's gradient stands in front of query and
    key.
    """
    def rule(node: fx.Node, given: list[Tensor], out: list[Tensor]) -> tuple[Work, ...]:
        place = 0 if products == 2 else 1
        q, k = (n.meta["val"] for n in node.args[place:place + 2])
        count, t, d, s = q.shape[0] * q.shape[1], q.shape[2], q.shape[3], k.shape[2]
        return (Work("bmm", (count, t, d, s), 2.0 * count * t * d * s, products, _dtype(q)),)

    return rule


RULES: dict[str, Any] = {
    "convolution": _convolution, "convolution_backward": _convolution_backward, "mm": _mm,
    "addmm": _mm, "bmm": _bmm, "baddbmm": _bmm
}
for _name in ("efficient", "flash", "cudnn"):
    RULES |= {f"_scaled_dot_product_{_name}_attention": _attention(2),
              f"_scaled_dot_product_{_name}_attention_backward": _attention(5)}
RULES |= {"_scaled_dot_product_flash_attention_for_cpu": _attention(2),
          "_scaled_dot_product_flash_attention_for_cpu_backward": _attention(5)}


def parameter_bytes(module: torch.nn.Module) -> int:
    """Returns the bytes of a module's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
