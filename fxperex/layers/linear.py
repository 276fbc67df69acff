"""Products with a parameter on either side: `linear`, `matmul`, `mm`, `bmm`, `mv`, `addmm`,
`baddbmm`, `einsum`.

`a [B,G,T,D]` are the inputs, `g [B,G,T,P]` the output gradients: `grad_b = g_b^T a_b`. Groups are
the batch
dimensions of a weight: heads, experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxperex import kernels
from fxperex.contract import Flat, Sample
from fxperex.layers.products import Product, arranged, product, unarranged
from fxperex.layers.shapes import clean, scaled
from fxperex.registry import layer_kind
from fxperex.sites import BatchAxis, Dims, SiteValues


@layer_kind("linear", order=70)
class Linear(Flat):
    one_product = True

    def claims(self, node: fx.Node, arg: int) -> bool:
        return product(node, arg) is not None

    def layout(self, node: fx.Node, arg: int) -> str:
        return self._product(node, arg).layout

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims:
        p = self._product(node, arg)
        return Dims(rows, p.size("G"), p.size("T") // rows, p.size("D"), p.size("P"))

    def factors(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        p, x, axis = self._operands(values)
        order = [
            "*",
            p.letters("G"),
            p.letters("T").replace(p.input[axis.dim], "<>"),
            p.letters("D")
        ]
        return arranged(x, p.input, order, p.sizes, axis, values.site.rows), self.outputs(values)

    def outputs(self, values: SiteValues) -> Tensor:
        """Output gradients `g [B,G,T,P]`."""
        p, _, axis = self._operands(values)
        order = [
            "*",
            p.letters("G"),
            p.letters("T").replace(p.input[axis.dim], "<>"),
            p.letters("P")
        ]
        return arranged(values.grad, p.out, order, p.sizes, values.out_axis, values.site.rows)

    def fold(self, values: SiteValues, grads: Tensor) -> Tensor:
        """`[B,G,P,D]` -> `[B, *weight shape]`."""
        return unarranged(grads, self._product(values.node, values.site.arg), values.site.shape)

    def flat(self, values: SiteValues, factors: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        p, x, axis = self._operands(values)
        x = x if kernels.looks(x) else clean(x, axis, valid)
        g = scaled(values.grad, values.out_axis, factors, valid)
        # Rows in the input's own order, so that nothing is copied.
        order = [p.letters("G"), p.letters("T").replace(p.input[axis.dim], "<*>")]
        a = arranged(x, p.input, [*order, p.letters("D")], p.sizes, axis, values.site.rows)
        return a, arranged(g, p.out, [*order, p.letters("P")], p.sizes, values.out_axis,
                           values.site.rows)

    def summed(self, values: SiteValues, a: Tensor, g: Tensor, valid: Tensor) -> Tensor:
        if self._product(values.node, values.site.arg).layout == "DP":
            # The factors change places: no transposed result.
            return kernels.product(a[0], g[0], valid)
        total = kernels.product(g[0], a[0], valid) if len(a) == 1 else kernels.product(g, a, valid)
        return self.fold(values, total.reshape(1, *g.shape[::2], a.shape[2]))[0]

    def _product(self, node: fx.Node, arg: int) -> Product:
        claimed = product(node, arg)
        assert claimed is not None
        return claimed

    def _operands(self, values: SiteValues) -> tuple[Product, Tensor, BatchAxis]:
        p = self._product(values.node, values.site.arg)
        axis = values.axes[p.x]
        assert axis is not None
        return p, values.args[p.x], axis

    def samples(self) -> list[Sample]:
        from fxperex.testing import Bare, Call

        nn, randn = torch.nn, torch.randn
        return [
            (nn.Linear(5, 3), (randn(4, 5), )),
            (nn.Linear(5, 3, bias=False), (randn(4, 7, 5), )),
            (nn.Linear(5, 3), (randn(3, 2, 6, 5), )),
            (Call(lambda m, x: m(x.transpose(0, 1)).transpose(0, 1),
                  nn.Linear(5, 3)), (randn(4, 6, 5), )),
            (Call(lambda m, x: m(x.reshape(-1, 5)).reshape(-1, 6, 3),
                  nn.Linear(5, 3)), (randn(4, 6, 5), )),
            (Call(lambda m, x: x @ m.weight.t(), nn.Linear(5, 3, bias=False)), (randn(4, 6, 5), )),
            (Call(lambda m, x: torch.addmm(m.bias, x, m.weight.t()),
                  nn.Linear(5, 3)), (randn(4, 5), )),
            (Call(lambda m, x: x @ m.weight[0], nn.Conv1d(4, 2, 5, bias=False)), (randn(3, 6,
                                                                                        4), )),
            (Bare(lambda p, x: p @ x, (6, 4)), (randn(3, 4, 5), )),
            (Bare(lambda p, x: torch.mm(p, x.t()).t(), (6, 4)), (randn(3, 4), )),
            (Bare(lambda p, x: x @ p, (5, )), (randn(3, 4, 5), )),
            (Bare(lambda p, x: torch.bmm(x.transpose(0, 1), p).transpose(0, 1),
                  (4, 5, 2)), (randn(3, 4, 5), )),
            (Bare(lambda p, x: x[:, None] @ p, (2, 5, 3)), (randn(3, 4, 5), )),
            (Bare(lambda p, x: x @ p, (1, 5, 3)), (randn(3, 4, 6, 5), )),
            (Bare(lambda p, x: p @ x, (3, 2, 4)), (randn(5, 3, 4, 2), )),
            (Bare(lambda p, x: torch.einsum("btd,dhk->bthk", x, p), (5, 2, 3)), (randn(3, 4, 5), )),
            (Bare(lambda p, x: torch.einsum("hkd,bthd->bhtk", p, x), (2, 3, 5)), (randn(3, 4, 2,
                                                                                        5), )),
            (Bare(lambda p, x: torch.einsum("...d,dk->...k", x, p), (5, 2)), (randn(3, 4, 5), )),
            (Bare(lambda p, x: torch.einsum("bd...,dk", x, p).movedim(0, 1),
                  (5, 2)), (randn(3, 5, 4), )),
            (Bare(lambda p, x: torch.einsum("tbhk,hkd->tbd", x.transpose(0, 1), p).transpose(0, 1),
                  (2, 3, 5)), (randn(3, 4, 2, 3), )),
        ]
