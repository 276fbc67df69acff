"""The table itself, and its one way of entry."""

from __future__ import annotations

from collections.abc import Callable

from fxperex.analysis.state import Context, State
from fxperex.errors import ConfigError

Rule = Callable[[Context], State]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Decorator: the function is the batch rule of these ATen ops (`"aten.view"`). A duplicate raises."""

    def add(function: Rule) -> Rule:
        for op in ops:
            if op in RULES:
                raise ConfigError(f"a batch rule for {op} is registered already")
            RULES[op] = function
        return function

    return add
