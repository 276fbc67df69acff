"""One program per pair of position blocks on or above the diagonal; both Gram tiles live in
registers.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxperex.kernels.device import on_its_device, power
from fxperex.kernels.gpu.tuning import OPTIONS, SHORT, square, tuned


@triton.jit
def gram_kernel(a, g, sums, T, D, P, groups, blocks, a_b, a_g, a_t, a_d, g_b, g_g, g_t, g_p,
                BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr):
    """`sums [B*G, blocks^2]`, float64: this pair's share, twice where it stands for its mirror
    image too.
    """
    row = (tl.program_id(0) // (blocks * blocks)).to(tl.int64)
    i = tl.program_id(0) // blocks % blocks
    j = tl.program_id(0) % blocks
    share = tl.zeros((), dtype=tl.float64)
    if i <= j:
        a += row // groups * a_b + row % groups * a_g
        g += row // groups * g_b + row % groups * g_g
        ts = i * BLOCK_S + tl.arange(0, BLOCK_S)
        ss = j * BLOCK_S + tl.arange(0, BLOCK_S)
        inputs = tl.zeros((BLOCK_S, BLOCK_S), dtype=tl.float64)
        for start in range(0, D, BLOCK_K):
            ks = start + tl.arange(0, BLOCK_K)
            rows = tl.load(a + ts[:, None] * a_t + ks[None, :] * a_d,
                           (ts[:, None] < T) & (ks[None, :] < D), 0.0)
            columns = tl.load(a + ks[:, None] * a_d + ss[None, :] * a_t,
                              (ks[:, None] < D) & (ss[None, :] < T), 0.0)
            inputs += tl.dot(rows.to(tl.float64), columns.to(tl.float64), out_dtype=tl.float64)
        outputs = tl.zeros((BLOCK_S, BLOCK_S), dtype=tl.float64)
        for start in range(0, P, BLOCK_K):
            ks = start + tl.arange(0, BLOCK_K)
            rows = tl.load(g + ts[:, None] * g_t + ks[None, :] * g_p,
                           (ts[:, None] < T) & (ks[None, :] < P), 0.0)
            columns = tl.load(g + ks[:, None] * g_p + ss[None, :] * g_t,
                              (ks[:, None] < P) & (ss[None, :] < T), 0.0)
            outputs += tl.dot(rows.to(tl.float64), columns.to(tl.float64), out_dtype=tl.float64)
        share = tl.sum(tl.sum(inputs * outputs, 1), 0) * tl.where(i == j, 1.0, 2.0)
    tl.store(sums + tl.program_id(0).to(tl.int64), share)


gram_tuned = tuned(["T", "D", "P"], SHORT, "BLOCK_K")(gram_kernel)


@on_its_device
def launch(a: Tensor, g: Tensor) -> Tensor:
    """Returns squared norms `[B]`, float64. Operands of 16 bits are widened here.

    In the kernel they cannot be: a load of 16 bits in front of a product in float64 does not
    compile for sm_80, 90 and 100.
    """
    a, g = (v if v.dtype == torch.float32 else v.float() for v in (a, g))
    rows, groups, positions, inputs = a.shape
    block = power(positions, 16, square(a))
    blocks = triton.cdiv(positions, block)
    sums = torch.empty(rows, groups * blocks * blocks, dtype=torch.float64, device=a.device)
    gram_tuned[(rows * groups * blocks * blocks, )](a, g, sums, positions, inputs, g.shape[3],
                                                    groups, blocks, *a.stride(), *g.stride(),
                                                    BLOCK_S=block, **OPTIONS)
    return sums.sum(1).clamp(min=0)
