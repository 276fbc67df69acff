"""The table itself, and its one way of entry."""

from __future__ import annotations

from collections.abc import Callable

from fxperex.analysis.state import Context, State
from fxperex.errors import ConfigError
from fxperex.graph.whole import leave_whole
from fxperex.registry import same_definition

Rule = Callable[[Context], State]
RULES: dict[str, Rule] = {}
READS: dict[str, frozenset[str]] = {}


def rule(*ops: str, reads: str = "") -> Callable[[Rule], Rule]:
    """Decorator: the function is the batch rule of these operators (`"aten.view"`).

    reads: names of all arguments that it reads, as `Context.arg` takes them, separated by spaces;
    reading another raises. Registering a function again replaces it. Raises ConfigError if another
    function has a rule for one of `ops`.
    """

    def enter(function: Rule) -> Rule:
        for op in ops:
            if op in RULES and not same_definition(RULES[op], function):
                raise ConfigError(f"a batch rule for {op} is registered already, by "
                                  f"{RULES[op].__module__}.{RULES[op].__qualname__}")
        for op in ops:
            RULES[op], READS[op] = function, frozenset(reads.split())
        leave_whole(*ops)
        return function

    return enter
