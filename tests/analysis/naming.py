"""Whether a refusal names the user's line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable


def lines(function: Callable[..., object]) -> set[int]:
    """Numbers of the lines that a refusal of `function` may name: those marked `# mixes`, else all
    of its code.
    """
    source, start = inspect.getsourcelines(function)
    marked = {start + i for i, line in enumerate(source) if line.rstrip().endswith("# mixes")}
    return marked or {line for *_, line in function.__code__.co_lines() if line}


def names_the_line(message: str, function: Callable[..., object]) -> bool:
    file = inspect.getsourcefile(function)
    told = {int(n) for n in re.findall(rf"{re.escape(str(file))}:(\d+)", message)}
    return bool(told) and told <= lines(function)
