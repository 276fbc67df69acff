"""Who made a node of a traced graph: tags in `node.meta`, put there while it is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.fx.experimental.proxy_tensor import get_proxy_mode


@contextlib.contextmanager
def tagged(key: str, value: Any) -> Iterator[None]:
    """Nodes traced inside carry `meta[key] = value`, unless they have one from further inside.
    Without tracing: nothing.
    """
    mode = get_proxy_mode()
    graph = mode.tracer.graph if mode is not None else None  # type: ignore[union-attr]
    final = next(iter(reversed(graph.nodes)), None) if graph else None
    yield
    if graph is None:
        return
    for node in reversed(graph.nodes):
        if node is final:
            break
        node.meta.setdefault(key, value)
