"""The key stream on the device is the RFC's, the same as on the CPU, and so is the noise made of
it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rfc8439 import VECTORS

from fxperex import kernels
from fxperex.clipping import Flat
from fxperex.kernels.chacha import reference
from fxperex.privacy import Mechanism, Noise, Secret
from fxperex.privacy.noise.streams import chacha20

CPU = torch.device("cpu")


def _words(key: bytes, nonce: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(key + nonce, "<i4").copy())


@pytest.mark.parametrize(("key", "nonce", "counter", "block"), VECTORS)
def test_rfc_8439(key: bytes, nonce: str, counter: int, block: str) -> None:
    assert kernels.chacha20(_words(key, bytes.fromhex(nonce)), 8,
                            counter).numpy().tobytes().hex() == block


@pytest.mark.parametrize("count", [0, 1, 15, 1024, 1025, 3000])
def test_against_the_references(count: int) -> None:
    key, nonce = Secret().value(), b"\xff\x80" + bytes(range(10))
    for counter in (0, 5, 2**31 - 3, 2**32 - 375):
        found = kernels.chacha20(_words(key, nonce), count, counter)
        assert torch.equal(found, reference(_words(key, nonce), count, counter))
        assert found.numpy().tobytes() == chacha20(key, nonce, count, counter).tobytes()


def test_noise_is_drawn_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism, secret, sums = Mechanism(Flat(1.0), 1.5, "add-or-remove", 2.0,
                                        9), Secret(), [torch.randn(3, 2),
                                                       torch.randn(3)]
    calls: list[int] = []
    real = kernels.chacha20
    monkeypatch.setattr(
        kernels, "chacha20",
        lambda words, count, counter: calls.append(count) or real(words, count, counter))
    found = Noise(mechanism, secret).release(sums, 7, 1)
    assert calls == [6, 4]
    monkeypatch.setattr(kernels, "unavailable", lambda _: "not here")
    for a, b in zip(found, Noise(mechanism, secret).release(sums, 7, 1), strict=True):
        # The same words. The device's formula and the host's may round the last bit differently.
        torch.testing.assert_close(a, b, rtol=1e-15, atol=1e-15)
    assert len(calls) == 2
