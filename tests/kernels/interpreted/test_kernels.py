"""Kernels against float64 formulas: odd sizes, strided and transposed operands, every dtype,
splits, stored or not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_shapes import CONVS, EMBEDDING, GRAM, LINEAR, WEIGHTED, conv_case
from torch import Tensor

from fxperex import kernels
from fxperex.kernels import device
from fxperex.kernels.conv import reference as conv_reference
from fxperex.kernels.gpu import conv, depthwise, linear
from fxperex.testing import error

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What the store may round: float32 sums, or half a unit of the 16-bit dtype.
STORED = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def squares(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().sum(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "positions", "inputs", "outputs"), LINEAR)
def test_linear(groups: int, positions: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    # The batch lies in the second dimension, as in sequence-first code.
    a = torch.randn(groups, 3, positions, inputs).to(dtype).transpose(0, 1)
    g = torch.randn(3, groups, outputs, positions).to(dtype).transpose(2, 3)
    truth = torch.einsum("bgtp,bgtd->bgpd", g.double(), a.double())
    assert error(kernels.linear_sq_norm(a, g), squares(truth)) <= 1e-6
    grads, found = kernels.linear_gradients(a, g, "ieee")
    assert grads.dtype == dtype and error(grads, truth) <= STORED[dtype]
    assert error(found, squares(grads)) <= 1e-6, "norms are those of what was stored"
    for parts in (2, 3):
        grads, found = linear.launch(a, g, dtype, "ieee", parts=parts)
        assert error(grads, truth) <= STORED[dtype] and error(found, squares(grads)) <= 1e-6
        none, found = linear.launch(a, g, None, "ieee", parts=parts)
        assert none is None and error(found, squares(truth)) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_weight_fills_the_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA of rank 16 with T = 1024, on 132 processors: one tile an example, so its positions are
    split, and added in order.
    """
    monkeypatch.setattr(device, "_processors", lambda _: 132)
    grids: list[int] = []
    monkeypatch.setattr(linear, "linear_tuned", _Counting(linear.linear_tuned, grids))
    a, g = torch.randn(3, 1, 1024, 32).to(dtype), torch.randn(3, 1, 1024, 16).to(dtype)
    truth = torch.einsum("bgtp,bgtd->bgpd", g.double(), a.double())
    found = kernels.linear_sq_norm(a, g)
    assert grids == [3 * 4], "four parts of 256 positions, for each of three examples"
    # The square of the sum: parts of one gradient that cancel must cancel in its norm.
    assert error(found, squares(truth)) <= 1e-6 and torch.equal(found, kernels.linear_sq_norm(a, g))
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(256).repeat(2)[None, None, :,
                                                                       None].to(dtype)
    cancelling = kernels.linear_sq_norm(a[:, :, :256].repeat(1, 1, 4, 1),
                                        g[:, :, :256].repeat(1, 1, 4, 1) * signs)
    assert (cancelling <= 1e-10 * found).all()
    grads, norms = kernels.linear_gradients(a, g, "ieee")
    assert grads.dtype == dtype and error(grads, truth) <= STORED[dtype] and error(
        norms, squares(grads)) <= 1e-6


class _Counting:
    """A kernel that notes how many programs it was launched with."""

    def __init__(self, kernel: Any, grids: list[int]) -> None:
        self.kernel, self.grids = kernel, grids

    def __getitem__(self, grid: tuple[int]) -> Any:
        self.grids.append(grid[0])
        return self.kernel[grid]


def test_a_first_convolution_fills_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of 8 x 27 over 32 x 32 positions: one tile an example, split as a small linear map
    is.
    """
    monkeypatch.setattr(device, "_processors", lambda _: 132)
    grids: list[int] = []
    monkeypatch.setattr(conv, "conv_tuned", _Counting(conv.conv_tuned, grids))
    x, g, shape = conv_case((1, 3, 8, (32, 32)), ([3, 3], [1, 1], [1, 1], [1, 1], 1),
                            channels_last=True)
    assert error(kernels.conv_sq_norm(x, g, *shape), squares(by_autograd(x, g, shape))) <= 1e-6
    assert grids == [3 * 4]


def by_autograd(x: Tensor, g: Tensor, shape: kernels.Shape) -> Tensor:
    """The truth: one ordinary convolution backward per example."""
    dims = len(shape.kernel)
    weight = x.new_zeros(g.shape[2], x.shape[2] // shape.groups, *shape.kernel).double()
    return torch.stack([
        torch.ops.aten.convolution_backward(gb, xb, weight, None, shape.stride, shape.before,
                                            shape.dilation, False, [0] * dims, shape.groups,
                                            [False, True, False])[1]
        for xb, gb in zip(x.double(), g.double(), strict=True)
    ])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("sizes", "options"), CONVS)
def test_conv(sizes: tuple, options: tuple, last: bool) -> None:  # type: ignore[type-arg]
    x, g, shape = conv_case(sizes, options, last)
    truth = by_autograd(x, g, shape)
    assert error(conv_reference(x.double(), g.double(), shape), truth) <= 1e-12
    assert error(kernels.conv_sq_norm(x, g, *shape), squares(truth)) <= 1e-6
    for dtype in DTYPES:
        xs, gs = x.to(dtype), g.to(dtype)
        exact = by_autograd(xs, gs, shape)
        grads, found = kernels.conv_gradients(xs, gs, *shape, "ieee")
        assert grads.dtype == dtype and error(grads, exact) <= STORED[dtype]
        assert error(found, squares(grads)) <= 1e-6
    if shape.groups < x.shape[2]:
        for store in (None, torch.float32):
            grads, found = conv.launch(x, g, shape, store, "ieee", parts=3)
            assert error(found, squares(truth)) <= 1e-6 and (grads is None
                                                             or error(grads, truth) <= 1e-6)
    else:
        assert error(depthwise.launch(x, g, shape, None)[0], truth) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "positions", "inputs", "outputs"), GRAM)
def test_gram(groups: int, positions: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    a = torch.randn(3, groups, positions, inputs).to(dtype)
    g = torch.randn(3, groups, positions, outputs).to(dtype)
    truth = torch.einsum("bgtp,bgtd->bgpd", g.double(), a.double())
    assert error(kernels.gram_sq_norm(a, g), squares(truth)) <= 1e-12


def test_gram_of_cancelling_positions() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(40)[:, None]
    a = torch.ones(1, 1, 80, 16) + 1e-4 * torch.randn(1, 1, 80, 16)
    g = signs * torch.ones(1, 1, 80, 8)
    truth = torch.einsum("bgtp,bgtd->bgpd", g.double(), a.double())
    # The sum of |a||g| is some 1e5 times the gradient; float32 Gram products read nonsense here.
    assert error(kernels.gram_sq_norm(a, g), squares(truth)) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "width", "entries"), EMBEDDING)
def test_embedding(length: int, width: int, entries: int, dtype: torch.dtype) -> None:
    ids, g = torch.randint(entries, (3, length)), torch.randn(length, 3,
                                                              width).to(dtype).transpose(0, 1)
    table = torch.zeros(3, entries, width, dtype=torch.float64)
    for b in range(3):
        table[b].index_add_(0, ids[b], g[b].double())
    assert error(kernels.embedding_sq_norm(ids, g), squares(table)) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per", [0, 3])
@pytest.mark.parametrize("last", [False, True])
def test_affine(per: int, last: bool, dtype: torch.dtype) -> None:
    x, g = torch.randn(3, 6, 37).to(dtype), torch.randn(3, 6, 37).to(dtype)
    if last:
        x, g = (v.transpose(1, 2).contiguous().transpose(1, 2) for v in (x, g))
    count = 37 if per == 0 else 2
    mean, rstd = torch.randn(3, count), torch.rand(3, count) + 0.5
    wide_mean, wide_rstd = (s.double()[:, None]
                            if per == 0 else s.double().repeat_interleave(3, 1)[:, :, None]
                            for s in (mean, rstd))
    truth = (g.double() * (x.double() - wide_mean) * wide_rstd).sum(2), g.double().sum(2)
    *found, norms = kernels.affine_gradients(x, g, mean, rstd, per)
    for i in (0, 1):
        assert error(found[i], truth[i]) <= 1e-6 and error(norms[:, i], squares(found[i])) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", WEIGHTED)
def test_weighted_sum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    grads, factors = torch.randn(5, *shape).to(dtype), torch.rand(5, dtype=torch.float64)
    grads[1], grads[3] = float("nan"), float("inf")
    factors[1], factors[3] = float("nan"), 0.0
    valid = torch.tensor([True, False, True, False, True])
    truth = torch.einsum("b,b...->...", factors[valid], grads[valid].double())
    found = kernels.weighted_sum(grads, factors, valid)
    assert found.dtype == torch.float32 and error(found, truth) <= 1e-6
    assert torch.equal(kernels.weighted_sum(grads, factors, torch.zeros(5, dtype=torch.bool)),
                       torch.zeros(shape))
