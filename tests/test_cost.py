"""Prices of operations outside the sites."""

from __future__ import annotations

import pytest
import torch

from fxperex.cost_model.nodes import node_cost


@pytest.mark.parametrize("name", ["efficient", "flash", "cudnn"])
def test_fused_attention_on_a_gpu_is_its_products(name: str) -> None:
    """Two forward and five backward, also where one tensor is query, key and value, and beside a
    mask.
    """
    q, k = torch.empty(2, 3, 7, 8, device="meta"), torch.empty(2, 3, 5, 8, device="meta")
    aten, mask, at = torch.ops.aten, torch.empty(2, 3, 7, 5, device="meta"), torch.empty(
        2, 3, 7, device="meta")
    forward = getattr(aten, f"_scaled_dot_product_{name}_attention").default
    backward = getattr(aten, f"_scaled_dot_product_{name}_attention_backward").default
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(4)]
    for node, value in zip(nodes, (q, k, mask, at), strict=True):
        node.meta["val"] = value
    query, key, bias, sums = nodes
    ahead = graph.call_function(forward, (query, key, key, bias))
    back = graph.call_function(backward, (query, query, key, key, query, sums))
    itself = graph.call_function(forward, (query, query, query))
    for node in (ahead, back, itself):
        node.meta["val"] = torch.empty_like(q)
    work = [node_cost(node).work[0] for node in (ahead, back, itself)]
    assert [w.shape for w in work] == [(6, 7, 8, 5), (6, 7, 8, 5), (6, 7, 8, 7)]
    assert [w.calls for w in work] == [2, 5, 2]
