"""The parameter-only part of the graph: what each tensor is made of, and whether its pull-back
keeps norms.

Whether a gradient passes an operation is asked of autograd itself, on values without storage: no
list of dtypes or operations can then leave a parameter out in silence. Every tensor gets the number
of its value: two nodes with one number hold the same numbers, however often the program writes the
view, the chunk or the product down.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.graph.aten import packet_name

SAME = {"aten.alias", "aten.clone", "aten.contiguous"}
ISOMETRIC = SAME | {
    "aten.view", "aten.permute", "aten.transpose", "aten.t", "aten.reshape", "aten.unsqueeze",
    "aten.squeeze", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.numpy_T",
    "aten.movedim"
}
TURNS = {"aten.permute", "aten.transpose", "aten.t", "aten.numpy_T", "aten.movedim"}
CASTS = {"aten._to_copy", "aten.to"}
LISTS = {"aten.split", "aten.chunk", "aten.split_with_sizes", "aten.unbind"}  # a list of pieces
PIECES = LISTS | {"aten.select", "aten.slice"}


@dataclass(frozen=True)
class Piece:
    """Entries `low` to `high` of one dimension of a value: pieces of one `whole` are disjoint if
    these are.
    """

    whole: Hashable
    low: int
    high: int

    def apart(self, other: Piece) -> bool:
        return self.whole == other.whole and (self.high <= other.low or other.high <= self.low)


@dataclass(frozen=True)
class Origin:
    """What a parameter-only tensor is made of.

    `isometric`: its pull-back to `params` keeps norms; `piece`: the part of the parameter it is;
    `value`: the number of its value; `turned`: it is the transpose of the matrix with that number.
    """

    params: frozenset[str]
    value: int
    isometric: bool = True
    piece: Piece | None = None
    turned: bool = False


@dataclass
class Origins:
    """Origins by node, grown in the program's order."""

    of: dict[fx.Node, Origin] = field(default_factory=dict)
    numbers: dict[Hashable, int] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)  # fake ones, with gradient

    def parameter(self, node: fx.Node, name: str) -> None:
        self.of[node] = Origin(frozenset([name]), self._number(("parameter", name)))
        self.values[node] = node.meta["val"].detach().requires_grad_()

    def follow(self, node: fx.Node) -> None:
        """Adds a parameter-only node; leaves it out if no gradient passes."""
        value, name = self._value(node), packet_name(node.target)
        if not _tracked(value):
            return
        self.values[node] = value
        sources = [self.of[n] for n in node.all_input_nodes if n in self.of]
        params = frozenset[str]().union(*(s.params for s in sources))
        derived = Origin(params, self._number(self._key(node)), False)
        self.of[node] = self._view(node, name, sources[0], derived) if len(
            node.all_input_nodes) == 1 else derived

    def passes(self, node: fx.Node, at: int) -> bool:
        """True if a gradient passes from the outputs of `node` to its flat argument `at` alone."""
        return _tracked(self._value(node, at))

    def _value(self, node: fx.Node, alone: int | None = None) -> Any:
        """The node's value, with gradient by every argument that has one, or by flat argument
        `alone` only.
        """
        flat, spec = pytree.tree_flatten((node.args, node.kwargs))
        args = [(self.values[a] if a in self.values and alone in (None, i) else a.meta["val"])
                if isinstance(a, fx.Node) else a for i, a in enumerate(flat)]
        positional, named = pytree.tree_unflatten(args, spec)
        with torch.enable_grad():
            return node.target(*positional, **named)  # type: ignore[operator]

    def _view(self, node: fx.Node, name: str, source: Origin, made: Origin) -> Origin:
        """`made`, with what a view of `source` keeps of it."""
        if name in SAME:
            return source
        if name in TURNS and node.meta["val"].dim() == 2:
            return replace(source, turned=source.turned != _transposes(node))
        if name in ISOMETRIC or name in CASTS:
            return replace(made, isometric=source.isometric, piece=source.piece)
        if name in PIECES or _takes_piece(node):
            return replace(made, isometric=source.isometric, piece=source.piece
                           or self._piece(node, name))
        return made

    def _piece(self, node: fx.Node, name: str) -> Piece | None:
        """The piece of its input that `node` is; None where that is not one run of one
        dimension.
        """
        if node.target is operator.getitem:
            source: fx.Node = node.args[0]  # type: ignore[assignment]
            dim, parts = _dim(source), source.meta["val"]
            index = node.args[1] % len(parts)  # type: ignore[operator]
            unbound = packet_name(source.target) == "aten.unbind"
            sizes = [1 if unbound else p.shape[dim] for p in parts]
            return self._run(source, dim, sum(sizes[:index]), sum(sizes[:index + 1]))
        if name == "aten.select":
            low = node.args[2] % node.args[0].meta["val"].shape[_dim(
                node)]  # type: ignore[union-attr, operator]
            return self._run(node, _dim(node), low, low + 1)
        if name == "aten.slice" and (len(node.args) < 5 or node.args[4] == 1):
            size = node.args[0].meta["val"].shape[_dim(node)]  # type: ignore[union-attr]
            low, high, _ = slice(*node.args[2:4]).indices(size)
            return self._run(node, _dim(node), low, high)
        return None

    def _run(self, node: fx.Node, dim: int, low: int, high: int) -> Piece:
        source = self.of[node.args[0]]  # type: ignore[index]
        return Piece((source.value, source.turned, dim), low, high)

    def _key(self, node: fx.Node) -> Hashable:
        def told(arg: Any) -> Hashable:
            if not isinstance(arg, fx.Node):
                return repr(arg)
            origin = self.of.get(arg)
            return (origin.value, origin.turned) if origin else arg.name

        flat, spec = pytree.tree_flatten((node.args, node.kwargs))
        return (str(node.target), *map(told, flat), str(spec))

    def _number(self, key: Hashable) -> int:
        return self.numbers.setdefault(key, len(self.numbers))


def _takes_piece(node: fx.Node) -> bool:
    """True for an element of a list of pieces; other operations return several results that are
    none.
    """
    return node.target is operator.getitem and packet_name(
        node.args[0]) in LISTS  # type: ignore[arg-type]


def _tracked(value: Any) -> bool:
    return any(isinstance(t, torch.Tensor) and t.requires_grad for t in pytree.tree_leaves(value))


def _transposes(node: fx.Node) -> bool:
    source = node.args[0].meta["val"]  # type: ignore[union-attr]
    if packet_name(node.target) == "aten.permute":
        return [d % 2 for d in node.args[1]] == [1, 0]  # type: ignore[union-attr, operator]
    if packet_name(node.target) in {"aten.transpose", "aten.movedim"}:
        return node.args[1] % 2 != node.args[2] % 2  # type: ignore[operator]
    return source.dim() == 2


def _dim(node: fx.Node) -> int:
    """The dimension along which a split, select or slice cuts its input."""
    schema = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    values = dict(zip(schema, node.args, strict=False)) | dict(node.kwargs)
    return values.get("dim",
                      0) % node.args[0].meta["val"].dim()  # type: ignore[operator, union-attr]
