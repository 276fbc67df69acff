"""The folder of one run: its secret (for its owner alone), its ledger and its checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from fxperex.errors import LedgerError
from fxperex.files import others_may_read
from fxperex.privacy.noise.streams import SECRET_BYTES, Secret
from fxperex.privacy.records import checkpoint
from fxperex.privacy.records.facts import differences
from fxperex.privacy.records.ledger import Counter, Ledger

SECRET, LEDGER = "secret", "ledger.jsonl"
ANOTHER = "Give every run a folder of its own, or build the engine as it was"


class Folder:
    """Opened by one process at a time. Raises LedgerError."""

    def __init__(self, path: Path, seed: int | None, secure: bool | None,
                 counter: Counter | None) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.secret = self._secret(seed, secure)
        except OSError as e:
            raise LedgerError(f"the run folder {path} cannot be used: {e.strerror}; nothing was "
                              "spent") from e
        self._key = self.secret.key("checkpoint")
        self.ledger = Ledger(self.secret.key("ledger"), path / LEDGER, counter)
        self.ledger.open()

    def claim(self, facts: dict[str, Any]) -> None:
        """Binds a new folder to a run's `facts`. Raises LedgerError if it is bound to others."""
        opening = next(self.ledger.of("run"), None)
        if opening is None:
            self.ledger.append("run", facts=facts)
            return
        differ = differences(opening["facts"], facts)
        if differ:
            raise LedgerError(f"the folder {self.path} belongs to another run: its "
                              f"{'; its '.join(differ)}. {ANOTHER}")

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Writes a checkpoint that names the ledger as it is now. Raises LedgerError."""
        length = len(self.ledger.records)
        state = state | {"ledger": {"length": length, "head": self.ledger.head}}
        mac = checkpoint.save(self.path, length, tensors, state, self._key)
        self.ledger.append("checkpoint", number=length, step=state["step"], set=mac)
        checkpoint.prune(self.path, length)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Returns the newest checkpoint's (tensors, state), or None. Raises LedgerError if it is
        older than it must be.
        """
        checkpoint.check_names(self.path)
        present = checkpoint.sets(self.path)
        recorded = max((r["number"] for r in self.ledger.of("checkpoint")), default=-1)
        newest = max(present, default=-1)
        if newest < recorded:
            raise LedgerError(f"the checkpoints in {self.path} were rolled back or removed: the "
                              f"ledger names number {recorded}, the newest here is "
                              f"{newest if present else 'none'}. Put the folder back as it was")
        if not present:
            return None
        tensors, state = checkpoint.load(present[newest], self._key)
        if state["ledger"]["length"] != newest:
            raise LedgerError(f"checkpoint {newest} in {self.path} was renamed: it was written as "
                              f"number {state['ledger']['length']}. Put the folder back as it was")
        if not self.ledger.has(**state["ledger"]):
            raise LedgerError(f"the ledger in {self.path} was rolled back or replaced: checkpoint "
                              f"{newest} was written when it had {state['ledger']['length']} "
                              "records that are not in it now. Put the folder back as it was")
        return tensors, state

    def _secret(self, seed: int | None, secure: bool | None) -> Secret:
        path = self.path / SECRET
        if path.exists():
            return Secret(seed, secure, read_secret(path))
        if (self.path / LEDGER).exists():
            raise LedgerError(f"{path} is missing beside a ledger: nothing here can be checked "
                              "without it. Put it back")
        secret = Secret(seed, secure)
        # Under its name it is complete or absent: no ledger is ever without the secret that signs
        # it.
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            checkpoint.put(draft, secret.value())
            os.link(draft, path)
        # Another process was faster; the ledger's lock decides between the two.
        except FileExistsError:
            return Secret(seed, secure, path.read_bytes())
        finally:
            draft.unlink(missing_ok=True)
        return secret


def read_secret(path: Path) -> bytes:
    """Returns the secret in a file. Raises LedgerError if it is damaged or others may read it."""
    value = path.read_bytes()
    _check_mode(path)
    if len(value) != SECRET_BYTES:
        raise LedgerError(f"{path} is damaged: a secret has {SECRET_BYTES} bytes, this has "
                          f"{len(value)}")
    return value


def _check_mode(secret: Path) -> None:
    """Raises LedgerError for a secret that others may read, as ssh does for a key."""
    mode = secret.stat().st_mode & 0o777
    if others_may_read(mode):
        raise LedgerError(f"{secret} may be read or written by others (mode {mode:04o}): who reads "
                          "it can subtract the noise. If nobody did, `chmod 600` it; if somebody "
                          "may have, start a new run in another folder")
