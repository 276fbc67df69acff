"""Sums that look for invalid examples themselves: what is not finite reaches nobody, and compilers
get plain operations.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxperex
from fxperex import kernels
from fxperex.kernels import summing, weighted
from fxperex.rewrite.passes import inline_custom_ops
from fxperex.testing import error


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), -float("inf")])
def test_a_row_that_is_not_finite_reaches_nobody(bad: float) -> None:
    a, g, valid = torch.randn(3, 400, 400), torch.randn(3, 400,
                                                        5), torch.tensor([True, False, True])
    want = sum(g[b].t() @ a[b] for b in (0, 2))
    a[1], g[1] = bad, 0.0  # as the layer hands it over
    assert kernels.looks(a) and not kernels.looks(a[:, :10, :10].contiguous())
    assert error(kernels.product(g.flatten(0, 1), a.flatten(0, 1), valid), want) < 1e-5
    assert error(kernels.product(a.flatten(0, 1), g.flatten(0, 1), valid), want.t()) < 1e-5


@pytest.mark.parametrize("strategy", ["ghost", "unfold", "fused", "outer"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_one_bad_example_leaves_the_others_alone(strategy: str, backend: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "SMALL", 0)
    monkeypatch.setattr(weighted, "SMALL", 0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(1), nn.Linear(16, 3))
    x = torch.randn(4, 2, 4, 4)
    private = fxperex.transform(model, (x, ), forward=lambda m, v: m(v).square().sum(1),
                                strategy=strategy, backend=backend)
    assert {"fxperex.product.default", "fxperex.weighted_sum.default"
            } & {str(n.target)
                 for n in private.step_graph.graph.nodes}

    def sums(batch: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        dropped = private.step(batch).dropped
        assert dropped == int((~batch.isfinite()).flatten(1).any(1).sum())
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    want = sums(x[:3])
    x[3, 0, 0, 0] = float("inf")
    for name, found in sums(x).items():
        assert error(found, want[name]) < 1e-5, name


def test_a_compiler_gets_plain_operations_of_what_is_small() -> None:
    def run(a: Tensor, g: Tensor, long: Tensor, factors: Tensor,
            valid: Tensor) -> tuple[Tensor, ...]:
        return (weighted.weighted_sum(a, factors,
                                      valid), summing.checked_product(g, a[:, 0], valid),
                weighted.weighted_sum(long, factors,
                                      valid), summing.checked_product(g, long, valid))

    valid = torch.tensor([True, True, False, True])
    inputs = (torch.randn(4, 3, 5), torch.randn(4, 2), torch.randn(4, 2**18), torch.rand(4), valid)
    inputs[1][2] = 0.0  # what stands in the row of an example that does not count
    graph = make_fx(run, tracing_mode="fake")(*inputs)
    want = graph(*inputs)
    found = [str(n.target) for n in inline_custom_ops(graph).graph.nodes]
    assert sum("fxperex.weighted_sum" in t for t in found) == 1 and sum("fxperex.product" in t
                                                                        for t in found) == 1
    inputs[0][2] = float("nan")
    assert all(error(a, b) < 1e-6 for a, b in zip(graph(*inputs)[:2], want[:2], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(graph(*inputs)[2:], want[2:], strict=True))
