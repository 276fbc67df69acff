"""Files that are written whole or not at all: a reader finds the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


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


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
