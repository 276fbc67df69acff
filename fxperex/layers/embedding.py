"""Embedding: rows of a table chosen by integers. `grad_b[v] = sum_{t: id_bt = v} g_bt`,
`padding_idx` kept at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxperex.kernels.embedding import added
from fxperex.layers.joined import OneHot, inner
from fxperex.layers.shapes import packet, scaled, split
from fxperex.registry import BatchAxis, Dims, Uses, layer_kind


@layer_kind("embedding")
class Embedding:
    ops = ("aten.embedding",)

    def claims(self, node: fx.Node, arg: int) -> bool:
        return packet(node) == "embedding" and arg == 0

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims:
        table, ids = node.args[0].meta["val"].shape, node.args[1].meta[
            "val"].shape  # type: ignore[union-attr]
        return Dims(rows, 1, ids.numel() // rows, table[0], table[1])

    def layout(self, node: fx.Node, arg: int) -> str:
        return "DP"

    def factors(self, uses: Uses) -> tuple[OneHot, Tensor]:
        ids, g = self.tokens(uses)
        return OneHot(ids, uses.site.shape[0]), g[:, None]

    def gram(self, uses: Uses) -> Tensor:
        """`[id_t = id_s]` `[B,1,T,T]`, float64."""
        a, _ = self.factors(uses)
        return inner(a, a)

    def out_gram(self, uses: Uses) -> Tensor:
        """`<g_t, g_s>` `[B,1,T,T]`, float64."""
        _, g = self.factors(uses)
        return inner(g, g)

    def tokens(self, uses: Uses) -> tuple[Tensor, Tensor]:
        """Returns ids `[B, T]` and output gradients `[B, T, P]`, those of `padding_idx` zero."""
        axis, rows = uses.axes[1], uses.site.rows
        assert axis is not None
        ids = split(uses.args[1], axis, rows).reshape(rows, -1)
        g = split(uses.grad, uses.out_axis, rows).reshape(rows, ids.shape[1], uses.site.shape[1])
        padding = self._padding(uses)
        return ids, g if padding < 0 else torch.where(
            (ids != padding)[..., None], g, torch.zeros_like(g))

    def per_example(self, uses: Uses) -> Tensor:
        ids, g = self.tokens(uses)
        rows, entries, width = uses.site.rows, *uses.site.shape
        places = (ids + entries * torch.arange(rows, device=ids.device)[:, None]).reshape(-1)
        return added(places, g.reshape(-1, width), rows * entries).reshape(rows, entries, width)

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        g = scaled(uses.grad, uses.out_axis, factors, valid)
        return torch.ops.aten.embedding_dense_backward(g, uses.args[1], uses.site.shape[0],
                                                       self._padding(uses), False)

    def _padding(self, uses: Uses) -> int:
        return uses.node.args[2] if len(uses.node.args) > 2 else -1  # type: ignore[return-value]

    def samples(self) -> list[tuple[torch.nn.Module, tuple[Tensor, ...]]]:
        nn = torch.nn
        return [(nn.Embedding(7, 3), (torch.randint(7, (4, 5)),)),
                (nn.Embedding(7, 3, padding_idx=2), (torch.randint(4, (4, 9)),)),
                (nn.Embedding(7, 3), (torch.randint(7, (4,)),))]
