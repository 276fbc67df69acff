"""What was spent, written down and on disk before it is spent.

One JSON line per record; each carries HMAC-SHA256(key, MAC of the line before + its own text), so that no line can be
changed, dropped or moved without the key. A step's life: `begin` (on disk before data is read: the debit), `sum` (a
keyed hash of the sum, on disk before noise is drawn), `commit`. A local file cannot stop the whole folder from being
put back to an older copy: `counter`, kept elsewhere, can.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hmac
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from fxperex.errors import LedgerError
from fxperex.privacy import faults

Record = dict[str, Any]
START = "0" * 64


class Counter(Protocol):
    """A number kept where who holds the folder cannot turn it back: the length of the ledger."""

    def read(self) -> int: ...
    def write(self, value: int) -> None: ...


@dataclass
class Ledger:
    """The records so far, and the file (None: this process' memory) that holds them."""

    key: bytes
    path: Path | None = None
    counter: Counter | None = None
    records: list[Record] = field(default_factory=list)
    _file: IO[Any] | None = None

    def append(self, kind: str, *, sync: bool = True, **facts: Any) -> None:
        """Adds one record, on disk before it returns if `sync`. Raises LedgerError, and then the record is not there."""
        record = {"n": len(self.records), "kind": kind, **facts}
        record["mac"] = self._mac(record)
        if self._file is not None:
            self._write(json.dumps(record).encode() + b"\n", sync)
        self.records.append(record)
        if self.counter is not None:
            self.counter.write(len(self.records))

    def of(self, kind: str) -> Iterator[Record]:
        return (r for r in self.records if r["kind"] == kind)

    @property
    def head(self) -> str:
        """The MAC of the last record; it stands for the whole ledger."""
        return self.records[-1]["mac"] if self.records else START

    def has(self, length: int, head: str) -> bool:
        """Returns whether this ledger goes on from the one that had `length` records and `head`."""
        return 0 < length <= len(self.records) and self.records[length - 1]["mac"] == head

    def open(self) -> None:
        """Reads and checks the file, which this process alone may use from now on. Raises LedgerError."""
        if self.path is None:
            return
        try:
            self._open(self.path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            self._file = path.open("a+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise LedgerError(f"the ledger {path} is in use by another process; two runs cannot share a folder") from e
        except OSError as e:
            raise LedgerError(f"the ledger {path} cannot be opened for writing: {e.strerror}; nothing was spent") from e
        self._read()
        if self.counter is not None and self.counter.read() > len(self.records):
            raise LedgerError(f"the ledger {path} was rolled back: it has {len(self.records)} records, the counter says "
                              f"{self.counter.read()}. Put the newer folder back")

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        # A record without its newline was cut off by a crash before `append` returned: what it stands for never began.
        torn = lines.pop()
        for i, line in enumerate(lines):
            try:
                record = json.loads(line)
                good = hmac.compare_digest(record["mac"], self._mac({k: v for k, v in record.items() if k != "mac"}))
            except (ValueError, KeyError, TypeError, AttributeError):
                good = False
            if not good or record["n"] != i:
                raise LedgerError(f"the ledger {self.path} is damaged or was tampered with at line {i + 1}, or belongs to "
                                  "another run (its key differs). Nothing was spent; put back the file as it was")
            self.records.append(record)
        if torn:
            self._file.truncate(self._file.seek(0, os.SEEK_END) - len(torn))

    def _write(self, data: bytes, sync: bool) -> None:
        assert self._file is not None
        at = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            faults.reached("begin: ledger written, not on disk")
            if sync:
                os.fsync(self._file.fileno())
        except OSError as e:
            # Half a line left by a truncate that fails too is dropped by the next `open`.
            with contextlib.suppress(OSError):
                self._file.truncate(at)
            raise LedgerError(f"the ledger {self.path} cannot be written: {e.strerror}. The step did not begin; make room and "
                              "go on") from e

    def _mac(self, record: Record) -> str:
        return hmac.digest(self.key, (self.head + json.dumps(record, sort_keys=True)).encode(), "sha256").hex()
