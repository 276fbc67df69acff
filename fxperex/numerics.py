"""Norms that are never below the true ones but for rounding.

torch's float32 `norm()` over one long vector loses small terms (2.6e-3 low at 38 M elements on the CPU), and a block of
1024 equal numbers reads up to 8 x 2^-20 low where it is summed one by one. So squares are summed in blocks of 64, at
most 0.55 x 2^-20 low in any order, in the operand's precision, and the blocks in float64. What float32 squares cannot
hold reads as infinite (above 1.8e19) or as zero (below 1e-23): see `config`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.config import LOW_PRECISION

BLOCK = 64


def sq_norm(x: Tensor) -> Tensor:
    """Returns squared norms `[B]` in float64 of the rows of `x [B, ...]`."""
    rows, size = len(x), x[:1].numel()
    x = wide(x)
    if size == 0:
        return torch.zeros(rows, dtype=torch.float64, device=x.device)
    flat, block = x.reshape(rows, size), _divisor(size)
    if block >= min(size, BLOCK // 2):
        return _blocks(flat, block)
    whole = size - size % BLOCK
    return _blocks(flat[:, :whole], BLOCK) + _blocks(flat[:, whole:], size - whole)


def wide(x: Tensor) -> Tensor:
    """Returns `x`, in float32 where it was bfloat16 or float16."""
    return x.float() if x.dtype in LOW_PRECISION else x


def _blocks(flat: Tensor, block: int) -> Tensor:
    return torch.linalg.vector_norm(flat.unflatten(1, (-1, block)), dim=2).double().square().sum(1)


def _divisor(size: int) -> int:
    return next(b for b in range(min(BLOCK, size), 0, -1) if size % b == 0)
