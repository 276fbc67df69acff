"""The table itself, and its one way of entry."""

from __future__ import annotations

from collections.abc import Callable

from fxperex.analysis.state import Context, State
from fxperex.errors import ConfigError

Rule = Callable[[Context], State]
RULES: dict[str, Rule] = {}
READS: dict[str, frozenset[str]] = {}


def rule(*ops: str, reads: str = "") -> Callable[[Rule], Rule]:
    """Decorator: the function is the batch rule of these ATen ops (`"aten.view"`). A duplicate
    raises.

    `reads`: names of all arguments that it reads, as `Context.arg` takes them, separated by spaces;
    reading another raises. The tests hold every one to the schemas of all overloads.
    """

    def add(function: Rule) -> Rule:
        for op in ops:
            if op in RULES:
                raise ConfigError(f"a batch rule for {op} is registered already")
            RULES[op], READS[op] = function, frozenset(reads.split())
        return function

    return add
