"""One program per example and block of channels reads `x` and `g` once and leaves both sums and
their squares.
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
def affine_kernel(x, g, mean, rstd, scale, shift, squares, C, N, per, blocks,
                  x_b, x_c, x_n, g_b, g_c, g_n, s_b, s_n, PER_POSITION: tl.constexpr,
                  BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr):
    """`scale`, `shift [B,C]`, float32; `squares [B, blocks, 2]`, float64."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    cs = block * BLOCK_C + tl.arange(0, BLOCK_C)
    x += row * x_b + cs * x_c
    g += row * g_b + cs * g_c
    scales = tl.zeros((BLOCK_C, BLOCK_N), dtype=tl.float32)
    shifts = tl.zeros((BLOCK_C, BLOCK_N), dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        ns = start + tl.arange(0, BLOCK_N)
        inside = (cs < C)[:, None] & (ns < N)[None, :]
        gs = tl.load(g[:, None] + (ns * g_n)[None, :], inside, 0.0).to(tl.float32)
        xs = tl.load(x[:, None] + (ns * x_n)[None, :], inside, 0.0).to(tl.float32)
        if PER_POSITION:
            middle = tl.load(mean + row * s_b + ns * s_n, ns < N, 0.0)[None, :]
            inverse = tl.load(rstd + row * s_b + ns * s_n, ns < N, 0.0)[None, :]
        else:
            middle = tl.load(mean + row * s_b + cs // per * s_n, cs < C, 0.0)[:, None]
            inverse = tl.load(rstd + row * s_b + cs // per * s_n, cs < C, 0.0)[:, None]
        scales += gs * ((xs - middle.to(tl.float32)) * inverse.to(tl.float32))
        shifts += gs
    scale_sum, shift_sum = tl.sum(scales, 1), tl.sum(shifts, 1)
    tl.store(scale + row * C + cs, scale_sum, cs < C)
    tl.store(shift + row * C + cs, shift_sum, cs < C)
    wide_scale, wide_shift = scale_sum.to(tl.float64), shift_sum.to(tl.float64)
    tl.store(squares + (row * blocks + block) * 2, tl.sum(wide_scale * wide_scale, 0))
    tl.store(squares + (row * blocks + block) * 2 + 1, tl.sum(wide_shift * wide_shift, 0))


@on_its_device
def launch(x: Tensor, g: Tensor, mean: Tensor, rstd: Tensor,
           per: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (scale's gradients `[B,C]`, shift's `[B,C]`, squared norms `[B,2]`)."""
    rows, channels, positions = x.shape
    # Lanes run along whichever of the two dimensions is contiguous.
    block_c, block_n = (64, 16) if x.stride(1) == 1 else (4, 256)
    block_c, block_n = power(channels, 4, block_c), power(positions, 4, block_n)
    blocks = triton.cdiv(channels, block_c)
    rstd = rstd.expand_as(mean).contiguous()
    mean = mean.contiguous()
    scale, shift = (torch.empty(rows, channels, dtype=torch.float32, device=x.device)
                    for _ in range(2))
    squares = torch.empty(rows, blocks, 2, dtype=torch.float64, device=x.device)
    affine_kernel[(rows * blocks, )](x, g, mean, rstd, scale, shift, squares, channels, positions,
                                     max(per, 1), blocks, *x.stride(), *g.stride(), *mean.stride(),
                                     PER_POSITION=per == 0, BLOCK_C=block_c, BLOCK_N=block_n,
                                     **OPTIONS)
    return scale, shift, squares.sum(1)
