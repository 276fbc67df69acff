"""What a pass over the step graph is, and how a list of them is applied."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from fxperex.errors import CoverageError
from fxperex.graph.show import level, show
from fxperex.graph.strides import VIEWS

# What is true of a graph, and how that is seen.
VALUES = 'meta["val"] on every node that is read'
NO_VIEWS = "no view, which would fix strides"
NORMS_EARLY = "every norm that moves stands where its site's values exist"
ORDER = "nodes stand in the order they run"
TRACED = {VALUES}  # of every traced graph


@dataclass(frozen=True)
class Orders:
    """What a plan asks of the passes.

    early: sites whose norms free what they read: they are moved up together.
    recomputed: forward nodes that are not kept for the backward.
    """

    early: frozenset[str] = frozenset()
    recomputed: frozenset[str] = frozenset()


NO_ORDERS = Orders()


def always(_: Orders) -> bool:
    """True: the pass is for every plan."""
    return True


@dataclass(frozen=True)
class Pass:
    """A pass: `run(graph, orders)` changes the graph in place and returns how many nodes it moved,
    added or took out.

    needs: what must be true before; promises: what is true after, beside what was.
    when: the orders that it is for. moves: it orders the whole step; all others change operations
    where they stand, also in a graph of one site. checked: the graph is always verified after it.
    """

    name: str
    run: Callable[[fx.GraphModule, Orders], int]
    needs: frozenset[str] = frozenset()
    promises: frozenset[str] = frozenset()
    when: Callable[[Orders], bool] = always
    moves: bool = False
    checked: bool = False


def apply(graph: fx.GraphModule, passes: Sequence[Pass], orders: Orders = NO_ORDERS,
          verify: Callable[[fx.GraphModule], None] | None = None) -> None:
    """Applies `passes` to `graph` in their order.

    After a checked pass `verify` and every fact that can be seen hold the graph; they raise
    CoverageError. Under FXPEREX_VERIFY, and when graphs are shown, every pass is checked.
    """
    checked = level() > 0 or os.environ.get("FXPEREX_VERIFY", "0") not in ("", "0")
    facts = set(TRACED)
    with _code_once(graph):
        for each in passes:
            if not each.when(orders):
                continue
            each.run(graph, orders)
            facts |= each.promises
            show(4, f"step after {each.name}", graph)
            if checked or each.checked:
                check_facts(graph, facts, each.name)
                if verify is not None:
                    verify(graph)


@contextlib.contextmanager
def _code_once(graph: fx.GraphModule) -> Iterator[None]:
    """Within it `graph.recompile()` waits for the end: writing code takes longer than a pass."""
    graph.recompile = lambda: None  # type: ignore[assignment,method-assign,return-value]
    try:
        yield
    finally:
        del graph.recompile
        graph.recompile()


def check_facts(graph: fx.GraphModule, facts: set[str], name: str) -> None:
    """Raises CoverageError if one of `facts` that can be seen is not so after the pass `name`."""
    broken = [fact for fact in sorted(facts) if fact in SEEN and not SEEN[fact](graph)]
    if broken:
        raise CoverageError(f"internal: after the pass {name}: not {broken[0]}")


def _has_values(graph: fx.GraphModule) -> bool:
    # A result that is not asked for is None, and so is its node's value.
    read = [n for n in graph.graph.nodes if n.op == "call_function" and n.users]
    return all("val" in n.meta for n in read)


def _has_no_views(graph: fx.GraphModule) -> bool:
    return not any(n.target in VIEWS for n in graph.graph.nodes)


SEEN: dict[str, Callable[[fx.GraphModule], bool]] = {
    VALUES: _has_values, NO_VIEWS: _has_no_views
}
