"""Step -> the same step without operations that do nothing or that compute a small value once more.
Every bit stays.

Run eagerly, each operation costs its call: of ResNet-18's step at 32 pixels a third of all
operations were second names, reshapes to the shape at hand, and views, masks and factors formed
anew for every site. Large values formed twice stay: to keep them in between costs memory that the
planner did not count. Precondition: `meta["val"]` on every node; behind `schedule` and `recompute`,
which move a site's nodes as one. Inductor finds these by itself.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxperex.graph.effects import random, storages, touches, writes, written
from fxperex.graph.provenance import PART, Part
from fxperex.rewrite.passes.contract import NO_ORDERS, Orders
from fxperex.rewrite.passes.schedule import ALIASES

SMALL = 2**16  # bytes of a value that may be kept for its second use
SAME_SHAPE = {torch.ops.aten.reshape.default,
              torch.ops.aten.expand.default}  # which then is the same value


def remove_redundant(graph: fx.GraphModule, orders: Orders = NO_ORDERS) -> int:
    """Returns how many operations were taken out of `graph`, in place."""
    dirty = written(graph.graph.nodes)
    handed = _handed(graph)
    earlier: dict[Any, fx.Node] = {}
    before = len(graph.graph.nodes)
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or random(node) or writes(node) or touches(node, dirty):
            continue
        original = earlier.setdefault(_key(node), node)
        repeated = _cheap(node) and node not in handed
        replacement = node.args[0] if _nothing(node) else original if repeated else node
        if replacement is not node:
            node.replace_all_uses_with(replacement)  # type: ignore[arg-type]
            graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        # at once: a tuple keeps all its values while one of them is to be taken
        if node.target is operator.getitem:
            node.args[0].append(node)
    graph.recompile()
    return before - len(graph.graph.nodes)


def _handed(graph: fx.GraphModule) -> set[fx.Node]:
    """The results and what they are views of: two of them must not become one tensor, or adding to
    one would add to both.
    """
    todo = [a for n in graph.graph.nodes if n.op == "output" for a in n.all_input_nodes]
    handed: set[fx.Node] = set()
    while todo:
        node = todo.pop()
        if node not in handed:
            handed.add(node)
            todo += [a for a in node.all_input_nodes if storages(a) & storages(node)]
    return handed


def _nothing(node: fx.Node) -> bool:
    if node.target in ALIASES:
        return True
    return node.target in SAME_SHAPE and node.meta["val"].shape == node.args[0].meta[
        "val"].shape  # type: ignore[union-attr]


def _cheap(node: fx.Node) -> bool:
    """True for a view, which keeps nothing alive that its second maker would not, or a small value;
    not if recomputed.
    """
    if node.meta.get(PART) is Part.RECOMPUTED:
        return False
    if node.target is operator.getitem or _view(node):
        return True
    # Of an operation with several results those that nobody reads do not count: nothing keeps them.
    read = node.users if all(n.target is operator.getitem for n in node.users) else [node]
    tensors = [
        t for n in read for t in pytree.tree_leaves(n.meta.get("val")) if isinstance(t, Tensor)
    ]
    return bool(tensors) and sum(t.nbytes for t in tensors) <= SMALL


def _view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.returns) and all(r.alias_info is not None
                                                               for r in schema.returns)


def _key(node: fx.Node) -> Any:
    """Equal for operations that compute the same. 1, 1.0 and True are not the same argument."""
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    return node.target, tuple(leaf if isinstance(leaf, fx.Node) else (type(leaf), repr(leaf))
                              for leaf in leaves), str(spec)
