"""The folder of a run of several ranks: rank 0 owns it, and every rank knows what the ledger says.

Each record is on rank 0's disk before any rank goes on; if it cannot be written, all ranks raise.
The ledger of the other ranks is a copy in memory, so all give the same answers about the account.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from fxperex.privacy.noise.streams import Secret
from fxperex.privacy.records.folder import LEDGER, Folder
from fxperex.privacy.records.ledger import Counter, Ledger, Record
from fxperex.ranks import Ranks

Value = TypeVar("Value")


def open_folder(ranks: Ranks, path: Path, seed: int | None, secure: bool | None,
                counter: Counter | None) -> Folder:
    """Returns the Folder of a run, on every rank. Raises LedgerError on all or none."""
    if ranks.size == 1:
        return Folder(path, seed, secure, counter)
    return SharedFolder(ranks, path, seed, secure, counter)


def open_secret(ranks: Ranks, seed: int | None, secure: bool | None) -> Secret:
    """Returns the Secret of a run without a folder: that of rank 0, on every rank."""
    if ranks.size == 1:
        return Secret(seed, secure)
    value = ranks.decided(lambda: Secret(seed, secure).value().hex())
    return Secret(seed, secure, bytes.fromhex(value))


class SharedLedger(Ledger):
    """Rank 0's ledger; on the other ranks a copy of its records."""

    def __init__(self, ranks: Ranks, key: bytes, path: Path, counter: Counter | None,
                 owned: Ledger | None, records: list[Record]) -> None:
        held = records if owned is None else owned.records
        super().__init__(key, path, counter, held)
        self._ranks, self._owned = ranks, owned

    def append(self, kind: str, *, sync: bool = True, **facts: Any) -> None:
        def write() -> None:
            assert self._owned is not None
            self._owned.append(kind, sync=sync, **facts)

        self.mirror(write)

    def mirror(self, act: Callable[[], Value]) -> Value:
        """Returns what `act` returned on rank 0, with every record that it wrote, on all ranks."""
        before = len(self.records)

        def written() -> Any:
            value = act()
            return value, self.records[before:]

        value, fresh = self._ranks.decided(written)
        if self._owned is None:
            self.records += fresh
        return value  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._owned is not None:
            self._owned.close()


class SharedFolder(Folder):
    """A run's folder on several ranks: rank 0 reads and writes it. Raises LedgerError."""

    def __init__(self, ranks: Ranks, path: Path, seed: int | None, secure: bool | None,
                 counter: Counter | None) -> None:
        self.path, self._ranks = path, ranks
        self._owned: Folder | None = None

        def opened() -> Any:
            self._owned = Folder(path, seed, secure, counter)
            return self._owned.secret.value().hex(), self._owned.ledger.records

        value, records = ranks.decided(opened)
        self.secret = Secret(seed, secure, bytes.fromhex(value))
        self.ledger = SharedLedger(ranks, self.secret.key("ledger"), path / LEDGER, counter,
                                   self._owned and self._owned.ledger, records)

    def claim(self, facts: dict[str, Any]) -> None:
        def claimed() -> None:
            assert self._owned is not None
            self._owned.claim(facts)

        self._mirror(claimed)

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        def saved() -> None:
            assert self._owned is not None
            self._owned.save(tensors, state)

        self._mirror(saved)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        loaded: list[dict[str, Tensor]] = []

        def read() -> dict[str, Any] | None:
            assert self._owned is not None
            newest = self._owned.load()
            if newest is None:
                return None
            loaded.append(newest[0])
            return newest[1]

        state = self._ranks.decided(read)
        if state is None:
            return None
        return self._ranks.tensors(loaded[0] if loaded else None), state

    def _mirror(self, act: Callable[[], None]) -> None:
        assert isinstance(self.ledger, SharedLedger)
        self.ledger.mirror(act)
