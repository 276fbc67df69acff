"""Random bits for privacy: one 256-bit secret, and a stream per (purpose, generation, step, item).

Secure streams are ChaCha20 (RFC 8439): the key is HMAC-SHA256(secret, purpose and generation), the
96-bit nonce is (item, step), the block counter starts at 0; no two streams of a secret ever meet.
Fast streams are Philox4x64 with the counter words (0, 0, item, step), not cryptographic. No global
seed of torch, numpy or random reaches either. A stream is its 64-bit words by number, and any part
of it can be read alone.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxperex import kernels
from fxperex.errors import ConfigError, PrivacyError
from fxperex.privacy.checks import needed

SECRET_BYTES = 32
BLOCKS = 2**32  # of one ChaCha20 stream
PER_BLOCK, PER_PHILOX = 8, 4  # 64-bit words of one step of the counter
ZEROS = memoryview(bytes(2**18))  # what a cipher turns into its key stream
# Part of what a folder is bound to: a resumed run must draw the noise that it would have drawn.
LAYOUT = "noise layout 2 (an earlier fxperex drew other noise)"


class Secret:
    """The root of all randomness of one run.

    seed: None takes 256 bits from the operating system. A whole number makes a run repeatable, for
    science only: anyone who knows the seed can subtract the noise. secure: ChaCha20; else Philox. A
    seeded run is never secure. Raises ConfigError.
    """

    def __init__(self, seed: int | None = None, secure: bool | None = None,
                 value: bytes | None = None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ConfigError("seed must be a whole number, or None for a secret key; got "
                              f"{seed!r}")
        if secure and seed is not None:
            raise ConfigError("a seed and secure=True exclude each other: who knows the seed can "
                              "subtract the noise")
        self.seed = seed
        self.secure = seed is None if secure is None else secure
        if self.secure:
            needed("cryptography.hazmat.primitives.ciphers")
        if value is not None and len(value) != SECRET_BYTES:
            raise ConfigError(f"a secret has {SECRET_BYTES} bytes; got {len(value)}")
        fresh = secrets.token_bytes(SECRET_BYTES) if seed is None else hashlib.sha256(
            f"fxperex {seed}".encode()).digest()
        self._value = fresh if value is None else value

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise PrivacyError("a secret is not copied or pickled: who reads the copy can subtract the "
                           "noise. value() hands it out on purpose")

    @property
    def description(self) -> str:
        """Where the randomness comes from, for people."""
        if self.seed is not None:
            return f"Philox, seeded with {self.seed}: repeatable, for science only; {LAYOUT}"
        kind = ("ChaCha20, 256-bit key of the operating system" if self.secure
                else "Philox, fast, not cryptographic")
        return f"{kind}; {LAYOUT}"

    def value(self) -> bytes:
        """Returns the secret itself. Store it where only the run can read it."""
        return self._value

    def key(self, purpose: str, generation: int = 0) -> bytes:
        """Returns the 256-bit key of one purpose in one generation."""
        return hmac.digest(self._value, f"fxperex {purpose} {generation}".encode(), "sha256")

    def streams(self, purpose: str, generation: int = 0) -> Streams:
        return Streams(self.key(purpose, generation), self.secure)


class Streams:
    """Independent streams of one key, numbered by step and item."""

    def __init__(self, key: bytes, secure: bool) -> None:
        self._key, self.secure = key, secure

    def bits(self, count: int, step: int, item: int = 0, start: int = 0) -> np.ndarray:
        """Returns `count` uint64 of the stream (step, item) from word `start` on. Raises
        PrivacyError past its length.
        """
        _fits(count, start)
        per_count = PER_BLOCK if self.secure else PER_PHILOX
        counter, before = divmod(start, per_count)
        if self.secure:
            return chacha20(self._key, _nonce(step, item), before + count, counter)[before:]
        return self.philox(step, item, counter).random_raw(before + count)[before:]

    def fill(self, words: np.ndarray, step: int, item: int = 0, start: int = 0) -> None:
        """Writes the same into `words`, uint64, without a copy if `start` is a multiple of 8.
        Raises PrivacyError.
        """
        if self.secure and start % PER_BLOCK == 0:
            _fits(len(words), start)
            size = words.nbytes
            zeros = ZEROS[:size] if size <= len(ZEROS) else bytes(size)
            cipher = _cipher(self._key, _nonce(step, item), start // PER_BLOCK)
            cipher.update_into(zeros, memoryview(words).cast("B"))
        else:
            np.copyto(words, self.bits(len(words), step, item, start))

    def words(self, count: int, step: int, item: int, device: torch.device,
              start: int = 0) -> Tensor:
        """Returns the same as int64 on `device`, drawn there if it has the kernel. Raises
        PrivacyError.
        """
        if self.secure and kernels.unavailable(device) is None:
            _fits(count, start)
            key = np.frombuffer(self._key + _nonce(step, item), dtype="<i4").astype(np.int32)
            counter, before = divmod(start, PER_BLOCK)
            on_device = torch.from_numpy(key).to(device)
            return kernels.chacha20(on_device, before + count, counter)[before:]
        return torch.from_numpy(self.bits(count, step, item, start).view(np.int64)).to(device)

    def further(self, size: int, *place: int) -> bytes:
        """Returns `size` bytes of `place`, which are in no stream: SHAKE-256 with a key of its own.

        They are for the rare number that needs more bits than its word has. The first bytes of a
        place are the same for every `size`.
        """
        key = hmac.digest(self._key, b"fxperex further bits", "sha256")
        text = key + b"".join(n.to_bytes(8, "little") for n in place)
        return hashlib.shake_256(text).digest(size)

    def philox(self, step: int, item: int = 0, counter: int = 0) -> np.random.Philox:
        """Returns the fast bit generator of (step, item), before its word `4 * counter`."""
        key = int.from_bytes(self._key[:16], "little")
        counters = np.array([counter, 0, item, step], dtype=np.uint64)
        return np.random.Philox(key=key, counter=counters)


def chacha20(key: bytes, nonce: bytes, count: int, counter: int = 0) -> np.ndarray:
    """Returns `count` uint64 of the ChaCha20 key stream from block `counter` on. Raises
    PrivacyError past 2^32 blocks.
    """
    _fits(count, counter * PER_BLOCK)
    stream = _cipher(key, nonce, counter).update(bytes(8 * count))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def _cipher(key: bytes, nonce: bytes, counter: int) -> Any:
    ciphers = needed("cryptography.hazmat.primitives.ciphers")
    start = counter.to_bytes(4, "little") + nonce
    return ciphers.Cipher(ciphers.algorithms.ChaCha20(key, start), mode=None).encryptor()


def _nonce(step: int, item: int) -> bytes:
    return item.to_bytes(4, "little") + step.to_bytes(8, "little")


def _fits(count: int, start: int) -> None:
    if start + count > BLOCKS * PER_BLOCK:
        raise PrivacyError(f"one ChaCha20 stream has {BLOCKS} blocks; {count} words from word "
                           f"{start} do not fit. Use several smaller tensors")
