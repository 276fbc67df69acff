"""Who made a node of a traced graph: tags in `node.meta`, put there while it is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from torch import fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode

# Keys of `node.meta`: what made it, its part of the step, the user's module that it is from, and
# what an input of the step is.
MADE, PART, MODULE, END = "fxperex", "part", "module", "end"


class Role(Enum):
    """What a node that was made for a site is part of."""

    NORM = "norm"
    GRAD = "grad"
    WEIGHTED_SUM = "weighted_sum"


class Part(StrEnum):
    """The part of a step that a node of no site belongs to."""

    FORWARD = "forward"
    BACKWARD = "backward"
    RECOMPUTED = "recomputed"


@dataclass(frozen=True)
class Made:
    """A node was made for `site`, by `strategy`, as part of its `role`.

    For several sites together, `site` lists them and `strategy` is `BESIDE`; for a parameter whose
    uses are added up first, `site` is its name and `strategy` is `TIED`; `PULLED` marks the
    pull-back from the sites to the parameters.
    """

    site: str
    strategy: str
    role: Role

    def __str__(self) -> str:
        return f"{self.site}: {self.strategy} ({self.role.value})"


BESIDE, TIED, PULLED = "side by side", "tied", "vjp"


def made(site: str, strategy: str, role: Role) -> contextlib.AbstractContextManager[None]:
    """Nodes traced inside are marked as made for `site`."""
    return tagged(MADE, Made(site, strategy, role))


def made_for(node: fx.Node) -> Made | None:
    """Returns what `node` was made for; None if it belongs to no site."""
    return node.meta.get(MADE)


_GRAPH: ContextVar[fx.Graph | None] = ContextVar("graph", default=None)


@contextlib.contextmanager
def into(graph: fx.Graph) -> Iterator[None]:
    """Within it `tagged` marks the nodes that are added to `graph`."""
    token = _GRAPH.set(graph)
    try:
        yield
    finally:
        _GRAPH.reset(token)


@contextlib.contextmanager
def tagged(key: str, value: Any) -> Iterator[None]:
    """Nodes traced inside carry `meta[key] = value`, unless they have one from further inside.

    Outside of a trace it does nothing.
    """
    mode = get_proxy_mode()
    graph = mode.tracer.graph if mode is not None else _GRAPH.get()  # type: ignore[union-attr]
    final = next(iter(reversed(graph.nodes)), None) if graph else None
    yield
    if graph is None:
        return
    for node in reversed(graph.nodes):
        if node is final:
            break
        node.meta.setdefault(key, value)
