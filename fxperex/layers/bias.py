"""Biases of linear maps and convolutions: `grad_b = sum_t g_bt`, formed exactly."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxperex.layers.shapes import packet, unbroadcast
from fxperex.registry import BatchAxis, Uses, layer_kind

# op -> (place of the bias, channel dimension of the output)
PLACES = {
    "linear": (2, -1), "addmm": (0, -1), "bilinear": (3, -1), "conv1d": (2, 1), "conv2d": (2, 1),
    "conv3d": (2, 1), "conv_transpose1d": (2, 1), "conv_transpose2d": (2, 1),
    "conv_transpose3d": (2, 1)
}


@layer_kind("bias")
class Bias:
    ops = tuple(f"aten.{op}" for op in PLACES)
    reads_inputs = False

    def claims(self, node: fx.Node, arg: int) -> bool:
        place = PLACES.get(packet(node))
        if place is None or arg != place[0] or not isinstance(node.args[arg], fx.Node):
            return False
        return node.args[arg].meta["val"].dim() == 1 and not dict(
            node.kwargs)  # type: ignore[union-attr]

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> None:
        return None

    def per_example(self, uses: Uses) -> Tensor:
        site = uses.site
        return unbroadcast(uses.grad, uses.out_axis, _spread(uses),
                           site.rows).reshape(site.rows, *site.shape)

    def single(self, uses: Uses, weight: Tensor) -> Tensor:
        """One example's output but for what the bias has no part in."""
        shape, dim = list(uses.grad.shape), uses.out_axis.dim
        shape[dim] //= uses.site.rows
        return weight.reshape(_spread(uses)).expand(shape)

    def samples(self) -> list[tuple[torch.nn.Module, tuple[Tensor, ...]]]:
        nn = torch.nn
        return [(nn.Linear(3, 4), (torch.randn(3, 2, 3), )),
                (nn.Conv2d(2, 3, 2), (torch.randn(3, 2, 4, 4), )),
                (nn.ConvTranspose1d(2, 3, 2), (torch.randn(3, 2, 4), ))]


def _spread(uses: Uses) -> tuple[int, ...]:
    """The bias' shape, broadcast against the output."""
    behind = 0 if PLACES[packet(uses.node)][1] == -1 else uses.grad.dim() - 2
    return (*uses.site.shape, *(1,) * behind)
