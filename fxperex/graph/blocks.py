"""Blocks of a captured graph that repeat: layers of a transformer, equal stages of a ResNet.

The calls of the user's modules are the lead: the nodes of each call are one run of the graph. What
counts is an exact comparison of these runs. Equal blocks have the same operations in the same
order, the same constants, the same wiring, and the same shapes, strides, dtypes and devices of all
that they read and make.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

Describe = Callable[[fx.Node], Hashable]


@dataclass(frozen=True)
class Block:
    """One run of nodes, made by one call of a module.

    path: the module's qualified name; nodes: its operations in order; inputs: what they read from
    outside, in the order in which they read it; outputs: positions in `nodes` of what is read
    outside.
    """

    path: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Repetition:
    """Equal blocks, two or more, in the order of the graph.

    Position i of `nodes` and of `inputs` means the same thing in each of them.
    """

    blocks: tuple[Block, ...]

    @property
    def saved(self) -> int:
        """How many nodes a reader need not see, or a stage need not handle, for a second time."""
        return (len(self.blocks) - 1) * len(self.blocks[0].nodes)


def operation(node: fx.Node) -> Hashable:
    """Returns what says of an input only whether it comes from outside the graph."""
    return node.op


def repetitions(graph: fx.Graph, describe: Describe = operation) -> tuple[Repetition, ...]:
    """Returns the Repetitions of `graph`, which share no node, in the order of the graph.

    describe: what must be the same of an input, beside its tensor: parameter or batch, for
    instance. Of overlapping repetitions those that save most nodes are returned.
    """
    equal: dict[Hashable, list[Block]] = {}
    for path, nodes in _calls(graph):
        block = _block(path, nodes)
        equal.setdefault(_signature(block, describe), []).append(block)
    candidates = [Repetition(tuple(blocks)) for blocks in equal.values() if len(blocks) > 1]
    chosen: list[Repetition] = []
    used: set[fx.Node] = set()
    for candidate in sorted(candidates, key=lambda repetition: repetition.saved, reverse=True):
        free = tuple(b for b in candidate.blocks if used.isdisjoint(b.nodes))
        if len(free) > 1:
            chosen.append(Repetition(free))
            used.update(node for block in free for node in block.nodes)
    places = {node: i for i, node in enumerate(graph.nodes)}
    return tuple(sorted(chosen, key=lambda repetition: places[repetition.blocks[0].nodes[0]]))


def _calls(graph: fx.Graph) -> list[tuple[str, tuple[fx.Node, ...]]]:
    """Returns (path, nodes) of each call of a module that is one run of two or more operations."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    places: dict[str, list[int]] = {}
    paths: dict[str, str] = {}
    for place, node in enumerate(calls):
        # The key tells two calls of one module apart, the path does not.
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            places.setdefault(key, []).append(place)
            paths[key] = path.removeprefix("model.")
    runs: dict[tuple[int, int], str] = {}
    for key, own in places.items():
        if len(own) > 1 and own[-1] - own[0] + 1 == len(own):
            # Of modules that hold nothing but one another, the outermost gives the name.
            runs.setdefault((own[0], own[-1] + 1), paths[key])
    return [(path, tuple(calls[start:end])) for (start, end), path in runs.items()]


def _block(path: str, nodes: Sequence[fx.Node]) -> Block:
    own = set(nodes)
    inputs = dict.fromkeys(x for node in nodes for x in node.all_input_nodes if x not in own)
    outputs = tuple(i for i, node in enumerate(nodes) if not own.issuperset(node.users))
    return Block(path, tuple(nodes), tuple(inputs), outputs)


def _signature(block: Block, describe: Describe) -> Hashable:
    """Returns what two blocks have in common if and only if they are equal."""
    names = {node: ("input", i) for i, node in enumerate(block.inputs)}
    names |= {node: ("own", i) for i, node in enumerate(block.nodes)}
    return (tuple((node.target, _plain(node.args, names), _plain(node.kwargs, names), _value(node))
                  for node in block.nodes),
            tuple((describe(node), _value(node)) for node in block.inputs), block.outputs)


def _plain(arguments: Any, names: dict[fx.Node, tuple[str, int]]) -> Hashable:
    """Returns `arguments` as text, with the block's own names for nodes.

    Text tells 1 from 1.0 and True, which are equal in Python.
    """
    return repr(fx.map_arg(arguments, names.__getitem__))  # type: ignore[arg-type, return-value]


def _value(node: fx.Node) -> Hashable:
    """Returns shapes, strides, dtypes and devices of what a node makes."""
    leaves, structure = pytree.tree_flatten(node.meta.get("val"))
    return (repr(structure), tuple(
        (tuple(x.shape), x.stride(), x.dtype, x.device, x.layout) if isinstance(x, Tensor)
        else repr(x) for x in leaves))
