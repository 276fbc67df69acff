"""Bare parameters in broadcast element-by-element operations: class token, layer scale, positional
embedding.

With the parameter expanded to the output's shape every element has its own derivative; summing over
the repeated dimensions, but not over the batch, gives the per-example gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxperex.contract import ClosedForm, Sample
from fxperex.graph.aten import packet
from fxperex.layers.shapes import unbroadcast
from fxperex.registry import layer_kind
from fxperex.sites import SiteValues


@layer_kind("elementwise", order=50)
class Elementwise(ClosedForm):
    def claims(self, node: fx.Node, arg: int) -> bool:
        if packet(node) == "expand":
            return arg == 0
        tags = getattr(node.target, "tags", ())
        # `prelu` is tagged pointwise though its weight lies along dimension 1.
        return torch.Tag.pointwise in tags and packet(node) not in {"prelu", "_prelu_kernel"}

    def per_example(self, values: SiteValues) -> Tensor:
        site, g = values.site, values.grad
        if packet(values.node) != "expand":
            with torch.enable_grad():
                args = [a.detach() if isinstance(a, Tensor) else a for a in values.args]
                wide = args[site.arg].expand(g.shape).detach().requires_grad_()
                args[site.arg] = wide
                (g,) = torch.autograd.grad(values.call(args), wide, g)
        return unbroadcast(g, values.out_axis, site.shape, site.rows)

    def samples(self) -> list[Sample]:
        from fxperex.testing import Bare, Call

        return [(Bare(lambda p, x: x + p, (5, )), (torch.randn(3, 4, 5), )),
                (Bare(lambda p, x: x * p, (4, 1)), (torch.randn(3, 4, 5), )),
                (Bare(lambda p, x: x / (p.exp() + 1), ()), (torch.randn(3, 4, 5), )),
                (Bare(lambda p, x: (p - x.transpose(0, 1)).transpose(0, 1),
                      (4, 1, 5)), (torch.randn(3, 4, 5), )),
                (Bare(lambda p, x: torch.cat([p.expand(x.shape[0], -1, -1), x], 1),
                      (1, 1, 5)), (torch.randn(3, 4, 5), )),
                (Call(lambda m, x: x * m.weight,
                      torch.nn.LayerNorm(5, bias=False)), (torch.randn(3, 4, 5), ))]
