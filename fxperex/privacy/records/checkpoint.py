"""Checkpoints: each is one authenticated set of files, and reading it runs no code.

A set is a folder `checkpoint-<length of the ledger>` of tensors.safetensors, state.json and mac =
HMAC-SHA256 over both. It is written under another name, synced, and renamed: a crash leaves the old
set or the new one, never half of one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from fxperex.errors import LedgerError
from fxperex.files import sync_folder
from fxperex.privacy.checks import needed

TENSORS, STATE, MAC = "tensors.safetensors", "state.json", "mac"
PREFIX, WRITING = "checkpoint-", ".writing"
NUMBERED = re.compile(PREFIX + r"\d{9,}")


def save(folder: Path, number: int, tensors: dict[str, Tensor], state: dict[str, Any],
         key: bytes) -> str:
    """Returns the MAC of the set `number` in `folder`, complete on disk when this returns. Raises
    LedgerError; older sets stay.
    """
    writing = folder / WRITING
    # One storage each: tied or sliced tensors would share memory, which the format refuses.
    copies = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    held = needed("safetensors.torch").save(copies)
    text = json.dumps(state, indent=1).encode()
    mac = _mac(held, text, key)
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(0o700)
        for name, data in ((TENSORS, held), (STATE, text), (MAC, mac)):
            put(writing / name, data)
        sync_folder(writing)
        target = numbered(folder, number)
        # There is a set of this number if the ledger could not record it. The ledger names an older
        # set, which stays.
        shutil.rmtree(target, ignore_errors=True)
        writing.rename(target)
        sync_folder(folder)
    except OSError as e:
        shutil.rmtree(writing, ignore_errors=True)
        raise LedgerError(f"no checkpoint could be written to {folder}: {e.strerror}. The run and "
                          "its older checkpoint are as they were; make room and go on") from e
    return mac.decode()


def numbered(folder: Path, number: int) -> Path:
    """Returns the path of the set `number` in `folder`."""
    return folder / f"{PREFIX}{number:09d}"


def sets(folder: Path) -> dict[int, Path]:
    """Returns the sets in `folder` by number."""
    paths = [path for path in folder.glob(f"{PREFIX}*") if NUMBERED.fullmatch(path.name)]
    return {int(path.name.removeprefix(PREFIX)): path for path in paths}


def check_names(folder: Path) -> None:
    """Raises LedgerError for files that are named like a set and are none."""
    foreign = [path.name for path in folder.glob(f"{PREFIX}*") if not NUMBERED.fullmatch(path.name)]
    if foreign:
        raise LedgerError(f"{folder} holds {', '.join(foreign)}, which this library did not "
                          "write; move it out of the folder")


def prune(folder: Path, keep: int) -> None:
    """Removes all sets older than the one numbered `keep`."""
    for number, path in sets(folder).items():
        if number < keep:
            shutil.rmtree(path, ignore_errors=True)


def load(path: Path, key: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns (tensors, state) of a set. Raises LedgerError unless `key` authenticates every byte.
    """
    library = needed("safetensors.torch")
    missing = [name for name in (TENSORS, STATE, MAC) if not (path / name).is_file()]
    if missing:
        raise LedgerError(f"checkpoint {path} is not whole: {', '.join(missing)} is missing. Put "
                          "the folder back as it was")
    try:
        # Read once: what is checked is what is used.
        tensors, state, mac = ((path / name).read_bytes() for name in (TENSORS, STATE, MAC))
    except OSError as e:
        raise LedgerError(f"checkpoint {path} cannot be read: {e.strerror}. Nothing of it was "
                          "used") from e
    if not hmac.compare_digest(mac, _mac(tensors, state, key)):
        raise LedgerError(f"checkpoint {path} is damaged, was tampered with or belongs to another "
                          "run: its MAC does not match. Nothing of it was used; put the folder "
                          "back as it was")
    return library.load(tensors), json.loads(state)


def _mac(tensors: bytes, state: bytes, key: bytes) -> bytes:
    digests = b"".join(hashlib.sha256(data).digest() for data in (tensors, state))
    return hmac.digest(key, digests, "sha256").hex().encode()


def put(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, for its owner alone, on disk when this returns. Raises OSError."""
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
