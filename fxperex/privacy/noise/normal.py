"""Standard normals by Box and Muller, float64: number i of a stream depends on its words alone.

Words 2k and 2k + 1 of the stream are read as signed numbers v and w. They give a uniform `u = |v +
1/2| / 2^63`, rounded once to float64, and an angle `2 pi w / 2^64`. Numbers 2k and 2k + 1 are
`sqrt(-2 log u)` times the angle's cosine and sine. All 64 bits count: u is at least 2^-64, so the
largest number is 9.42; a normal beyond it has probability 5e-21.

As many threads as torch uses compute chunks that fit a core's cache, with their key stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fxperex import kernels
from fxperex.privacy.noise.streams import Streams
from fxperex.privacy.noise.workers import share

# Numbers of a part: its 900 KiB of scratch fit a cache, and calls cost little beside their work.
CHUNK = 2**15
TURN = 2 * math.pi * 2.0**-64
CPU = torch.device("cpu")
# Chunks begin and end at multiples of any machine's vector, so that the same instructions compute a
# number, wherever a chunk starts.
ALIGNED = 64


def gaussian(streams: Streams, count: int, step: int, item: int = 0, device: torch.device = CPU,
             start: int = 0) -> Tensor:
    """Returns numbers `start` to `start + count` of the stream (step, item), float64 on `device`.
    Raises PrivacyError.
    """
    if not on_host(device):
        before = start % 2
        pairs = (before + count + 1) // 2
        words = streams.words(2 * pairs, step, item, device, start - before)
        return box_muller(words)[before:before + count]
    numbers = torch.empty(count, dtype=torch.float64, device=CPU)

    def worker() -> Callable[[tuple[int, int]], None]:
        normals = Normals(streams, step, min(count, CHUNK))

        def draw(part: tuple[int, int]) -> None:
            a, b = part
            numbers[a:b] = normals.draw(item, start + a, start + b)

        return draw

    share(cut(count, CHUNK), worker)
    return numbers


def on_host(device: torch.device) -> bool:
    """Returns whether numbers for `device` are drawn by the CPU's threads, in place."""
    return device.type == "cpu" and kernels.unavailable(device) is not None


def cut(count: int, size: int) -> list[tuple[int, int]]:
    """Returns the (start, stop) of the parts of `count` things, `size` in each."""
    return [(a, min(count, a + size)) for a in range(0, count, size)]


class Normals:
    """Draws parts of the streams of one step, for one thread. It holds scratch for one part."""

    def __init__(self, streams: Streams, step: int, size: int = CHUNK) -> None:
        self._streams, self._step = streams, step
        room = size + 2 * ALIGNED
        self._words = torch.empty(room, dtype=torch.int64, device=CPU)
        self._numbers = torch.empty(room, dtype=torch.float64, device=CPU)
        self._pairs = tuple(torch.empty(room // 2, dtype=torch.float64, device=CPU)
                            for _ in range(3))

    def draw(self, item: int, start: int, stop: int) -> Tensor:
        """Returns numbers `start` to `stop` of the stream of `item`, at most `size` of them; the
        next call overwrites them.
        """
        origin = start - start % ALIGNED
        count = -(-(stop - origin) // ALIGNED) * ALIGNED
        words, numbers = self._words.numpy()[:count], self._numbers.numpy()[:count]
        self._streams.fill(words.view(np.uint64), self._step, item, origin)
        radius, angle, cosine = (t[:count // 2] for t in self._pairs)
        r, a = radius.numpy(), angle.numpy()
        # NumPy is faster here for arithmetic and roots, torch for logarithms, cosines and sines.
        np.copyto(r, words[::2])
        r += 0.5
        np.abs(r, out=r)
        r *= 2.0**-63
        torch.log(radius, out=radius)
        r *= -2
        np.sqrt(r, out=r)
        np.copyto(a, words[1::2])
        a *= TURN
        torch.cos(angle, out=cosine)
        torch.sin(angle, out=angle)
        np.multiply(r, cosine.numpy(), out=numbers[::2])
        np.multiply(r, a, out=numbers[1::2])
        return self._numbers[start - origin:stop - origin]


def box_muller(words: Tensor) -> Tensor:
    """Returns as many normals as there are `words`, int64 `[2 n]`, on their device: the formula."""
    pairs = words.view(-1, 2)
    radius = pairs[:, 0].double().add_(0.5).abs_().mul_(2.0**-63).log_().mul_(-2).sqrt_()
    angle = pairs[:, 1].double().mul_(TURN)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1).flatten()
