"""What was spent, written down and on disk before it is spent.

One JSON line per record; each carries HMAC-SHA256(key, MAC of the line before + its own text), so
that no line can be changed, dropped or moved without the key. A step's life: `begin` (on disk
before data is read: the debit), `sum` (a keyed hash of the sum, on disk before noise is drawn),
`commit`. A local file cannot notice that all of its folder was put back to an older copy. A
`counter` that is stored elsewhere can.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from fxperex.errors import LedgerError
from fxperex.files import lock, others_may_read

Record = dict[str, Any]
START = "0" * 64


class Counter(Protocol):
    """The length of the ledger, stored where nobody who has the folder can turn it back."""

    def read(self) -> int: ...
    def write(self, value: int) -> None: ...


@dataclass(eq=False)
class Ledger:
    """The records so far, and the file (None: this process' memory) that holds them."""

    key: bytes = field(repr=False)
    path: Path | None = None
    counter: Counter | None = None
    records: list[Record] = field(default_factory=list)
    _file: IO[Any] | None = None
    # Bytes of the file by number of records: an append that failed or was interrupted may have left
    # more.
    _ends: dict[int, int] = field(default_factory=lambda: {0: 0})
    _owner: int = field(default_factory=os.getpid)

    def append(self, kind: str, *, sync: bool = True, **facts: Any) -> None:
        """Adds one record; if `sync`, it is on disk when this returns. Raises LedgerError, and then
        the record is not in the ledger.
        """
        if os.getpid() != self._owner:
            raise LedgerError("this process is a copy (fork) of the one that began the run; two "
                              "that go on with it would draw the same noise. Make the engine in "
                              "the process that trains")
        if self.path is not None and self._file is None:
            raise LedgerError(f"the ledger {self.path} is closed: what is spent from here on would "
                              "be in no file. Make an engine on the folder again")
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
        """The MAC of the last record, which depends on all records."""
        return self.records[-1]["mac"] if self.records else START

    def has(self, length: int, head: str) -> bool:
        """Returns whether this ledger begins with `length` records that end in `head`."""
        return 0 < length <= len(self.records) and self.records[length - 1]["mac"] == head

    def open(self) -> None:
        """Reads and checks the file, and locks it for this process. Raises LedgerError."""
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
            _opened.add(self)
            # New, or of an earlier version.
            if others_may_read(os.fstat(self._file.fileno()).st_mode):
                os.fchmod(self._file.fileno(), 0o600)
            lock(self._file)
            self._read()
        except BlockingIOError as e:
            raise LedgerError(f"the ledger {path} is in use by another process; two runs cannot "
                              "share a folder") from e
        except OSError as e:
            raise LedgerError(f"the ledger {path} cannot be read and written: {e.strerror}; "
                              "nothing was spent") from e
        if self.counter is not None and self.counter.read() > len(self.records):
            raise LedgerError(f"the ledger {path} was rolled back: it has {len(self.records)} "
                              f"records, the counter says {self.counter.read()}. Put the newer "
                              "folder back")

    def close(self) -> None:
        """Closes the file and gives up its lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        tail = lines.pop()
        for i, line in enumerate(lines):
            record = self._authentic(line)
            if record is None:
                raise LedgerError(f"the ledger {self.path} is damaged or was tampered with at "
                                  f"line {i + 1}, or belongs to another run (its key differs). "
                                  "Nothing was spent; put back the file as it was")
            self.records.append(record)
        self._ends = {len(self.records): self._file.tell() - len(tail)}
        # A record that a crash cut off belongs to something that never began; the next record
        # overwrites it. A record that lacks only its newline (or has another byte there) counts.
        record = self._authentic(tail) or self._authentic(tail[:-1])
        if record is not None:
            self._write(json.dumps(record).encode() + b"\n", True)
            self.records.append(record)

    def _authentic(self, line: bytes) -> Record | None:
        """Returns the record of `line` if it is the next one of this ledger, unchanged."""
        try:
            record = json.loads(line)
            signed = {k: v for k, v in record.items() if k != "mac"}
            good = hmac.compare_digest(record["mac"], self._mac(signed))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return record if good and record["n"] == len(self.records) else None

    def _write(self, data: bytes, sync: bool) -> None:
        assert self._file is not None
        count, end = len(self.records), self._ends[len(self.records)]
        try:
            self._file.truncate(end)
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(self._file.fileno())
        except OSError as e:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise LedgerError(f"the ledger {self.path} cannot be written: {e.strerror}. The "
                              "record is not in it; make room and go on") from e
        self._ends = {count: end, count + 1: end + len(data)}

    def _mac(self, record: Record) -> str:
        return hmac.digest(self.key, (self.head + json.dumps(record, sort_keys=True)).encode(),
                           "sha256").hex()


_opened: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _let_go() -> None:
    """Closes all ledgers in a copy of this process, such as a data loader's worker: it must not
    hold the lock of a run that was killed.
    """
    for ledger in list(_opened):
        ledger.close()


if hasattr(os, "register_at_fork"):  # elsewhere a process has no copies
    os.register_at_fork(after_in_child=_let_go)
