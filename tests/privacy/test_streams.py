"""ChaCha20 gives the RFC's numbers, streams are apart, and a secret is told honestly."""

from __future__ import annotations

import numpy as np
import pytest

from fxperex.errors import ConfigError, PrivacyError
from fxperex.privacy import Secret
from fxperex.privacy.streams import chacha20

# RFC 8439: section 2.3.2, and appendix A.1, test vectors 1, 2, 4.
VECTORS = [
    (bytes(range(32)), "000000090000004a00000000", 1,
     "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
     "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"),
    (bytes(32), "000000000000000000000000", 0,
     "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
     "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"),
    (bytes(32), "000000000000000000000000", 1,
     "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
     "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"),
    (b"\x00\xff" + bytes(30), "000000000000000000000000", 2,
     "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
     "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"),
]


@pytest.mark.parametrize(("key", "nonce", "counter", "block"), VECTORS)
def test_rfc_8439(key: bytes, nonce: str, counter: int, block: str) -> None:
    assert chacha20(key, bytes.fromhex(nonce), 8, counter).tobytes().hex() == block


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
    assert "ChaCha20" in Secret().told and "not cryptographic" in Secret(secure=False).told
    assert "science only" in Secret(7).told and not Secret(7).secure
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
