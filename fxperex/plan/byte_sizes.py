"""Sizes in memory, as people write them and as they read them."""

from __future__ import annotations

import math
import re

from fxperex.errors import ConfigError

UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20,
    "GIB": 2**30, "TIB": 2**40
}


def parse_memory(memory: int | float | str | None) -> int | None:
    """Returns bytes of `"16GiB"`, `"500MB"` or a number; None for None. Raises ConfigError."""
    if memory is None:
        return None
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", str(memory))
    try:
        size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    except (KeyError, ValueError):
        size = 0
    if size <= 0 or isinstance(memory, bool):
        raise ConfigError("memory must be a number of bytes above 0 or a size such as '16GiB'; "
                          f"got {memory!r}")
    return size


def size(count: float) -> str:
    """Returns `count` bytes for people, as "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def budget_text(count: float) -> str:
    """Returns `count` bytes rounded up to what `memory=` accepts and holds, as "12.4MiB"."""
    unit = next((u for u in ("GiB", "MiB") if count >= UNITS[u.upper()]), "KiB")
    return f"{math.ceil(10 * count / UNITS[unit.upper()]) / 10:g}{unit}"
