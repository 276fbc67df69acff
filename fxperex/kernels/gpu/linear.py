"""`g_b^T a_b` in registers, one tile of one example's gradient per program, streamed over the
positions.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxperex.kernels.device import interpreting, on_its_device, power, splits
from fxperex.kernels.gpu.tuning import OPTIONS, alike, tile, tuned
from fxperex.numerics.norms import sq_norm


@triton.jit
def store_square(place, total, ROWS: tl.constexpr):
    """Stores the sum of squares of a tile of `ROWS` rows: along a row in float32, over the rows in
    float64.

    The second sum is one of a matrix too: Triton 3.6 finds no layout for that of a vector beside a
    product on sm_100.
    """
    rows = tl.reshape(tl.sum(total * total, 1).to(tl.float64), (1, ROWS))
    tl.store(place + tl.arange(0, 1), tl.sum(rows, 1))


@triton.jit
def linear_kernel(a, g, grads, squares, T, D, P, groups, chunk, parts, tiles, tiles_d, a_b, a_g,
                  a_t, a_d, g_b, g_g, g_t, g_p, STORE: tl.constexpr, SQUARE: tl.constexpr,
                  PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK_T: tl.constexpr,
                  BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr):
    """One tile of one part: `grads [B*G, parts, P, D]` where STORE, `squares [B*G, tiles]` where
    SQUARE.
    """
    tile = tl.program_id(0) % tiles
    part = tl.program_id(0) // tiles % parts
    row = (tl.program_id(0) // tiles // parts).to(tl.int64)
    a += row // groups * a_b + row % groups * a_g
    g += row // groups * g_b + row % groups * g_g
    ps = tile // tiles_d * BLOCK_P + tl.arange(0, BLOCK_P)
    ds = tile % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = part * chunk
    stop = tl.minimum(begin + chunk, T)
    total = tl.zeros((BLOCK_P, BLOCK_D), dtype=tl.float32)
    for start in range(begin, stop, BLOCK_T):
        ts = start + tl.arange(0, BLOCK_T)
        gs = tl.load(g + ps[:, None] * g_p + ts[None, :] * g_t,
                     (ps[:, None] < P) & (ts[None, :] < stop), 0.0)
        xs = tl.load(a + ts[:, None] * a_t + ds[None, :] * a_d,
                     (ts[:, None] < stop) & (ds[None, :] < D), 0.0)
        if WIDEN:  # the interpreter multiplies bfloat16 as the integers that hold it
            gs, xs = gs.to(tl.float32), xs.to(tl.float32)
        total = tl.dot(gs, xs, total, input_precision=PRECISION)
    if STORE:
        held = total.to(grads.dtype.element_ty)
        tl.store(grads + (row * parts + part) * P * D + ps[:, None] * D + ds[None, :], held,
                 (ps[:, None] < P) & (ds[None, :] < D))
        total = held.to(tl.float32)
    if SQUARE:
        store_square(squares + row * tiles + tile, total, BLOCK_P)


linear_tuned = tuned(["T", "D", "P", "STORE", "PRECISION"])(linear_kernel)


@on_its_device
def launch(a: Tensor, g: Tensor, store: torch.dtype | None, precision: str,
           parts: int | None = None) -> tuple[Tensor | None, Tensor]:
    """Returns (gradients `[B,G,P,D]` in dtype `store`, or None; squared norms `[B]`, float64)."""
    rows, groups, positions, inputs = a.shape
    outputs = g.shape[3]
    a, g = alike(a, g)
    largest = tile(a, precision)
    block_p, block_d = power(outputs, 16, largest[0]), power(inputs, 16, largest[1])
    across = triton.cdiv(inputs, block_d)
    tiles = triton.cdiv(outputs, block_p) * across
    if parts is None:
        parts = splits(rows * groups * tiles, positions, a.device)
    keep = parts > 1 or store is not None
    dtype = torch.float32 if parts > 1 or store is None else store
    shape = (rows * groups, parts, outputs, inputs) if keep else (1,)
    grads = torch.empty(shape, dtype=dtype, device=a.device)
    squares = torch.empty(rows, groups * tiles, dtype=torch.float64, device=a.device)
    linear_tuned[(rows * groups * parts *
                  tiles, )](a, g, grads, squares, positions, inputs, outputs, groups,
                            triton.cdiv(positions, parts), parts, tiles, across, *a.stride(),
                            *g.stride(), STORE=keep, SQUARE=parts == 1, PRECISION=precision,
                            WIDEN=interpreting(), BLOCK_D=block_d, BLOCK_P=block_p, **OPTIONS)
    return finish(grads, squares, store, (rows, groups, outputs, inputs), parts)


def finish(grads: Tensor, squares: Tensor, store: torch.dtype | None, shape: tuple[int, ...],
           parts: int) -> tuple[Tensor | None, Tensor]:
    """Returns (gradients of `shape` or None, squared norms) from what a kernel left; parts are
    added first.
    """
    if parts > 1:
        total = grads.sum(1).to(store or torch.float32).reshape(shape)
        return total if store is not None else None, sq_norm(total)
    return grads.reshape(shape) if store is not None else None, squares.sum(1)
