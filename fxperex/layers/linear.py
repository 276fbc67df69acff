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
from fxperex.layers.joined import inner
from fxperex.layers.products import PAIRS, Product, arranged, product, unarranged
from fxperex.layers.shapes import clean, scaled
from fxperex.registry import BatchAxis, Dims, Uses, layer_kind


@layer_kind("linear")
class Linear:
    ops = tuple(f"aten.{op}" for op in PAIRS)

    def claims(self, node: fx.Node, arg: int) -> bool:
        return product(node, arg) is not None

    def layout(self, node: fx.Node, arg: int) -> str:
        return self._product(node, arg).layout

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims:
        p = self._product(node, arg)
        return Dims(rows, p.size("G"), p.size("T") // rows, p.size("D"), p.size("P"))

    def factors(self, uses: Uses) -> tuple[Tensor, Tensor]:
        p, x, axis = self._operands(uses)
        order = [
            "*",
            p.letters("G"),
            p.letters("T").replace(p.input[axis.dim], "<>"),
            p.letters("D")
        ]
        return arranged(x, p.input, order, p.sizes, axis, uses.site.rows), self.outputs(uses)

    def outputs(self, uses: Uses) -> Tensor:
        """Output gradients `g [B,G,T,P]`."""
        p, _, axis = self._operands(uses)
        order = [
            "*",
            p.letters("G"),
            p.letters("T").replace(p.input[axis.dim], "<>"),
            p.letters("P")
        ]
        return arranged(uses.grad, p.out, order, p.sizes, uses.out_axis, uses.site.rows)

    def gram(self, uses: Uses) -> Tensor:
        """`<a_t, a_s>` `[B,G,T,T]`, float64."""
        a = self.factors(uses)[0]
        return inner(a, a)

    def out_gram(self, uses: Uses) -> Tensor:
        """`<g_t, g_s>` `[B,G,T,T]`, float64."""
        g = self.outputs(uses)
        return inner(g, g)

    def fold(self, uses: Uses, grads: Tensor) -> Tensor:
        """`[B,G,P,D]` -> `[B, *weight shape]`."""
        return unarranged(grads, self._product(uses.node, uses.site.arg), uses.site.shape)

    def flat(self, uses: Uses, factors: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `a [G,N,D]` and scaled `g [G,N,P]` of all examples together, for
        `kernels.product`; invalid ones' g is zero.
        """
        p, x, axis = self._operands(uses)
        x, g = x if kernels.looks(x) else clean(x, axis, valid), scaled(
            uses.grad, uses.out_axis, factors, valid)
        # Rows in the input's own order, so that nothing is copied.
        order = [p.letters("G"), p.letters("T").replace(p.input[axis.dim], "<*>")]
        a = arranged(x, p.input, [*order, p.letters("D")], p.sizes, axis, uses.site.rows)
        return a, arranged(g, p.out, [*order, p.letters("P")], p.sizes, uses.out_axis,
                           uses.site.rows)

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        return self.summed(uses, *self.flat(uses, factors, valid), valid)

    def summed(self, uses: Uses, a: Tensor, g: Tensor, valid: Tensor) -> Tensor:
        """Returns `g^T a`, folded, of the flat factors."""
        if self._product(uses.node,
                         uses.site.arg).layout == "DP":  # rather than a transposed result
            return kernels.product(a[0], g[0], valid)
        total = kernels.product(g[0], a[0], valid) if len(a) == 1 else kernels.product(g, a, valid)
        return self.fold(uses, total.reshape(1, *g.shape[::2], a.shape[2]))[0]

    def _product(self, node: fx.Node, arg: int) -> Product:
        claimed = product(node, arg)
        assert claimed is not None
        return claimed

    def _operands(self, uses: Uses) -> tuple[Product, Tensor, BatchAxis]:
        p = self._product(uses.node, uses.site.arg)
        axis = uses.axes[p.x]
        assert axis is not None
        return p, uses.args[p.x], axis

    def samples(self) -> list[tuple[torch.nn.Module, tuple[Tensor, ...]]]:
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
