"""Linear maps `y = x W^T` (`linear`) and `y = x W` (`matmul`, `mm`, `addmm`), any leading dimensions.

`a [B,1,T,D]` are the inputs, `g [B,1,T,P]` the output gradients: `grad_b = g_b^T a_b`.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxperex.layers.shapes import clean, packet, scaled, split
from fxperex.registry import BatchAxis, Dims, Uses, layer_kind

# op -> (place of the input, place of the weight, weight is [P, D])
PLACES = {"linear": (0, 1, True), "matmul": (0, 1, False), "mm": (0, 1, False), "addmm": (1, 2, False)}


@layer_kind("linear")
class Linear:
    ops = tuple(f"aten.{op}" for op in PLACES)

    def claims(self, node: fx.Node, arg: int) -> bool:
        places = PLACES.get(packet(node))
        if places is None or arg != places[1] or dict(node.kwargs):
            return False
        weight, x = node.args[places[1]], node.args[places[0]]
        return weight.meta["val"].dim() == 2 and x.meta["val"].dim() >= 2 and weight is not x  # type: ignore[union-attr]

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims:
        x, w, row_major = PLACES[packet(node)]
        shape, weight = node.args[x].meta["val"].shape, node.args[w].meta["val"].shape  # type: ignore[union-attr]
        inputs, outputs = (weight[1], weight[0]) if row_major else (weight[0], weight[1])
        return Dims(rows, 1, shape[:-1].numel() // rows, inputs, outputs)

    def factors(self, uses: Uses) -> tuple[Tensor, Tensor]:
        x, axis = self._input(uses)
        rows = uses.site.rows
        return split(x, axis, rows).reshape(rows, 1, -1, x.shape[-1]), self.outputs(uses)

    def outputs(self, uses: Uses) -> Tensor:
        """Output gradients `g [B,1,T,P]`."""
        return split(uses.grad, uses.out_axis, uses.site.rows).reshape(uses.site.rows, 1, -1, uses.grad.shape[-1])

    def gram(self, uses: Uses) -> Tensor:
        """`<a_t, a_s>` `[B,1,T,T]`, float64."""
        a = self.factors(uses)[0].double()
        return a @ a.transpose(2, 3)

    def fold(self, uses: Uses, grads: Tensor) -> Tensor:
        """`[B,1,P,D]` -> `[B, *weight shape]`."""
        grads = grads.squeeze(1)
        return grads if PLACES[packet(uses.node)][2] else grads.transpose(1, 2)

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        x, axis = self._input(uses)
        g = scaled(uses.grad, uses.out_axis, factors, valid).reshape(-1, uses.grad.shape[-1])
        a = clean(x, axis, valid).reshape(-1, x.shape[-1])
        return g.t() @ a if PLACES[packet(uses.node)][2] else a.t() @ g

    def _input(self, uses: Uses) -> tuple[Tensor, BatchAxis]:
        place = PLACES[packet(uses.node)][0]
        axis = uses.axes[place]
        assert axis is not None
        return uses.args[place], axis

    def samples(self) -> list[tuple[torch.nn.Module, tuple[Tensor, ...]]]:
        from fxperex.testing import Call

        nn = torch.nn
        return [
            (nn.Linear(5, 3), (torch.randn(4, 5),)),
            (nn.Linear(5, 3, bias=False), (torch.randn(4, 7, 5),)),
            (nn.Linear(5, 3), (torch.randn(3, 2, 6, 5),)),
            (Call(lambda m, x: m(x.transpose(0, 1)).transpose(0, 1), nn.Linear(5, 3)), (torch.randn(4, 6, 5),)),
            (Call(lambda m, x: m(x.reshape(-1, 5)).reshape(-1, 6, 3), nn.Linear(5, 3)), (torch.randn(4, 6, 5),)),
            (Call(lambda m, x: x @ m.weight.t(), nn.Linear(5, 3, bias=False)), (torch.randn(4, 6, 5),)),
            (Call(lambda m, x: torch.addmm(m.bias, x, m.weight.t()), nn.Linear(5, 3)), (torch.randn(4, 5),)),
            (Call(lambda m, x: x @ m.weight[0], nn.Conv1d(4, 2, 5, bias=False)), (torch.randn(3, 6, 4),)),
        ]
