"""The ChaCha20 key stream (RFC 8439, section 2.3) on the device that needs it, block by block.

The tests compare it with the RFC's vectors and with another implementation. On a CPU the library
draws from the package `cryptography` (`fxperex.privacy.noise.streams`), which is faster there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.kernels.chacha_rounds import COLUMNS, CONSTANTS, DIAGONALS, MASK, PER_BLOCK, ROUNDS
from fxperex.kernels.device import unavailable


@torch.library.custom_op("fxperex::chacha20", mutates_args=())
def chacha20(words: Tensor, count: int, counter: int) -> Tensor:
    """Returns the first `count` 64-bit words, int64, from block `counter` on, on the device of
    `words`.

    words: int32 `[11]`, the key's eight and the nonce's three 32-bit words, little-endian.
    """
    if unavailable(words.device) is None:
        from fxperex.kernels.gpu.chacha import launch

        return launch(words, count, counter)
    return reference(words, count, counter)


@chacha20.register_fake
def _(words: Tensor, count: int, counter: int) -> Tensor:
    return words.new_empty(count, dtype=torch.int64)


def reference(words: Tensor, count: int, counter: int) -> Tensor:
    """Returns the same by ATen, 32-bit words kept in int64."""
    blocks = -(-count // PER_BLOCK)
    state = (words.long() & MASK)[:, None].expand(-1, blocks)
    constants = torch.tensor(CONSTANTS, device=words.device)[:, None].expand(-1, blocks)
    counters = torch.arange(counter, counter + blocks, device=words.device)[None]
    start = torch.cat([constants, state[:8], counters, state[8:]])
    x = list(start)
    for _ in range(ROUNDS):
        for places in COLUMNS + DIAGONALS:
            _quarter(x, *places)
    blocks_out = ((torch.stack(x) + start) & MASK).t()
    return (blocks_out[:, ::2] | blocks_out[:, 1::2] << 32).flatten()[:count]


def _quarter(x: list[Tensor], a: int, b: int, c: int, d: int) -> None:
    for total, addend, mixed, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        x[total] = (x[total] + x[addend]) & MASK
        bits = x[mixed] ^ x[total]
        x[mixed] = (bits << turn | bits >> 32 - turn) & MASK
