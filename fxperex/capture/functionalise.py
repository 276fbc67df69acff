"""A program as torch.export gives it -> the same program without writes: in place, not by tracing
it again.

`run_decompositions` does so for every program, by tracing it once more, which takes longer than all
else that capture does. Most models need little of it: `relu_(x)` -> `relu(x)`, and those operations
that may return their input itself (`reshape`, `to`, `contiguous`) -> those that say which they do.
A program with anything else in it is left as it is, and traced.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# Entry by entry, though torch does not say so of them.
POINTWISE = {aten.hardswish.default}
# Takes a node; returns what stands for it from then on, or None if this table cannot say.
Row = Callable[[fx.Node], "fx.Node | None"]


def functionalise(graph: fx.GraphModule, taken_apart: Container[Any]) -> bool:
    """Returns True if `graph` has been rewritten in place; False, and nothing is changed, if it
    has to be traced. Operations in `taken_apart` are for the tracer.
    """
    copy = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            copies[node] = copy.node_copy(node, copies.__getitem__)
            continue
        if node.op not in ("placeholder", "call_function") or node.target in taken_apart:
            return False
        copied = copy.node_copy(node, copies.__getitem__)
        result = _rewritten(copied) if node.op == "call_function" else copied
        if result is None:
            return False
        if result is not copied and not copied.users:
            copy.erase_node(copied)
        copies[node] = result
        if _writes(node):
            # Whoever reads what was written into reads what was written, under whatever name.
            before = copies[node.args[0]]
            copies.update({name: result for name, value in copies.items() if value is before})
    graph.graph = copy
    graph.recompile()
    return True


def _rewritten(node: fx.Node) -> fx.Node | None:
    target = node.target
    if target in ROWS:
        return ROWS[target](node)
    if not isinstance(target, torch._ops.OpOverload):
        # Python's own arithmetic of sizes; higher-order operations hold graphs of their own.
        return None if isinstance(target, torch._ops.HigherOrderOperator) else node
    if target._schema.is_mutable:
        return _out_of_place(node)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        target.name(), "CompositeImplicitAutograd")
    return None if composite and _aliases(target) else node


def _aliases(target: Any) -> bool:
    """True for an operation whose result may share its input's memory.

    Some composite ones, such as dropout, do so though their schema is silent: torch tags them.
    """
    return torch.Tag.maybe_aliasing_or_mutating in target.tags or any(
        result.alias_info is not None for result in target._schema.returns)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _out_of_place(node: fx.Node) -> fx.Node | None:
    """`add_(x, y)` -> `add(x, y)`, if x is a result of its own that nothing else looks into."""
    target, x = node.target, node.args[0]
    name, _, overload = target.name().removeprefix("aten::").partition(".")
    functional = getattr(getattr(aten, name.removesuffix("_"), None), overload or "default", None)
    if functional is None or not name.endswith("_") or name.endswith("__"):
        return None
    pointwise = torch.Tag.pointwise in functional.tags or functional in POINTWISE
    if not pointwise or not _owned(x, node):
        return None
    value = node.meta["val"]
    tensors = [a.meta.get("val") for a in node.all_input_nodes]
    if not value.is_floating_point() or any(t.dtype != value.dtype for t in tensors
                                            if isinstance(t, Tensor)):
        return None
    node.target = functional
    return node


def _owned(x: Any, writer: fx.Node) -> bool:
    """True for a node that made its own memory, of which no view was taken before `writer`."""
    target = getattr(x, "target", None)
    if not isinstance(target, torch._ops.OpOverload) or len(target._schema.returns) != 1:
        return False
    return not _aliases(target) and not any(
        isinstance(user.target, torch._ops.OpOverload) and _aliases(user.target)
        for user in x.users if user is not writer)


def _dropout(node: fx.Node) -> fx.Node | None:
    """That of evaluation, or of rate 0, is its input."""
    x, rate, training = _arguments(node)
    return x if not training or rate == 0 else None


def _conversion(node: fx.Node) -> fx.Node | None:
    """`to` -> its input, or `_to_copy` of another number format."""
    x = _arguments(node)[0]
    before, after = x.meta.get("val"), node.meta["val"]
    if before is None or (before.device, before.layout) != (after.device, after.layout):
        return None
    if _option(node, "copy", False) or _option(node, "memory_format", None) is not None:
        return None
    if before.dtype == after.dtype:
        return x
    return _call(node, aten._to_copy.default, x, dtype=after.dtype)


def _contiguous(node: fx.Node) -> fx.Node | None:
    x = _arguments(node)[0]
    if "val" not in x.meta or _option(node, "memory_format", torch.contiguous_format) \
            != torch.contiguous_format:
        return None
    if x.meta["val"].is_contiguous():
        return x
    return _call(node, aten.clone.default, x, memory_format=torch.contiguous_format)


def _flatten(node: fx.Node) -> fx.Node | None:
    """`flatten(x, start, end)` -> `reshape(x, [*sizes before start, -1, *sizes after end])`."""
    x, *dims = _arguments(node)
    value = x.meta.get("val")
    if value is None or value.dim() == 0:
        return None
    start, end = (d % value.dim() for d in (*dims, *(0, -1)[len(dims):]))
    if start == end:
        return x
    if any(isinstance(size, int) and size == 0 for size in value.shape):
        return None  # of no numbers, -1 could be any

    def sizes(dims: range) -> list[Any]:
        return [value.shape[d] if isinstance(value.shape[d], int)
                else _call(node, aten.sym_size.int, x, d, val=value.shape[d]) for d in dims]

    kept = [*sizes(range(start)), -1, *sizes(range(end + 1, value.dim()))]
    return _call(node, aten.reshape.default, x, kept)


def _call(node: fx.Node, target: Any, *args: Any, val: Any = None, **kwargs: Any) -> fx.Node:
    """A node in the place of `node`, with its provenance."""
    with node.graph.inserting_before(node):
        result = node.graph.call_function(target, args, kwargs)
    result.meta = {**node.meta, "val": node.meta["val"] if val is None else val}
    return result


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _option(node: fx.Node, name: str, default: Any) -> Any:
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return given.get(name, default)


ROWS: dict[Any, Row] = {
    aten.reshape.default: lambda node: node,
    aten.flatten.using_ints: _flatten,
    aten.contiguous.default: _contiguous,
    aten.to.dtype: _conversion,
    aten.to.device: _conversion,
    aten.to.dtype_layout: _conversion,
    aten.to.other: _conversion,
    aten.dropout.default: _dropout,
    aten.dropout_.default: _dropout,
    aten.lift_fresh_copy.default: lambda node: _call(node, aten.clone.default, node.args[0]),
    aten.mT.default: lambda node: _call(node, aten.transpose.int, node.args[0], -2, -1),
}
