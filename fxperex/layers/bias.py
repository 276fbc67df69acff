"""Biases of linear maps and convolutions: `grad_b = sum_t g_bt`, formed exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxperex.contract import ClosedForm, Sample
from fxperex.graph.aten import packet
from fxperex.layers.shapes import unbroadcast
from fxperex.registry import layer_kind
from fxperex.sites import Site, SiteValues

# op -> (place of the bias, channel dimension of the output)
PLACES = {
    "linear": (2, -1), "addmm": (0, -1), "bilinear": (3, -1), "conv1d": (2, 1), "conv2d": (2, 1),
    "conv3d": (2, 1), "conv_transpose1d": (2, 1), "conv_transpose2d": (2, 1),
    "conv_transpose3d": (2, 1)
}


@layer_kind("bias", order=10)
class Bias(ClosedForm):
    reads_inputs = False

    def claims(self, node: fx.Node, arg: int) -> bool:
        place = PLACES.get(packet(node))
        if place is None or arg != place[0] or not isinstance(node.args[arg], fx.Node):
            return False
        return node.args[arg].meta["val"].dim() == 1 and not node.kwargs

    def per_example(self, values: SiteValues) -> Tensor:
        site = values.site
        grads = unbroadcast(values.grad, values.out_axis, _spread(values), site.rows)
        return grads.reshape(site.rows, *site.shape)

    def example_output(self, values: SiteValues, arguments: list[Any], weight: Tensor) -> Tensor:
        """Returns the part of one example's output that depends on the bias: it, broadcast."""
        shape, dim = list(values.grad.shape), values.out_axis.dim
        shape[dim] //= values.site.rows
        return weight.reshape(_spread(values)).expand(shape)

    def output_passes(self, site: Site) -> int:
        return 1

    def samples(self) -> list[Sample]:
        nn = torch.nn
        return [(nn.Linear(3, 4), (torch.randn(3, 2, 3), )),
                (nn.Conv2d(2, 3, 2), (torch.randn(3, 2, 4, 4), )),
                (nn.ConvTranspose1d(2, 3, 2), (torch.randn(3, 2, 4), ))]


def _spread(values: SiteValues) -> tuple[int, ...]:
    """Returns the bias' shape, broadcast against the output."""
    trailing = 0 if PLACES[packet(values.node)][1] == -1 else values.grad.dim() - 2
    return (*values.site.shape, *(1,) * trailing)
