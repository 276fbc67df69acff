"""Checkpoints: one atomic set of files, authenticated as a whole, with nothing in it that runs code.

A set is a folder `checkpoint-<length of the ledger>` of tensors.safetensors, state.json and mac = HMAC-SHA256 over
both. It is written beside, synced, and renamed into place: a crash leaves the old set or the new one, never a half.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from fxperex.errors import LedgerError
from fxperex.privacy import faults
from fxperex.privacy.checks import needed

TENSORS, STATE, MAC = "tensors.safetensors", "state.json", "mac"
PREFIX, WRITING = "checkpoint-", ".writing"


def save(folder: Path, number: int, tensors: dict[str, Tensor], state: dict[str, Any], key: bytes) -> str:
    """Returns the MAC of the set `number` in `folder`, which is on disk whole. Raises LedgerError; older sets stay."""
    library, writing = needed("safetensors.torch"), folder / WRITING
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        # One storage each: tied or sliced tensors would share memory, which the format refuses.
        _put(writing / TENSORS, library.save({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}))
        faults.reached("checkpoint: tensors written")
        _put(writing / STATE, json.dumps(state, indent=1).encode())
        mac = _mac(writing, key)
        _put(writing / MAC, mac.encode())
        _sync(writing)
        faults.reached("checkpoint: before the rename")
        writing.rename(folder / f"{PREFIX}{number:09d}")
        _sync(folder)
    except OSError as e:
        shutil.rmtree(writing, ignore_errors=True)
        raise LedgerError(f"no checkpoint could be written to {folder}: {e.strerror}. The run and its older checkpoint are "
                          "as they were; make room and go on") from e
    return mac


def newest(folder: Path) -> Path | None:
    """Returns the newest set in `folder`, or None."""
    return max(folder.glob(f"{PREFIX}*"), default=None)


def prune(folder: Path, keep: Path) -> None:
    """Removes all sets older than `keep`."""
    for path in folder.glob(f"{PREFIX}*"):
        if path < keep:
            shutil.rmtree(path, ignore_errors=True)


def load(path: Path, key: bytes) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Returns (tensors, state, MAC) of a set. Raises LedgerError unless every byte is as written under `key`."""
    library = needed("safetensors.torch")
    missing = [name for name in (TENSORS, STATE, MAC) if not (path / name).is_file()]
    if missing:
        raise LedgerError(f"checkpoint {path} is not whole: {', '.join(missing)} is missing. Put the folder back as it was")
    found = (path / MAC).read_text(errors="replace")
    if not hmac.compare_digest(found.encode(), _mac(path, key).encode()):
        raise LedgerError(f"checkpoint {path} is damaged, was tampered with or belongs to another run: its MAC does not match. "
                          "Nothing of it was used; put the folder back as it was")
    return library.load((path / TENSORS).read_bytes()), json.loads((path / STATE).read_text()), found


def _mac(path: Path, key: bytes) -> str:
    digests = [hashlib.sha256((path / name).read_bytes()).digest() for name in (TENSORS, STATE)]
    return hmac.digest(key, b"".join(digests), "sha256").hex()


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
