"""Convolutions in one to three dimensions: stride, padding (`same` too), dilation, groups.

`a [B,G,T,D]` are the unfolded patches (D = C/G * |K|), `g [B,G,T,P]` the output gradients: `grad_b = g_b^T a_b`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxperex.layers.shapes import clean, packet, scaled
from fxperex.registry import BatchAxis, Dims, Uses, layer_kind

# Up to this many positions an image is mostly padding to a convolution; a product over patches does no such work
# (512 channels, 1 x 1 pixels, kernel 3, 16 examples on a CPU: 1.9 ms against 10 ms).
SMALL = 8


@dataclass(frozen=True)
class Geometry:
    """Options of one convolution, one number per spatial dimension; `before`/`after` pad each side."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int

    @property
    def even(self) -> bool:
        return self.before == self.after


def geometry(node: fx.Node) -> Geometry:
    """Returns the Geometry of a captured `conv1d/2d/3d` node."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given: dict[str, Any] = {s.name: s.default_value for s in schema}
    given |= {s.name: a for s, a in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    kernel = tuple(given["weight"].meta["val"].shape[2:])
    n = len(kernel)

    def each(value: Any) -> tuple[int, ...]:
        return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)

    stride, dilation, padding = each(given["stride"]), each(given["dilation"]), given["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    else:
        before = after = each(padding)
    return Geometry(kernel, stride, dilation, before, after, given["groups"])


def padded(x: Tensor, shape: Geometry) -> Tensor:
    """Returns `x` with the padding that `same` puts on one side only made explicit."""
    widths: list[int] = []
    for before, after in zip(reversed(shape.before), reversed(shape.after), strict=True):
        widths += [before, after]
    return F.pad(x, widths)


def unfold(x: Tensor, shape: Geometry) -> Tensor:
    """Returns patches `[N, C |K|, T]` of `x [N, C, *S]`, channels outermost."""
    if shape.even and len(shape.kernel) == 2:
        if shape.kernel == (1, 1) and shape.stride == (1, 1) and shape.before == (0, 0):
            return x.flatten(2)
        return F.unfold(x, shape.kernel, shape.dilation, shape.before, shape.stride)
    n = len(shape.kernel)
    x = padded(x, shape)
    for i, (k, s, d) in enumerate(zip(shape.kernel, shape.stride, shape.dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    positions, taps = range(2, 2 + n), range(2 + n, 2 + 2 * n)
    x = x.permute(0, 1, *taps, *positions)
    return x.reshape(x.shape[0], x.shape[1] * torch.Size(shape.kernel).numel(), -1)


@layer_kind("conv")
class Conv:
    ops = ("aten.conv1d", "aten.conv2d", "aten.conv3d")

    def claims(self, node: fx.Node, arg: int) -> bool:
        return packet(node) in {"conv1d", "conv2d", "conv3d"} and arg == 1

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims:
        weight, out = node.args[1].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
        groups = geometry(node).groups
        positions = out[0] // rows * out[2:].numel()
        return Dims(rows, groups, positions, weight[1:].numel(), weight[0] // groups)

    def factors(self, uses: Uses) -> tuple[Tensor, Tensor]:
        if "factors" in uses.cache:
            return uses.cache["factors"]
        shape, rows = geometry(uses.node), uses.site.rows
        a = unfold(uses.args[0], shape)
        a = self._per_example(a, uses.axes[0], rows, shape.groups)
        g = self._per_example(uses.grad.flatten(2), uses.out_axis, rows, shape.groups)
        uses.cache["factors"] = a, g
        return a, g

    def _per_example(self, x: Tensor, axis: BatchAxis | None, rows: int, groups: int) -> Tensor:
        """`[N, G F, T]` -> `[B, G, T', F]` with the merged positions of one example side by side."""
        assert axis is not None
        x = x.reshape(axis.outer, rows, axis.inner, groups, -1, x.shape[-1])
        x = x.permute(1, 3, 4, 0, 2, 5)
        return x.reshape(rows, groups, x.shape[2], -1).transpose(2, 3)

    def fold(self, uses: Uses, grads: Tensor) -> Tensor:
        return grads.reshape(len(grads), *uses.site.shape)

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        assert uses.axes[0] is not None
        assert uses.site.dims is not None
        if uses.site.dims.T <= SMALL and uses.site.dims.G == 1:
            return self._from_patches(uses, factors, valid)
        g = scaled(uses.grad, uses.out_axis, factors, valid)
        return weight_gradient(clean(uses.args[0], uses.axes[0], valid), g, uses.args[1], geometry(uses.node))

    def _from_patches(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        a, g = self.factors(uses)
        g = g * factors.to(g.dtype)[:, None, None, None]
        zero = torch.zeros((), dtype=a.dtype, device=a.device)
        a, g = (torch.where(valid[:, None, None, None], v, zero).flatten(0, 2) for v in (a, g))
        return (g.t() @ a).reshape(uses.site.shape)

    def samples(self) -> list[tuple[torch.nn.Module, tuple[Tensor, ...]]]:
        from fxperex.testing import Call

        nn = torch.nn
        return [
            (nn.Conv1d(2, 4, 3, padding=1), (torch.randn(3, 2, 8),)),
            (nn.Conv1d(4, 4, 2, stride=2, dilation=2, groups=2, padding="valid"), (torch.randn(3, 4, 9),)),
            (nn.Conv2d(3, 4, 3, stride=2, padding=1), (torch.randn(4, 3, 7, 6),)),
            (nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), groups=2, bias=False), (torch.randn(3, 4, 6, 7),)),
            (nn.Conv2d(4, 8, 3, groups=4, padding="same", dilation=2), (torch.randn(3, 4, 5, 5),)),
            (nn.Conv2d(3, 5, 4, padding="same"), (torch.randn(2, 3, 6, 5),)),
            (nn.Conv2d(3, 2, 1), (torch.randn(4, 3, 3, 3),)),
            (nn.Conv2d(3, 2, 3), (torch.randn(4, 3, 3, 3),)),
            (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (torch.randn(3, 2, 5, 5),)),
            (Call(lambda m, x: m(x.flatten(0, 1)).unflatten(0, (-1, 2)), nn.Conv2d(3, 4, 3)), (torch.randn(3, 2, 3, 5, 5),)),
            (nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), (torch.randn(2, 2, 4, 5, 3),)),
            (nn.Conv3d(2, 4, (1, 2, 2), groups=2), (torch.randn(2, 2, 3, 4, 3),)),
        ]


def weight_gradient(x: Tensor, g: Tensor, weight: Tensor, shape: Geometry) -> Tensor:
    """Returns the ordinary, summed weight gradient."""
    if not shape.even:
        x, shape = padded(x, shape), Geometry(shape.kernel, shape.stride, shape.dilation, (0,) * len(shape.kernel),
                                              (0,) * len(shape.kernel), shape.groups)
    return torch.ops.aten.convolution_backward(g, x, weight, None, shape.stride, shape.before, shape.dilation, False,
                                               [0] * len(shape.kernel), shape.groups, [False, True, False])[1]
