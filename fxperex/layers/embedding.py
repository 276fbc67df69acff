"""Embedding: rows of a table chosen by integers. `grad_b[v] = sum_{t: id_bt = v} g_bt`,
`padding_idx` kept at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxperex.contract import Lookup, Sample
from fxperex.graph.aten import packet
from fxperex.kernels.embedding import added
from fxperex.layers.shapes import scaled, split
from fxperex.registry import layer_kind
from fxperex.sites import BatchAxis, Dims, SiteValues


@layer_kind("embedding", order=60)
class Embedding(Lookup):
    one_product = True

    def claims(self, node: fx.Node, arg: int) -> bool:
        return packet(node) == "embedding" and arg == 0

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims:
        table, ids = (node.args[i].meta["val"].shape for i in (0, 1))
        return Dims(rows, 1, ids.numel() // rows, table[0], table[1])

    def layout(self, node: fx.Node, arg: int) -> str:
        return "DP"

    def tokens(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        """Returns ids `[B, T]` and output gradients `[B, T, P]`, those of `padding_idx` zero."""
        axis, rows = values.axes[1], values.site.rows
        assert axis is not None
        ids = split(values.args[1], axis, rows).reshape(rows, -1)
        g = split(values.grad, values.out_axis, rows)
        g = g.reshape(rows, ids.shape[1], values.site.shape[1])
        padding = self._padding(values)
        return ids, g if padding < 0 else torch.where(
            (ids != padding)[..., None], g, torch.zeros_like(g))

    def per_example(self, values: SiteValues) -> Tensor:
        ids, g = self.tokens(values)
        rows, entries, width = values.site.rows, *values.site.shape
        places = (ids + entries * torch.arange(rows, device=ids.device)[:, None]).reshape(-1)
        return added(places, g.reshape(-1, width), rows * entries).reshape(rows, entries, width)

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        g = scaled(values.grad, values.out_axis, factors, valid)
        return torch.ops.aten.embedding_dense_backward(g, values.args[1], values.site.shape[0],
                                                       self._padding(values), False)

    def _padding(self, values: SiteValues) -> int:
        args = values.node.args
        return args[2] if len(args) > 2 else -1  # type: ignore[return-value]

    def samples(self) -> list[Sample]:
        nn = torch.nn
        return [(nn.Embedding(7, 3), (torch.randint(7, (4, 5)),)),
                (nn.Embedding(7, 3, padding_idx=2), (torch.randint(4, (4, 9)),)),
                (nn.Embedding(7, 3), (torch.randint(7, (4,)),))]
