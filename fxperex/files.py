"""Files that are written whole or not at all, for their owner alone, and by one process at a time.

What an operating system lacks is done without: Windows has no modes of files, and puts the names in
a folder on disk by itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POSIX = fcntl is not None
LOCKED = 2**40  # the byte that Windows locks: after all that a file will hold


@contextlib.contextmanager
def replacing(target: Path, beside: Path | None = None) -> Iterator[Path]:
    """Yields a path beside `target` to write a file or a folder to, which takes the place of
    `target` when the block ends.

    If the block raises, `target` is as it was and the path beside it is gone. beside: that path;
    by default a hidden one, of this process alone.
    """
    beside = beside or target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield beside
        if target.is_dir():  # no folder takes the place of a full one
            shutil.rmtree(target, ignore_errors=True)
        beside.replace(target)
    except BaseException:
        remove(beside)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, and makes the folders that it lies in. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_bytes(data)


def lock(file: IO[Any]) -> None:
    """Locks an open file until it is closed. Raises BlockingIOError if another process has it.

    The lock lies on the file itself and not on one beside it (as filelock's does): a copy of this
    process by fork gives it up by closing the file, and does not unlock it for this one.
    """
    if POSIX:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    windows: Any = msvcrt
    file.seek(LOCKED)
    try:
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)
    except OSError as e:
        raise BlockingIOError(e.errno, e.strerror) from e


def others_may_read(mode: int) -> bool:
    """Returns whether a file of this mode may be read or written by others, as far as modes say."""
    return POSIX and bool(mode & 0o077)


def sync_folder(folder: Path) -> None:
    """Puts the names in `folder` on disk. Raises OSError."""
    if not POSIX:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
