"""The convolution's per-example weight gradient as an implicit product: columns are (channel, tap)
pairs.

One to three spatial dimensions run as three. A program holds a tile [outputs, columns] of one
example's gradient and gathers the inputs that a column meets at each position; what padding adds is
masked, never stored.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxperex.kernels.conv_shape import Shape
from fxperex.kernels.device import interpreting, on_its_device, power, splits
from fxperex.kernels.gpu.linear import finish, store_square
from fxperex.kernels.gpu.tuning import OPTIONS, alike, tile, tuned


@triton.jit
def conv_kernel(x, g, grads, squares, T, D, P, groups, chunk, parts, tiles, tiles_d, channels, OZ,
                OY, OX, IZ, IY, IX, stride_z, stride_y, stride_x, apart_z, apart_y, apart_x,
                before_z, before_y, before_x, x_b, x_j, x_c, x_z, x_y, x_x, g_b, g_j, g_c, g_z, g_y,
                g_x, KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
                CHANNELS_LAST: tl.constexpr, STORE: tl.constexpr, SQUARE: tl.constexpr,
                PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK_T: tl.constexpr,
                BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr):
    """One tile of one part; `T` counts positions of all images; `D = channels KZ KY KX`."""
    tile = tl.program_id(0) % tiles
    part = tl.program_id(0) // tiles % parts
    row = (tl.program_id(0) // tiles // parts).to(tl.int64)
    group = (row % groups).to(tl.int32)
    x += row // groups * x_b + group * channels * x_c
    g += row // groups * g_b + group * P * g_c
    ps = tile // tiles_d * BLOCK_P + tl.arange(0, BLOCK_P)
    ds = tile % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    TAPS: tl.constexpr = KZ * KY * KX
    # Neighbouring columns are neighbours in memory: taps of one channel, or channels of one tap.
    channel = ds % channels if CHANNELS_LAST else ds // TAPS
    tap = ds // channels if CHANNELS_LAST else ds % TAPS
    tap_z = tap // (KY * KX) * apart_z - before_z
    tap_y = tap // KX % KY * apart_y - before_y
    tap_x = tap % KX * apart_x - before_x
    column = channel * x_c + tap_z * x_z + tap_y * x_y + tap_x * x_x
    stop = tl.minimum((part + 1) * chunk, T)
    total = tl.zeros((BLOCK_P, BLOCK_D), dtype=tl.float32)
    for start in range(part * chunk, stop, BLOCK_T):
        ts = start + tl.arange(0, BLOCK_T)
        at_x, at_y, at_z, image = ts % OX, ts // OX % OY, ts // (OX * OY) % OZ, ts // (OX * OY * OZ)
        gs = tl.load(
            g + ps[:, None] * g_c + (image * g_j + at_z * g_z + at_y * g_y + at_x * g_x)[None, :],
            (ps[:, None] < P) & (ts[None, :] < stop), 0.0)
        in_z, in_y, in_x = at_z * stride_z, at_y * stride_y, at_x * stride_x
        position = image * x_j + in_z * x_z + in_y * x_y + in_x * x_x
        z, y, w = in_z[:, None] + tap_z[None, :], in_y[:, None] + tap_y[
            None, :], in_x[:, None] + tap_x[None, :]
        inside = (z >= 0) & (z < IZ) & (y >= 0) & (y < IY) & (w >= 0) & (w < IX)
        xs = tl.load(x + position[:, None] + column[None, :],
                     inside & (ts[:, None] < stop) & (ds[None, :] < D), 0.0)
        if WIDEN:  # the interpreter multiplies bfloat16 as the integers that hold it
            gs, xs = gs.to(tl.float32), xs.to(tl.float32)
        total = tl.dot(gs, xs, total, input_precision=PRECISION)
    if STORE:
        held = total.to(grads.dtype.element_ty)
        place = channel * TAPS + tap  # the weight's own order
        tl.store(grads + (row * parts + part) * P * D + ps[:, None] * D + place[None, :], held,
                 (ps[:, None] < P) & (ds[None, :] < D))
        total = held.to(tl.float32)
    if SQUARE:
        store_square(squares + row * tiles + tile, total, BLOCK_P)


conv_tuned = tuned(["T", "D", "P", "KX", "STORE", "PRECISION", "CHANNELS_LAST"])(conv_kernel)


@on_its_device
def launch(x: Tensor, g: Tensor, shape: Shape, store: torch.dtype | None, precision: str,
           parts: int | None = None) -> tuple[Tensor | None, Tensor]:
    """Returns (gradients `[B,O,C/G,*K]` in dtype `store`, or None; squared norms `[B]`,
    float64).
    """
    rows, images, channels = x.shape[:3]
    groups, taps = shape.groups, torch.Size(shape.kernel).numel()
    outputs, columns = g.shape[2] // groups, channels // groups * taps
    positions = images * g.shape[3:].numel()
    x, g = alike(x, g)
    largest = tile(x, precision, columns=True)
    block_p, block_d = power(outputs, 16, largest[0]), power(columns, 16, largest[1])
    across = triton.cdiv(columns, block_d)
    tiles = triton.cdiv(outputs, block_p) * across
    if parts is None:
        parts = splits(rows * groups * tiles, positions, x.device)
    keep = parts > 1 or store is not None
    dtype = torch.float32 if parts > 1 or store is None else store
    grads = torch.empty((rows * groups, parts, outputs, columns) if keep else (1, ), dtype=dtype,
                        device=x.device)
    squares = torch.empty(rows, groups * tiles, dtype=torch.float64, device=x.device)
    kernel = three(shape.kernel, 1)
    conv_tuned[(rows * groups * parts *
                tiles, )](x, g, grads, squares, positions, columns, outputs, groups,
                          triton.cdiv(positions, parts), parts, tiles, across, channels // groups,
                          *three(g.shape[3:], 1), *three(x.shape[3:], 1), *three(shape.stride, 1),
                          *three(shape.dilation, 1), *three(shape.before, 0), *x.stride()[:3],
                          *three(x.stride()[3:], 0), *g.stride()[:3], *three(g.stride()[3:], 0),
                          KZ=kernel[0], KY=kernel[1], KX=kernel[2], CHANNELS_LAST=x.stride(2) == 1,
                          STORE=keep, SQUARE=parts == 1, PRECISION=precision, WIDEN=interpreting(),
                          BLOCK_D=block_d, BLOCK_P=block_p, **OPTIONS)
    return finish(grads, squares, store,
                  (rows, outputs * groups, channels // groups, *shape.kernel), parts)


def three(values: tuple[int, ...] | list[int], filler: int) -> list[int]:
    """Returns `values` of one to three dimensions as three, missing ones in front."""
    return [filler] * (3 - len(values)) + list(values)
