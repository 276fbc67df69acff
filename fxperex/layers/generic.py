"""Everything else: any node with a parameter, differentiated one example at a time by `vmap` or `multi`."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxperex.registry import BatchAxis, Uses, layer_kind


@layer_kind("generic")
class Generic:
    ops = ()

    def claims(self, node: fx.Node, arg: int) -> bool:
        return True

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> None:
        return None

    def samples(self) -> list[tuple[torch.nn.Module, tuple[Tensor, ...]]]:
        nn = torch.nn
        return [(nn.PReLU(4), (torch.randn(3, 4, 5),)), (nn.Bilinear(3, 4, 2), (torch.randn(5, 3), torch.randn(5, 4))),
                (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (torch.randn(3, 2, 4, 4),))]


def single(uses: Uses, values: list[object], weight: Tensor) -> Tensor:
    """Returns the node's (first) output for one example's `values`, with `weight` in the site's place."""
    args = list(values)
    args[uses.site.arg] = weight
    return uses.call(args)
