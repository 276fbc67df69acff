"""The paper's `crb`: per node, one convolution whose groups are the examples (arXiv 1912.06015,
section 3.2).

`dL_b/dw[o,c,k] = sum_t x_b[c, s t + d k] g_b[o,t]`: a convolution of x by g with stride and
dilation swapped, examples and channels as groups. On a linear layer: the batched outer product
`g_b^T a_b`, stored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fxperex.cost_model.sites import each_by_convolution, first_touch, per_example_product
from fxperex.cost_model.sizes import (
    convolves,
    dead_taps_bytes,
    grads_bytes,
    inputs_bytes,
    outputs_bytes,
)
from fxperex.costs import Cost
from fxperex.layers.joined import every_use, factored
from fxperex.layers.linear import Linear
from fxperex.layers.windows import Geometry, Windowed, padded, whole_kernel
from fxperex.registry import strategy
from fxperex.sites import Site, SiteValues
from fxperex.strategies.stored import Stored

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@strategy("crb", order=10)
class Crb(Stored):
    def illegal(self, site: Site) -> str | None:
        unsuited = [use.kind for use in site.each if not every_use(use, (Linear, Windowed))]
        return f"kind {unsuited[0]} is neither convolution nor linear" if unsuited else None

    def forming(self, site: Site) -> Cost:
        d = site.dims
        assert d is not None
        grads, moved = grads_bytes(site), inputs_bytes(site) + outputs_bytes(site)
        if not convolves(site):
            return Cost((per_example_product(site, d),), transient=grads + moved, launches=21)
        traffic = 2 * (moved + grads) + d.B * dead_taps_bytes(site)
        work = (each_by_convolution(site, d, "grouped"), *first_touch(grads))
        return Cost(work, traffic, transient=grads + max(grads, moved), launches=20)

    def gradients(self, values: SiteValues) -> Tensor:
        kind = factored(values.site)
        if not isinstance(kind, Windowed):
            a, g = kind.factors(values)
            return kind.fold(values, torch.matmul(g.transpose(2, 3), a))
        axis, (image, output) = values.out_axis, kind.ordered(values.args[0], values.grad)
        shape = kind.live(values.node)
        weight = (*values.site.shape[:2], *shape.kernel)
        merged = (axis.outer, values.site.rows, axis.inner)
        grads = per_input(image, output, shape, weight).reshape(*merged, *weight)
        # Norm and sum read the store by rows: laid out so once, they need no copies of their own.
        one_image = axis.outer * axis.inner == 1
        grads = grads.squeeze(2).squeeze(0).contiguous() if one_image else grads.sum((0, 2))
        return whole_kernel(grads, shape)


def per_input(x: Tensor, g: Tensor, shape: Geometry, weight: tuple[int, ...]) -> Tensor:
    """Returns the weight gradient of every input `[N, *weight]` by one grouped convolution."""
    n, channels, groups = len(x), x.shape[1], shape.groups
    inputs, before = channels // groups, shape.before
    if not shape.even:
        x, before = padded(x, shape), (0,) * len(shape.kernel)
    # Groups are (example, group); the group's inputs play the batch, its outputs the filters.
    x = x.reshape(n * groups, inputs, *x.shape[2:]).transpose(0, 1)
    filters = g.reshape(n * g.shape[1], 1, *g.shape[2:])
    out = CONV[len(shape.kernel)](x, filters, None, shape.dilation, before, shape.stride,
                                  n * groups)
    # The floor in the output size can leave positions after the kernel.
    for i, k in enumerate(shape.kernel):
        out = out.narrow(2 + i, 0, k)
    return out.reshape(inputs, n, weight[0],
                       *shape.kernel).permute(1, 2, 0, *range(3, 3 + len(shape.kernel)))
