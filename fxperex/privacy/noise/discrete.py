"""The discrete Gaussian on the integers, exactly: P(x) proportional to exp(-x^2 / 2 sigma^2).

Against floating-point attacks (Mironov 2012): sum and noise are on one integer grid, so the set of
possible results does not depend on the data.

A candidate is x = base + low. `base` is half a discrete Gaussian on multiples of a power of two
(`fxperex.privacy.noise.coarse`), `low` is uniform below that power. It is accepted with probability
exp(-low (low + 2 base) / 2 sigma^2), and negated with probability 1/2 (-0 is refused, or 0 would
count twice). That is rejection sampling. Canonne, Kamath and Steinke (2020) sample from a discrete
Laplace; this proposal is nearer, so 97 of 100 candidates are accepted.

Coins are tossed in float64 over arrays. A coin that float64 cannot decide, one in 2^39, is tossed
again with as many digits and further bits as it needs. So no rounding is in the distribution. The
only assumption is that the machine's exp() is right to a relative 2^-41; a good one is right to
2^-52.

Layout: numbers are in blocks of 2^13. Block b reads the words from 2^16 b on, three for each
candidate: for `base`, for `low` (lowest bits) and the sign (highest bit), and for the coin. Its
numbers are the accepted candidates in order. So any block can be drawn alone, and one stream has
2^32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fxperex.errors import ConfigError, PrivacyError
from fxperex.privacy.noise.coarse import Coarse, below, chance
from fxperex.privacy.noise.normal import CPU, cut
from fxperex.privacy.noise.streams import Streams
from fxperex.privacy.noise.workers import share

LARGEST = 2.0**48  # standard deviation up to which sums of noise are exact in float64
# Numbers of a block, and the words reserved for it: enough for 2.7 candidates per number.
BLOCK, RESERVED = 2**13, 2**16
WORDS = 3
ROUND = BLOCK + BLOCK // 8  # candidates drawn together
DOUBTFUL = 2.0**24  # of 2^64, on either side of a coin's probability: 2^-40


def discrete_gaussian(sigma: float, count: int, streams: Streams, step: int, item: int = 0,
                      start: int = 0) -> Tensor:
    """Returns numbers `start` to `start + count` of the stream (step, item): integers, as float64.

    Raises ConfigError for a sigma outside 1 to 2^48, and PrivacyError past the stream's length.
    """
    numbers = torch.empty(count, dtype=torch.float64, device=CPU)

    def worker() -> Callable[[tuple[int, int]], None]:
        integers = Integers(sigma, streams, step)

        def draw(part: tuple[int, int]) -> None:
            a, b = part
            numbers[a:b] = integers.draw(item, start + a, start + b)

        return draw

    share(cut(count, BLOCK), worker)
    return numbers


@lru_cache(maxsize=8)
def _coarse(sigma: float) -> Coarse:
    return Coarse(sigma)


class Integers:
    """Draws parts of the streams of one step, for one thread. It holds scratch for one part. Raises
    ConfigError.
    """

    def __init__(self, sigma: float, streams: Streams, step: int) -> None:
        if not 1 <= sigma <= LARGEST:
            raise ConfigError(f"a grid on which the noise has standard deviation {sigma:g} is "
                              "of no use; it must be 1 to 2^48")
        self._streams, self._step = streams, step
        self._sigma, self._coarse = sigma, _coarse(sigma)
        self._words = np.empty(WORDS * ROUND, dtype=np.uint64)
        self._room = np.empty(ROUND, dtype=np.int64)
        self._floats = torch.empty(3, ROUND, dtype=torch.float64, device=CPU)

    def draw(self, item: int, start: int, stop: int) -> Tensor:
        """Returns numbers `start` to `stop` of the stream of `item`, as float64."""
        parts = []
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            a, b = max(start - block * BLOCK, 0), min(stop - block * BLOCK, BLOCK)
            parts.append(self._beginning(item, block, b)[a:])
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _beginning(self, item: int, block: int, count: int) -> np.ndarray:
        """Returns the first `count` numbers of a block."""
        numbers = np.empty(count)
        have = tried = 0
        while have < count:
            # The number of candidates drawn depends on `count`; which are accepted does not.
            lack = count - have
            size = min(ROUND, -(-(lack + lack // 16 + 8) // 8) * 8)
            if WORDS * (tried + size) > RESERVED:
                raise PrivacyError(f"of {tried} candidates for noise {have} were accepted: the key "
                                   "stream is not random. Draw from another secret")
            accepted = self._candidates(item, block, tried, size)[:lack]
            numbers[have:have + len(accepted)] = accepted
            have, tried = have + len(accepted), tried + size
        return numbers

    def _candidates(self, item: int, block: int, tried: int, size: int) -> np.ndarray:
        """Returns the accepted ones of `size` candidates of a block, after the first `tried`."""
        words = self._words[:WORDS * size]
        self._streams.fill(words, self._step, item, block * RESERVED + WORDS * tried)
        value, low, surplus = (row[:size] for row in self._floats.numpy())
        room = self._room[:size]
        unknown = self._coarse.lookup(words[::WORDS], room, value)
        mask = np.uint64(2**self._coarse.shift - 1)
        np.bitwise_and(words[1::WORDS], mask, out=room.view(np.uint64))
        np.copyto(low, room)
        # The coin's probability less its word, in units of 2^-64: accepted above 0.
        np.multiply(value, 2, out=surplus)
        surplus += low
        surplus *= low
        surplus *= -0.5 / self._sigma**2
        torch.exp(self._floats[2, :size], out=self._floats[2, :size])
        surplus *= 2.0**64
        surplus -= 2.0**63
        value += low
        signed = words.view(np.int64)
        # The words' bits 0 to 2^64 - 1 stand for the signed -2^63 to 2^63 - 1, in another order.
        np.copyto(low, signed[2::WORDS])
        surplus -= low
        accepted = surplus > 0
        np.abs(surplus, out=surplus)
        if len(unknown) or surplus.min() <= DOUBTFUL:
            doubtful = np.union1d(unknown, np.flatnonzero(surplus <= DOUBTFUL))
            for c in doubtful.tolist():
                triple = [int(w) for w in words[WORDS * c:WORDS * (c + 1)]]
                accepted[c], value[c] = self._exactly(triple, item, block, tried + c)
        np.copyto(low, signed[1::WORDS])
        np.copysign(value, low, out=value)
        accepted &= (value != 0) | (low >= 0)
        return value[accepted]

    def _exactly(self, words: list[int], *place: int) -> tuple[bool, float]:
        """Returns (whether the candidate of `words` is accepted, its absolute value), with as many
        further bits as needed.
        """
        base = self._coarse.exactly(words[0], self._bits(words[0], 0, *place)) * self._coarse.step
        low = float(words[1] & 2**self._coarse.shift - 1)
        # As above: the coin is the word taken as signed, so its upper bit is the other way round.
        coin = self._bits(words[2] ^ 2**63, 2, *place)
        return below(coin, chance(low, base, self._sigma)), base + low

    def _bits(self, word: int, *place: int) -> Callable[[int], int]:
        """Returns a function of n, at least 64: the first n bits of the uniform number that begins
        with `word`.
        """
        def bits(count: int) -> int:
            size = -(-(count - 64) // 8)
            further = int.from_bytes(self._streams.further(size, self._step, *place), "big")
            return (word << 8 * size | further) >> 64 + 8 * size - count

        return bits
