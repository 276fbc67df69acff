"""Depthwise convolutions: one input channel per group makes the product a sum, `sum_t x[s t + d k]
g[t]`.

A tensor core would waste 15 of 16 rows on it. A program takes a block of output channels and runs
over the taps; its inputs come from cache after the first. Gradients are `|K|` numbers a channel, so
they are always stored.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxperex.kernels.conv_shape import Shape
from fxperex.kernels.device import on_its_device, power
from fxperex.kernels.gpu.conv import three
from fxperex.kernels.gpu.tuning import OPTIONS
from fxperex.numerics.norms import sq_norm


@triton.jit
def depthwise_kernel(x, g, grads, T, outputs, multiplier, blocks, OZ, OY, OX, IZ, IY, IX, stride_z,
                     stride_y, stride_x, apart_z, apart_y, apart_x, before_z, before_y, before_x,
                     x_b, x_j, x_c, x_z, x_y, x_x, g_b, g_j, g_c, g_z, g_y, g_x, KZ: tl.constexpr,
                     KY: tl.constexpr, KX: tl.constexpr, BLOCK_T: tl.constexpr,
                     BLOCK_P: tl.constexpr):
    """`grads [B, outputs, KZ KY KX]`, float32: one program per example and block of channels."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    ps = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    x += row * x_b + ps // multiplier * x_c
    g += row * g_b + ps * g_c
    for tap in range(KZ * KY * KX):
        tap_z = tap // (KY * KX) * apart_z - before_z
        tap_y = tap // KX % KY * apart_y - before_y
        tap_x = tap % KX * apart_x - before_x
        total = tl.zeros((BLOCK_P, BLOCK_T), dtype=tl.float32)
        for start in range(0, T, BLOCK_T):
            ts = start + tl.arange(0, BLOCK_T)
            at_x, at_y, at_z, image = ts % OX, ts // OX % OY, ts // (OX * OY) % OZ, ts // (OX * OY *
                                                                                           OZ)
            z, y, w = at_z * stride_z + tap_z, at_y * stride_y + tap_y, at_x * stride_x + tap_x
            inside = (z >= 0) & (z < IZ) & (y >= 0) & (y < IY) & (w >= 0) & (w < IX) & (ts < T)
            valid = (ps < outputs)[:, None] & inside[None, :]
            gs = tl.load(g[:, None] + (image * g_j + at_z * g_z + at_y * g_y + at_x * g_x)[None, :],
                         valid, 0.0)
            xs = tl.load(x[:, None] + (image * x_j + z * x_z + y * x_y + w * x_x)[None, :], valid,
                         0.0)
            total += gs.to(tl.float32) * xs.to(tl.float32)
        tl.store(grads + (row * outputs + ps) * (KZ * KY * KX) + tap, tl.sum(total, 1), ps
                 < outputs)


@on_its_device
def launch(x: Tensor, g: Tensor, shape: Shape, store: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Returns (gradients `[B,O,1,*K]`, squared norms `[B]` of them)."""
    rows, outputs = x.shape[0], g.shape[2]
    kernel, positions = three(shape.kernel, 1), g.shape[1] * g.shape[3:].numel()
    channels_last = x.stride(2) == 1  # channels-last: neighbouring lanes take neighbouring channels
    block_p, block_t = (64, 16) if channels_last else (4, power(positions, 16, 256))
    block_p = power(outputs, 4, block_p)
    blocks = triton.cdiv(outputs, block_p)
    grads = torch.empty(rows, outputs, 1, *shape.kernel, dtype=torch.float32, device=x.device)
    depthwise_kernel[(rows * blocks, )](x, g, grads, positions, outputs, outputs // shape.groups,
                                        blocks, *three(g.shape[3:], 1), *three(x.shape[3:], 1),
                                        *three(shape.stride, 1), *three(shape.dilation,
                                                                        1), *three(shape.before, 0),
                                        *x.stride()[:3], *three(x.stride()[3:], 0), *g.stride()[:3],
                                        *three(g.stride()[3:], 0), KZ=kernel[0], KY=kernel[1],
                                        KX=kernel[2], BLOCK_T=block_t, BLOCK_P=block_p, **OPTIONS)
    grads = grads if store is None else grads.to(store)
    return grads, sq_norm(grads)
