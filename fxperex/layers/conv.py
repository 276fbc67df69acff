"""Convolutions in one to three dimensions: stride, padding (`same` too), dilation, groups.

`a [B,G,T,D]` are the unfolded patches (D = |K| C, of several groups C/G * |K|), `g [B,G,T,P]` the
output gradients: `grad_b = g_b^T a_b`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, fx

from fxperex import kernels
from fxperex.contract import Sample
from fxperex.graph.aten import packet
from fxperex.layers.shapes import clean, scaled
from fxperex.layers.windows import (
    Geometry,
    Windowed,
    by_channels,
    channels_last,
    geometry,
    gram,
    padded,
    unfold,
    whole_kernel,
)
from fxperex.numerics.factors import inner
from fxperex.registry import layer_kind
from fxperex.sites import BatchAxis, Dims, Site, SiteValues

# Up to this many positions an image is mostly padding to a convolution; a product over patches does
# no such work (512 channels, 1 x 1 pixels, kernel 3, 16 examples on a CPU: 1.9 ms against 10 ms).
SMALL = 8
_T = TypeVar("_T")


@layer_kind("conv", order=30)
class Conv(Windowed):
    one_product = True
    ops: tuple[str, ...] = ("conv1d", "conv2d", "conv3d")

    def claims(self, node: fx.Node, arg: int) -> bool:
        return packet(node) in self.ops and arg == 1

    def geometry(self, node: fx.Node) -> Geometry:
        return geometry(node)

    def ordered(self, x: _T, g: _T) -> tuple[_T, _T]:
        return x, g

    def by_convolution(self, site: Site) -> bool:
        return site.dims is not None and (site.dims.T > SMALL or site.dims.G > 1)

    def layout(self, node: fx.Node, arg: int) -> tuple[object, ...]:
        shape = self.live(node)
        return shape.groups, shape.kernel, shape.first

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims:
        weight, shape = node.args[1].meta["val"].shape, self.live(node)
        image, output = (v.shape for v in self.ordered(node.args[0].meta["val"], node.meta["val"]))
        merged = output[0] // rows
        return Dims(rows, shape.groups, merged * output[2:].numel(), weight[1] * shape.taps,
                    weight[0] // shape.groups, shape.taps, image[2:].numel() if merged == 1 else 0)

    def factors(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        if "patches" not in values.cache:
            shape = self.live(values.node)
            image, _ = self.ordered(values.args[0], values.grad)
            axis, _ = self.ordered(values.axes[0], values.out_axis)
            values.cache["patches"] = _per_example(unfold(image, shape), axis, values.site.rows)
        return values.cache["patches"], self.outputs(values)

    def products(self, values: SiteValues, images: int) -> Tensor:
        shape = self.live(values.node)
        image, output = self.ordered(values.args[0], values.grad)
        return kernels.products_of_patches(image, output.flatten(2), shape.kernel, shape.stride,
                                           shape.dilation, shape.before, shape.after, shape.groups,
                                           images, channels_last(image.shape[1], shape))

    def outputs(self, values: SiteValues) -> Tensor:
        """Returns `g [B,G,T,P]`: output gradients, or inputs if the convolution is transposed."""
        _, output = self.ordered(values.args[0], values.grad)
        _, axis = self.ordered(values.axes[0], values.out_axis)
        groups = self.geometry(values.node).groups
        return _per_example(
            output.flatten(2).unflatten(1, (groups, -1)).transpose(2, 3), axis, values.site.rows)

    def gram(self, values: SiteValues) -> Tensor:
        """`<a_t, a_s>` `[B,G,T,T]`, float64: from pixels where that is less work than from
        patches.
        """
        d = values.site.dims
        assert d is not None
        if not pixel_gram(d):
            a = self.factors(values)[0]
            return inner(a, a)
        image, output = self.ordered(values.args[0], values.grad)
        x = image.double().reshape(d.B * d.G, -1, *image.shape[2:])
        return gram(x, self.live(values.node), tuple(output.shape[2:])).reshape(d.B, d.G, d.T, d.T)

    def fold(self, values: SiteValues, grads: Tensor) -> Tensor:
        """`[B,G,P,D]` -> `[B, *weight shape]`."""
        shape = self.live(values.node)
        return whole_kernel(by_channels(grads, values.site.shape[1], shape), shape)

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        assert values.axes[0] is not None
        assert values.site.dims is not None
        if not self.by_convolution(values.site):
            return self._from_patches(values, factors, valid)
        g = scaled(values.grad, values.out_axis, factors, valid)
        image, output = self.ordered(clean(values.args[0], values.axes[0], valid), g)
        return weight_gradient(image, output, values.args[1], self.live(values.node))

    def _from_patches(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        a, g = self.factors(values)
        a = a.to(g.dtype)  # kept patches may be of 16 bits where the sum is formed in float32
        counts, zero = valid[:, None, None, None], torch.zeros((), dtype=g.dtype, device=g.device)
        g = torch.where(counts, g * factors.to(g.dtype)[:, None, None, None], zero)
        a = a if kernels.looks(a) else torch.where(counts, a, zero)
        a, g = a.flatten(0, 2), g.flatten(0, 2)
        if patches_folded(values.site.dims):
            spread = self.fold(values, a[:, None, None]).flatten(1)
            return kernels.product(g, spread, valid).view(values.site.shape)
        return self.fold(values, kernels.product(g, a, valid)[None, None])[0].contiguous()

    def samples(self) -> list[Sample]:
        from fxperex.testing import Call

        nn = torch.nn
        return [
            (nn.Conv1d(2, 4, 3, padding=1), (torch.randn(3, 2, 8), )),
            (nn.Conv1d(4, 4, 2, stride=2, dilation=2, groups=2,
                       padding="valid"), (torch.randn(3, 4, 9), )),
            (nn.Conv2d(3, 4, 3, stride=2, padding=1), (torch.randn(4, 3, 7, 6), )),
            (nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), groups=2,
                       bias=False), (torch.randn(3, 4, 6, 7), )),
            (nn.Conv2d(4, 8, 3, groups=4, padding="same", dilation=2), (torch.randn(3, 4, 5, 5), )),
            (nn.Conv2d(3, 5, 4, padding="same"), (torch.randn(2, 3, 6, 5), )),
            (nn.Conv2d(3, 2, 1), (torch.randn(4, 3, 3, 3), )),
            (nn.Conv2d(3, 2, 3), (torch.randn(4, 3, 3, 3), )),
            (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (torch.randn(3, 2, 5, 5), )),
            (Call(lambda m, x: m(x.flatten(0, 1)).unflatten(0, (-1, 2)),
                  nn.Conv2d(3, 4, 3)), (torch.randn(3, 2, 3, 5, 5), )),
            (nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), (torch.randn(2, 2, 4, 5, 3), )),
            (nn.Conv3d(2, 4, (1, 2, 2), groups=2), (torch.randn(2, 2, 3, 4, 3), )),
            # Channels enough to be copied in runs.
            (nn.Conv1d(8, 3, 3, padding=1, stride=2), (torch.randn(3, 8, 6), )),
            (nn.Conv2d(9, 4, (3, 2), dilation=(1, 2), padding=(1, 0)), (torch.randn(3, 9, 5, 4), )),
            (nn.Conv2d(8, 4, 4, padding="same"), (torch.randn(2, 8, 3, 5), )),
            (nn.Conv3d(8, 2, 2, stride=(1, 2, 1)), (torch.randn(2, 8, 3, 4, 2), )),
            (Call(lambda m, x: m(x.flatten(0, 1)).unflatten(0, (-1, 2)),
                  nn.Conv2d(8, 4, 3)), (torch.randn(3, 2, 8, 4, 5), )),
            (nn.Conv2d(8, 3, 3, padding=1), (torch.randn(3, 8, 1, 2), )),
            # Fewer patches than outputs: the sum takes them in the weight's order.
            (nn.Conv2d(8, 12, 3, padding=1), (torch.randn(3, 8, 1, 1), )),
            (nn.Conv2d(8, 9, (3, 2), padding=1), (torch.randn(2, 8, 2, 1), )),
            (nn.Conv2d(3, 9, 3, padding=1), (torch.randn(2, 3, 2, 1), )),
            # Taps that see padding alone, in one dimension and in all.
            (nn.Conv2d(4, 6, 3, padding=1, groups=2), (torch.randn(3, 4, 1, 1), )),
            (nn.Conv2d(2, 3, (3, 5), padding=(1, 2), stride=2), (torch.randn(3, 2, 5, 2), )),
            (nn.Conv1d(2, 3, 3, padding=2, dilation=2), (torch.randn(3, 2, 2), )),
            (nn.Conv1d(2, 3, 4, padding="same"), (torch.randn(3, 2, 1), )),
            (nn.Conv3d(2, 3, 3, padding=1), (torch.randn(2, 2, 1, 3, 1), )),
        ]


def _per_example(x: Tensor, axis: BatchAxis | None, rows: int) -> Tensor:
    """`[N, G, T, F]` -> `[B, G, T', F]` with the merged positions of one example one after
    another.
    """
    assert axis is not None
    x = x.reshape(axis.outer, rows, axis.inner, *x.shape[1:]).permute(1, 3, 0, 2, 4, 5)
    return x.reshape(rows, x.shape[1], -1, x.shape[5])


def pixel_gram(d: Dims) -> bool:
    """Returns True if the pixels' Gram matrix and its shifted copies are less work than that of the
    patches.

    For few positions the sum is formed from patches anyway, and their Gram matrix costs almost
    nothing.
    """
    return 0 < d.pixels**2 <= d.T**2 * d.taps and (d.T > SMALL or d.G > 1)


def patches_folded(d: Dims) -> bool:
    """Returns True if a sum of products takes its patches in the weight's order, with all taps.

    The patches are then smaller than the product, which would otherwise have to be reordered and
    spread.
    """
    return d.B * d.T < d.P


def weight_gradient(x: Tensor, g: Tensor, weight: Tensor, shape: Geometry) -> Tensor:
    """Returns the ordinary, summed weight gradient; `weight` is used for its shape alone."""
    if not shape.even:
        none = (0,) * len(shape.kernel)
        x, shape = padded(x, shape), replace(shape, before=none, after=none)
    for i, (k, full) in enumerate(zip(shape.kernel, shape.whole, strict=True)):
        weight = weight if k == full else weight.narrow(2 + i, 0, k)
    gradient = torch.ops.aten.convolution_backward(
        g, x, weight, None, shape.stride, shape.before, shape.dilation, False,
        [0] * len(shape.kernel), shape.groups, [False, True, False])[1]
    return whole_kernel(gradient, shape)
