"""One lane per block of the key stream: sixteen 32-bit words in registers, stored as eight 64-bit
ones.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxperex.kernels.chacha_rounds import CONSTANTS, PER_BLOCK, ROUNDS
from fxperex.kernels.device import on_its_device
from fxperex.kernels.gpu.tuning import OPTIONS

BLOCK = 128
C0, C1, C2, C3 = (tl.constexpr(c) for c in CONSTANTS)


@triton.jit
def _turned(x, n: tl.constexpr):
    return (x << n) | (x >> (32 - n))


@triton.jit
def _quarter(a, b, c, d):
    a += b
    d = _turned(d ^ a, 16)
    c += d
    b = _turned(b ^ c, 12)
    a += b
    d = _turned(d ^ a, 8)
    c += d
    b = _turned(b ^ c, 7)
    return a, b, c, d


@triton.jit
def _word(words, i: tl.constexpr, BLOCK: tl.constexpr):
    return tl.zeros((BLOCK,), tl.uint32) + tl.load(words + i).to(tl.uint32, bitcast=True)


@triton.jit
def _store(stream, low, high, start_low, start_high, keep):
    low, high = low + start_low, high + start_high
    tl.store(stream, (low.to(tl.uint64) | (high.to(tl.uint64) << 32)).to(tl.int64, bitcast=True),
             keep)


@triton.jit
def chacha_kernel(words, stream, counter, blocks, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
    """`stream [8 * blocks]`, int64, from block number `counter` on; `words [11]`, int32, is key and
    nonce.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    none = tl.zeros((BLOCK,), tl.uint32)
    s0, s1, s2, s3 = none + C0, none + C1, none + C2, none + C3
    s4, s5 = _word(words, 0, BLOCK), _word(words, 1, BLOCK)
    s6, s7 = _word(words, 2, BLOCK), _word(words, 3, BLOCK)
    s8, s9 = _word(words, 4, BLOCK), _word(words, 5, BLOCK)
    s10, s11 = _word(words, 6, BLOCK), _word(words, 7, BLOCK)
    s12 = (place + counter).to(tl.uint32)
    s13, s14 = _word(words, 8, BLOCK), _word(words, 9, BLOCK)
    s15 = _word(words, 10, BLOCK)
    x0, x1, x2, x3, x4, x5, x6, x7 = s0, s1, s2, s3, s4, s5, s6, s7
    x8, x9, x10, x11, x12, x13, x14, x15 = s8, s9, s10, s11, s12, s13, s14, s15
    for _ in range(ROUNDS):
        x0, x4, x8, x12 = _quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter(x3, x4, x9, x14)
    keep, row = place < blocks, stream + 8 * place
    _store(row, x0, x1, s0, s1, keep)
    _store(row + 1, x2, x3, s2, s3, keep)
    _store(row + 2, x4, x5, s4, s5, keep)
    _store(row + 3, x6, x7, s6, s7, keep)
    _store(row + 4, x8, x9, s8, s9, keep)
    _store(row + 5, x10, x11, s10, s11, keep)
    _store(row + 6, x12, x13, s12, s13, keep)
    _store(row + 7, x14, x15, s14, s15, keep)


@on_its_device
def launch(words: Tensor, count: int, counter: int) -> Tensor:
    """Returns `count` words of the stream, int64."""
    blocks = triton.cdiv(count, PER_BLOCK)
    stream = torch.empty(blocks * PER_BLOCK, dtype=torch.int64, device=words.device)
    if blocks:
        grid = (triton.cdiv(blocks, BLOCK),)
        chacha_kernel[grid](words, stream, counter, blocks, BLOCK=BLOCK, ROUNDS=ROUNDS, **OPTIONS)
    return stream[:count]
