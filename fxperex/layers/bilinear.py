"""Bilinear forms: `y[p] = sum_ij x[i] w[p,i,j] z[j]`, a product with the outer product of the two
inputs.

`a [B,1,T,D]` are the outer products `x_t z_t^T` (D = I * J), `g [B,1,T,P]` the output gradients.
Norms by Gram matrices need none of them: `<a_t, a_s> = <x_t, x_s> <z_t, z_s>`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from fxperex.contract import Factored, Sample
from fxperex.graph.aten import packet
from fxperex.layers.shapes import clean, scaled, split
from fxperex.numerics.factors import inner
from fxperex.registry import layer_kind
from fxperex.sites import BatchAxis, Dims, SiteValues


@layer_kind("bilinear", order=20)
class Bilinear(Factored):
    def claims(self, node: fx.Node, arg: int) -> bool:
        return packet(node) == "bilinear" and arg == 2

    def layout(self, node: fx.Node, arg: int) -> str:
        return "PIJ"

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims:
        outputs, *inputs = node.args[2].meta["val"].shape  # type: ignore[union-attr]
        return Dims(rows, 1, node.meta["val"].shape[:-1].numel() // rows, math.prod(inputs),
                    outputs)

    def factors(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        x, z = self._inputs(values)
        return _outer(x, z), self.outputs(values)

    def outputs(self, values: SiteValues) -> Tensor:
        """Output gradients `g [B,1,T,P]`."""
        return _tokens(values.grad, values.out_axis, values.site.rows)

    def gram(self, values: SiteValues) -> Tensor:
        """`<a_t, a_s>` `[B,1,T,T]`, float64."""
        x, z = self._inputs(values)
        return inner(x, x) * inner(z, z)

    def fold(self, values: SiteValues, grads: Tensor) -> Tensor:
        return grads.reshape(len(grads), *values.site.shape)

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        g = scaled(values.grad, values.out_axis, factors, valid).flatten(0, -2)
        x, z = (clean(values.args[i], values.axes[i], valid).flatten(0, -2) for i in (0, 1))
        return (_outer(g, x).t() @ z).reshape(values.site.shape)

    def _inputs(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        x, z = (_tokens(values.args[i], values.axes[i], values.site.rows) for i in (0, 1))
        return x, z

    def samples(self) -> list[Sample]:
        from fxperex.testing import Call

        nn, randn = torch.nn, torch.randn
        return [(nn.Bilinear(3, 4, 2), (randn(5, 3), randn(5, 4))),
                (nn.Bilinear(3, 4, 2, bias=False), (randn(3, 5, 3), randn(3, 5, 4))),
                (Call(lambda m, x: m(x.transpose(0, 1), x.transpose(0, 1)).transpose(0, 1),
                      nn.Bilinear(3, 3, 4)), (randn(3, 5, 3), )),
                (Call(lambda m, x: m(x,
                                     m(x, x).tanh()), nn.Bilinear(3, 3, 3)), (randn(3, 4, 3), ))]


def _tokens(x: Tensor, axis: BatchAxis | None, rows: int) -> Tensor:
    """`[*, B, *, F]` -> `[B, 1, T, F]`."""
    assert axis is not None
    return split(x, axis, rows).reshape(rows, 1, -1, x.shape[-1])


def _outer(x: Tensor, z: Tensor) -> Tensor:
    """`[..., I]`, `[..., J]` -> `[..., I * J]`."""
    return (x[..., :, None] * z[..., None, :]).flatten(-2)
