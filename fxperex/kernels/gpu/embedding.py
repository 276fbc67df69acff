"""One program per example and block of columns walks the sorted tokens, one row of output gradients
at a time.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxperex.kernels.device import on_its_device, power
from fxperex.kernels.gpu.tuning import OPTIONS


@triton.jit
def embedding_kernel(ids, order, g, sums, T, P, blocks, g_b, g_t, g_p, BLOCK_P: tl.constexpr):
    """`sums [B, blocks]`, float64; `ids` and `order [B,T]` as sorting gave them."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    ps = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    g += row * g_b + ps * g_p
    total = tl.zeros((BLOCK_P,), dtype=tl.float64)
    run = tl.zeros((BLOCK_P,), dtype=tl.float32)
    before = tl.load(ids + row * T)
    for t in range(T):
        token = tl.load(ids + row * T + t)
        place = tl.load(order + row * T + t)
        row_part = tl.load(g + place * g_t, ps < P, 0.0).to(tl.float32)
        ended = token != before
        total += tl.where(ended, run.to(tl.float64) * run.to(tl.float64), 0.0)
        run = tl.where(ended, row_part, run + row_part)
        before = token
    total += run.to(tl.float64) * run.to(tl.float64)
    tl.store(sums + row * blocks + tl.program_id(0) % blocks, tl.sum(total, 0))


@on_its_device
def launch(ids: Tensor, g: Tensor) -> Tensor:
    """Returns squared norms `[B]`, float64."""
    rows, length, width = g.shape
    if length == 0:
        return torch.zeros(rows, dtype=torch.float64, device=g.device)
    block = power(width, 16, 128)
    blocks = triton.cdiv(width, block)
    ordered, order = ids.sort(dim=1)
    sums = torch.empty(rows, blocks, dtype=torch.float64, device=g.device)
    embedding_kernel[(rows * blocks, )](ordered.contiguous(), order.contiguous(), g, sums, length,
                                        width, blocks, *g.stride(), BLOCK_P=block,
                                        num_warps=block // 32 if block >= 64 else 1, **OPTIONS)
    return sums.sum(1)
