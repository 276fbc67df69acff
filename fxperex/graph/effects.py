"""What running a node does beside its result: it draws, it writes, it shares memory.

Passes move, merge and repeat nodes; for those with effects, order is more than the graph's edges.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx
from torch.utils import _pytree as pytree


def writes(node: fx.Node) -> bool:
    """True for an operation that writes in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def storages(node: fx.Node) -> set[int]:
    """Returns the memory of a node with fake values in `meta["val"]`."""
    return {
        t.untyped_storage()._cdata
        for t in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(t, torch.Tensor)
    }


def random(node: fx.Node) -> bool:
    """True for an operation that draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def written(nodes: Collection[fx.Node]) -> set[int]:
    """Returns the memory that some operation of `nodes` writes in place."""
    return {s for n in nodes if writes(n) for a in n.all_input_nodes for s in storages(a)}


def touches(node: fx.Node, memory: set[int]) -> bool:
    """True for an operation that reads or makes some of `memory`."""
    return bool(memory) and any(memory & storages(n) for n in (node, *node.all_input_nodes))


def repeatable(nodes: Collection[fx.Node]) -> frozenset[fx.Node]:
    """Returns the operations among `nodes` that give the same bits again: nothing random, nothing
    that touches written memory.
    """
    dirty = written(nodes)
    return frozenset(n for n in nodes if n.op == "call_function" and not random(n) and not writes(n)
                     and not touches(n, dirty))
