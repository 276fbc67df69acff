"""Per-example products `g_b^T a_b` of linear maps: only their squared norms, or stored with these.

`a [B,G,T,D]`, `g [B,G,T,P]`. Small weights (LoRA, input layers) have few tiles, so their positions
are split over programs; the parts are added before anything is squared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.kernels.device import ANY_STRIDES, runs
from fxperex.numerics.norms import sq_norm

# Bytes of gradients formed at a time without a kernel: a cache holds them until they are squared.
STREAMED = 2**24


@torch.library.custom_op("fxperex::linear_sq_norm", mutates_args=(), tags=ANY_STRIDES)
def linear_sq_norm(a: Tensor, g: Tensor) -> Tensor:
    """Returns `|g_b^T a_b|^2` `[B]`, float64, from full float32 products; stores no gradient."""
    if runs(a, g):
        from fxperex.kernels.gpu.linear import launch

        return launch(a, g, store=None, precision="ieee")[1]
    return _streamed(a, g)


@linear_sq_norm.register_fake
def _(a: Tensor, g: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], dtype=torch.float64)


@torch.library.custom_op("fxperex::linear_gradients", mutates_args=(), tags=ANY_STRIDES)
def linear_gradients(a: Tensor, g: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Returns (`g_b^T a_b` `[B,G,P,D]` in the operands' dtype, the squared norms `[B]` of these,
    float64).
    """
    if runs(a, g):
        from fxperex.kernels.gpu.linear import launch

        grads, squares = launch(a, g, store=a.dtype, precision=precision)
        assert grads is not None
        return grads, squares
    return _reference(a, g)


@linear_gradients.register_fake
def _(a: Tensor, g: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    rows, groups, _, inputs = a.shape
    return a.new_empty(rows, groups, g.shape[3], inputs), a.new_empty(rows, dtype=torch.float64)


def _reference(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    grads = torch.matmul(g.transpose(2, 3), a)
    return grads, sq_norm(grads)


def _streamed(a: Tensor, g: Tensor) -> Tensor:
    """Returns squared norms `[B]`, of a few examples at a time or a few outputs of one example, in
    one small buffer.
    """
    rows, groups, _, inputs = a.shape
    outputs = g.shape[3]
    line = groups * inputs * a.element_size()
    count, wide = max(STREAMED // (line * outputs), 1), min(max(STREAMED // line, 1), outputs)
    buffer = a.new_empty(min(count, rows) * groups * wide * inputs)
    squares = a.new_zeros(rows, dtype=torch.float64)
    x, y = a.flatten(0, 1), g.flatten(0, 1).transpose(1, 2)
    for b in range(0, rows, count):
        chunk = slice(b * groups, (b + count) * groups)
        for part in y[chunk].split(wide, 1):
            products, lines = part.shape[:2]
            out = buffer[:products * lines * inputs].view(products, lines, inputs)
            torch.bmm(part, x[chunk], out=out)
            squares[b:b + count] += sq_norm(out.view(-1, groups * lines * inputs))
    return squares
