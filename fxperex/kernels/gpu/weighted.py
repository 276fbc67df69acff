"""One program per block of entries reads that block of every example once."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxperex.kernels.device import on_its_device
from fxperex.kernels.gpu.tuning import OPTIONS

BLOCK = 1024


@triton.jit
def weighted_kernel(grads, factors, valid, out, rows, size, BLOCK: tl.constexpr):
    """`out [size]`, float32, from `grads [rows, size]`; an invalid row is not even read: it may
    hold NaN.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    row = grads + place
    for b in range(rows):
        reach = tl.where(tl.load(valid + b) != 0, size, 0)
        factor = tl.where(reach > 0, tl.load(factors + b), 0.0).to(tl.float32)
        total += factor * tl.load(row, place < reach, 0.0).to(tl.float32)
        row += size
    tl.store(out + place, total, place < size)


@on_its_device
def launch(grads: Tensor, factors: Tensor, valid: Tensor) -> Tensor:
    """Returns the weighted sum, float32, in the shape of one example's gradient."""
    grads = grads.contiguous()
    size = grads[0].numel()
    out = torch.empty(grads.shape[1:], dtype=torch.float32, device=grads.device)
    weighted_kernel[(triton.cdiv(size, BLOCK), )](grads, factors, valid.to(torch.int8), out,
                                                  len(grads), size, BLOCK=BLOCK, **OPTIONS)
    return out
