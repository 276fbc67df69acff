"""Passes of users: entered by a decorator, they run after the library's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import fx

from fxperex.errors import ConfigError, CoverageError
from fxperex.registry import same_definition
from fxperex.rewrite.passes.contract import Pass

Run = Callable[[fx.GraphModule], int]

_PASSES: dict[str, tuple[Run, Pass]] = {}
_COUNTS: dict[str, list[int]] = {}  # of passes that are being checked: nodes changed, by graph


def graph_pass(name: str, needs: frozenset[str] = frozenset()) -> Callable[[Run], Run]:
    """Function decorator: adds a pass over every step graph that is rewritten from now on.

    The function gets the graph, changes it in place without changing any result, and returns the
    number of nodes that it changed. The graph is verified after it. needs: facts of
    `rewrite.passes` that must be true before. Registering a function again replaces it. Raises
    ConfigError for another function of that name.
    """

    def enter(run: Run) -> Run:
        former = _PASSES.get(name)
        if former is not None and not same_definition(former[0], run):
            raise ConfigError(f"pass {name!r} is registered already, by {former[0].__module__}."
                              f"{former[0].__qualname__}; choose another name")
        _PASSES[name] = run, Pass(name, lambda graph, _: _changed(name, run, graph), needs,
                                  checked=True)
        return run

    return enter


def user_passes() -> dict[str, Pass]:
    """Returns {name: pass}, in the order in which they were registered."""
    return {name: entry for name, (_, entry) in _PASSES.items()}


def _changed(name: str, run: Run, graph: fx.GraphModule) -> int:
    count = run(graph)
    if not isinstance(count, int):
        raise CoverageError(f"pass {name!r} returned {count!r}; it must return the number of nodes "
                            "that it changed")
    graph.graph.lint()
    if name in _COUNTS:
        _COUNTS[name].append(count)
    return count


@contextlib.contextmanager
def counted(name: str) -> Iterator[list[int]]:
    """Yields a list to which the pass adds, for every graph, the number of nodes it changed."""
    _COUNTS[name] = []
    try:
        yield _COUNTS[name]
    finally:
        del _COUNTS[name]
