"""ChaCha20 gives the RFC's numbers, streams are apart, and a secret is told honestly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rfc8439 import VECTORS

from fxperex import kernels
from fxperex.errors import ConfigError, PrivacyError
from fxperex.privacy import Secret
from fxperex.privacy.noise.streams import chacha20


@pytest.mark.parametrize(("key", "nonce", "counter", "block"), VECTORS)
def test_rfc_8439(key: bytes, nonce: str, counter: int, block: str) -> None:
    assert chacha20(key, bytes.fromhex(nonce), 8, counter).tobytes().hex() == block


@pytest.mark.parametrize(("key", "nonce", "counter", "block"), VECTORS)
def test_rfc_8439_in_aten(key: bytes, nonce: str, counter: int, block: str) -> None:
    words = torch.from_numpy(np.frombuffer(key + bytes.fromhex(nonce), "<i4").copy())
    assert kernels.chacha20(words, 8, counter).numpy().tobytes().hex() == block


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_two_implementations_agree(count: int) -> None:
    key, nonce = Secret().value(), bytes(range(12))
    words = torch.from_numpy(np.frombuffer(key + nonce, "<i4").copy())
    for counter in (0, 1, 2**31, 2**32 - 125):
        assert kernels.chacha20(words, count,
                                counter).numpy().tobytes() == chacha20(key, nonce, count,
                                                                       counter).tobytes()


def test_words_are_the_bits() -> None:
    for secure in (True, False):
        streams = Secret(secure=secure).streams("noise")
        assert streams.words(9, 3, 2,
                             torch.device("cpu")).numpy().tobytes() == streams.bits(9, 3,
                                                                                    2).tobytes()


def test_a_stream_ends_before_its_counter_wraps() -> None:
    with pytest.raises(PrivacyError, match="do not fit"):
        chacha20(bytes(32), bytes(12), 16, 2**32 - 1)
    assert len(chacha20(bytes(32), bytes(12), 8, 2**32 - 1)) == 8


def test_step_and_item_are_the_nonce() -> None:
    secret = Secret()
    found = secret.streams("noise", 3).bits(4, step=7, item=5)
    nonce = (5).to_bytes(4, "little") + (7).to_bytes(8, "little")
    assert np.array_equal(found, chacha20(secret.key("noise", 3), nonce, 4))
    assert len({secret.key(p, g) for p in ("noise", "sampling", "ledger") for g in (0, 1, 2)}) == 9


def test_secrets_say_what_they_are() -> None:
    assert "ChaCha20" in Secret().description
    assert "not cryptographic" in Secret(secure=False).description
    assert "science only" in Secret(7).description and not Secret(7).secure
    assert Secret().value() != Secret().value() and len(Secret().value()) == 32
    for wrong in ({"seed": "x"}, {"seed": True}, {"seed": 1, "secure": True}, {"value": b"short"}):
        with pytest.raises(ConfigError):
            Secret(**wrong)  # type: ignore[arg-type]


def test_without_cryptography_secure_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    with pytest.raises(ConfigError, match=r'pip install "fxperex\[accounting\]"'):
        Secret()
    assert Secret(secure=False)
