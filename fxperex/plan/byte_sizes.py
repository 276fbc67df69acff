"""Sizes in memory, as people write them and as they read them."""

from __future__ import annotations

import math
import re

from fxperex.errors import ConfigError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10,
         "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
UNITS_SHOWN = ("B", "KiB", "MiB", "GiB")


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


def size(count: float, digits: int = 1, gap: str = " ", smallest: str = "B") -> str:
    """Returns `count` bytes for people, as "1.5 MiB", in no unit below `smallest`."""
    unit = _unit(count, smallest)
    return f"{count / UNITS[unit.upper()]:.{digits if unit != 'B' else 0}f}{gap}{unit}"


def budget_text(count: float) -> str:
    """Returns `count` bytes rounded up to what `memory=` accepts and holds, as "12.4MiB"."""
    unit = _unit(count, "KiB")
    return f"{math.ceil(10 * count / UNITS[unit.upper()]) / 10:g}{unit}"


def _unit(count: float, smallest: str) -> str:
    """Returns the largest of UNITS_SHOWN, from `smallest` on, that is at most `count`."""
    units = UNITS_SHOWN[UNITS_SHOWN.index(smallest):]
    return next((u for u in reversed(units) if count >= UNITS[u.upper()]), smallest)
