"""Per-example products `g_b^T a_b` of linear maps: squared norms streamed, or gradients stored with
their norms.

`a [B,G,T,D]`, `g [B,G,T,P]`. Small weights (LoRA, first layers) have few tiles: their positions are
split over programs, whose parts are added before anything is squared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.kernels.device import ANY_STRIDES, runs
from fxperex.numerics.norms import sq_norm

# bytes of gradients formed at a time where there is no kernel: a cache holds them until their norm
# is taken
STREAMED = 2**24


@torch.library.custom_op("fxperex::linear_sq_norm", mutates_args=(), tags=ANY_STRIDES)
def linear_sq_norm(a: Tensor, g: Tensor) -> Tensor:
    """Returns `|g_b^T a_b|^2`, float64 `[B]`, products in full float32; nothing of the size of a
    gradient is kept.
    """
    if runs(a, g):
        from fxperex.kernels.gpu.linear import launch

        return launch(a, g, store=None, precision="ieee")[1]
    return _streamed(a, g)


@linear_sq_norm.register_fake
def _(a: Tensor, g: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], dtype=torch.float64)


@torch.library.custom_op("fxperex::linear_gradients", mutates_args=(), tags=ANY_STRIDES)
def linear_gradients(a: Tensor, g: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Returns (`g_b^T a_b` `[B,G,P,D]` in the operands' dtype, squared norms `[B]` of what was
    stored, float64).
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
    """Squared norms `[B]` by a few examples at a time, or by a few outputs of one, in one small
    buffer.
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
            out = buffer[:part.shape[0] * part.shape[1] * inputs].view(
                part.shape[0], part.shape[1], inputs)
            squares[b:b + count] += sq_norm(
                torch.bmm(part, x[chunk], out=out).view(-1, groups * part.shape[1] * inputs))
    return squares
