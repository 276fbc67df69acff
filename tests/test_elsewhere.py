"""Plans for a GPU that is not here, under its own autocast."""

from __future__ import annotations

import torch
from torch import nn

from fxperex.clipping import as_rule
from fxperex.rewrite.rewriter import rewrite
from fxperex.transform import outline


class _Tied(nn.Module):
    """Attention between an embedding and a head of one weight; positions are made in the
    forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids + 0 * torch.arange(ids.shape[1]))
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(
            1, 2).flatten(2)
        return self.head(x).float().square().mean((1, 2))


def test_a_plan_under_autocast_needs_no_gpu() -> None:
    with torch.device("meta"):
        model, ids = _Tied(), torch.zeros(4, 6, dtype=torch.long)
    supported = torch.cuda.is_bf16_supported
    made = outline(model, (ids,), autocast=torch.bfloat16, device=torch.device("cuda"))
    assert torch.cuda.is_bf16_supported is supported and not torch.is_autocast_enabled("cuda")
    dtypes = {c.site.params[0]: c.site.dtype for c in made.plan.choices}
    # As CUDA's autocast has it: products in bfloat16, normalisation in float32.
    assert dtypes["qkv.weight"] == torch.bfloat16 and dtypes["norm.weight"] == torch.float32
    assert {p.device.type
            for p in model.parameters()} == {"meta"} and model.head.weight is model.table.weight
    graph = rewrite(made.capture, made.analysis, made.plan, as_rule(1.0)).graph
    devices = {n.kwargs["device"].type for n in graph.nodes if n.kwargs.get("device") is not None}
    assert devices <= {"meta"}, "what is planned on the meta device names no other"
