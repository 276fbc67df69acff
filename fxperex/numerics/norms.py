"""Norms that are at most a few units of rounding below the true ones.

torch's float32 `norm()` of a long vector loses small terms (on the CPU 2.6e-3 at 38 M elements). A
block of 1024 equal numbers, summed one by one, is up to 8 x 2^-20 low. So squares are summed in
blocks of 64, in the operand's precision, and the blocks in float64. `rounding` says how low that
can be, and raises the norms by it. Numbers whose squares float32 cannot hold read as infinite
(above 1.8e19) or as zero (below 1e-23), see `config`.

A CPU adds eight or more contiguous numbers in parallel lanes. There each lane has a block of its
own, which halves the time of large norms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.config import LOW_PRECISION

BLOCK = 64
LANES = 8  # numbers of one of torch's vectors, which are of 32 bytes or more on every CPU
LARGE = 2**20  # bytes from which a CPU takes long blocks


def sq_norm(x: Tensor) -> Tensor:
    """Returns squared norms `[B]` in float64 of the rows of `x [B, ...]`."""
    rows, size = len(x), x[:1].numel()
    x = wide(x)
    if size == 0:
        return torch.zeros(rows, dtype=torch.float64, device=x.device)
    flat = permuted(x, memory_order(x)).reshape(rows, size)
    on_host = x.device.type == "cpu" and x.dtype == torch.float32
    if on_host and x.nbytes >= LARGE and size >= BLOCK * LANES:
        return long_blocks(flat)
    block = _divisor(size)
    return _blocks(flat, block) if block >= min(size, BLOCK // 2) else _whole_blocks(flat, BLOCK)


@torch.library.custom_op("fxperex::sq_norm", mutates_args=())
def long_blocks(flat: Tensor) -> Tensor:
    """Returns squared norms `[B]` in float64 of the rows of `flat [B, N]`, float32 on a CPU, in
    blocks of so many for each lane.

    An op of its own: a compiler's code might add a long block up one by one.
    """
    return _whole_blocks(flat.contiguous(), BLOCK * LANES)


@long_blocks.register_fake
def _(flat: Tensor) -> Tensor:
    return flat.new_empty(len(flat), dtype=torch.float64)


def memory_order(x: Tensor) -> list[int]:
    """Returns the dimensions of `x [B, ...]` as they follow each other in memory, so that a row
    lies flat there, if one does.
    """
    order = [0, *sorted(range(1, x.dim()), key=x.stride, reverse=True)]
    return order if x.permute(order).is_contiguous() else list(range(x.dim()))


def permuted(x: Tensor, order: list[int]) -> Tensor:
    """Returns `x.permute(order)`; `x` itself, no operation, where that changes nothing."""
    return x if order == sorted(order) else x.permute(order)


def wide(x: Tensor) -> Tensor:
    """Returns `x`, in float32 where it was bfloat16 or float16."""
    return x.float() if x.dtype in LOW_PRECISION else x


def _whole_blocks(flat: Tensor, block: int) -> Tensor:
    """In blocks of that size, and what is left over as one."""
    remainder = flat.shape[1] % block
    total = _blocks(flat[:, :flat.shape[1] - remainder], block)
    return total + sq_norm(flat[:, flat.shape[1] - remainder:]) if remainder else total


def _blocks(flat: Tensor, block: int) -> Tensor:
    return torch.linalg.vector_norm(flat.unflatten(1, (-1, block)), dim=2).double().square().sum(1)


def _divisor(size: int) -> int:
    return next(b for b in range(min(BLOCK, size), 0, -1) if size % b == 0)
