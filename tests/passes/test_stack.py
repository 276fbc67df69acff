"""Gradients of slices side by side: one operation instead of zeros and sums, the same bits; other
sums stay.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxperex
from fxperex.rewrite.passes import stack_slices

SELECT = torch.ops.aten.select_backward.default


def _trace(function: Callable[..., Tensor], *inputs: Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*inputs)


def _targets(graph: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]


def _put(g: Tensor, size: int, dim: int, index: int) -> Tensor:
    sizes = [*g.shape[:dim], size, *g.shape[dim:]]
    return SELECT(g, sizes, dim, index)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_all_slices_are_stacked(dim: int) -> None:
    def total(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return _put(c, 3, dim, 2) + (_put(a, 3, dim, 0) + _put(b, 3, dim, 1))

    values = torch.randn(4, 5), torch.randn(4, 5), torch.randn(4, 5)
    graph = _trace(total, *values)
    assert stack_slices(graph) == 1
    assert _targets(graph) == ["aten.stack.default"]
    assert torch.equal(graph(*values), total(*values))


def _missing(a: Tensor, b: Tensor) -> Tensor:
    return _put(a, 3, 0, 0) + _put(b, 3, 0, 2)


def _twice(a: Tensor, b: Tensor) -> Tensor:
    return _put(a, 2, 0, 0) + _put(b, 2, 0, 0)


def _elsewhere(a: Tensor, b: Tensor) -> Tensor:
    return _put(a, 2, 0, 0) + _put(b, 2, 1, 1).transpose(0, 1)


def _other_dimension(a: Tensor, b: Tensor) -> Tensor:
    return _put(a, 4, 0, 0) + _put(b, 4, 1, 1)


def _with_more(a: Tensor, b: Tensor) -> Tensor:
    return _put(a, 2, 0, 0) + _put(b, 2, 0, 1) + torch.stack([a, b])


def _scaled(a: Tensor, b: Tensor) -> Tensor:
    return torch.add(_put(a, 2, 0, 0), _put(b, 2, 0, 1), alpha=2)


def _spread(a: Tensor, b: Tensor) -> Tensor:
    return _put(a[0], 4, 0, 0) + _put(b, 4, 0, 1)  # of [4, 4] and [4, 4, 4]


@pytest.mark.parametrize("function",
                         [_missing, _twice, _elsewhere, _other_dimension, _scaled, _spread])
def test_other_sums_stay(function: Callable[..., Tensor]) -> None:
    values = torch.randn(4, 4), torch.randn(4, 4)
    graph = _trace(function, *values)
    before = _targets(graph)
    assert stack_slices(graph) == 0
    assert _targets(graph) == before
    assert torch.equal(graph(*values), function(*values))


def test_a_partial_sum_that_something_else_reads_stays() -> None:
    def both(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        part = _put(a, 3, 0, 0) + _put(b, 3, 0, 1)
        return part + _put(c, 3, 0, 2), part

    values = torch.randn(4), torch.randn(4), torch.randn(4)
    graph = _trace(both, *values)
    assert stack_slices(graph) == 0
    assert all(torch.equal(x, y) for x, y in zip(graph(*values), both(*values), strict=True))


def test_the_part_of_a_longer_sum_is_stacked() -> None:
    values = torch.randn(4, 4), torch.randn(4, 4)
    graph = _trace(_with_more, *values)
    assert stack_slices(graph) == 1
    assert torch.equal(graph(*values), _with_more(*values))


def test_attention_has_neither_sums_of_slices_nor_a_product_a_row() -> None:
    """Its queries, keys and values are slices of one linear map of a sequence that lies transposed
    in memory.
    """
    model = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    x, y = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    private = fxperex.transform(model, (x, y), nn.functional.mse_loss, backend="eager",
                                strategy="ghost")
    nodes = [n for n in private.step_graph.graph.nodes if n.op == "call_function"]
    assert not [n for n in nodes if n.target is SELECT]
    mapped = [
        n for n in nodes
        if n.target is torch.ops.aten.bmm.default and n.meta["val"].shape[-1] in (24, 8)
    ]
    assert not mapped, mapped
    assert sum("stack" in str(n.target) for n in nodes) >= 1
