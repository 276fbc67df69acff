"""Random streams of the privacy modules: one 128-bit key, one stream per (step, item), no global state.

Every stream is a Philox4x64 generator whose 256-bit counter starts at words (0, 0, item, step), so two streams
of one key cannot meet before 2^128 blocks. No global seed of torch, numpy or random reaches a key.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np

from fxperex.errors import ConfigError


class Streams:
    """Independent streams, numbered by step and item.

    seed: None takes the key from the operating system. A whole number makes the streams repeatable, for
    experiments only: who knows the seed can subtract the noise, so no privacy claim holds. Raises ConfigError.
    """

    def __init__(self, purpose: str, seed: int | None = None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ConfigError(f"seed must be a whole number, or None for a secret key; got {seed!r}")
        self.secret = seed is None
        self._key = secrets.randbits(128) if seed is None else _key(purpose, seed)

    def at(self, step: int, item: int = 0) -> np.random.Philox:
        """Returns the bit generator of (`step`, `item`), at its beginning."""
        return np.random.Philox(key=self._key, counter=np.array([0, 0, item, step], dtype=np.uint64))


def _key(purpose: str, seed: int) -> int:
    # The purpose keeps a sampler and a noise with the same seed apart; the hash uses every digit of the seed.
    return int.from_bytes(hashlib.sha256(f"fxperex {purpose} {seed}".encode()).digest()[:16], "big")
