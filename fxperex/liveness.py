"""Peak memory of a program in the order it runs: a buffer lives from its maker to its last reader.

An eager fx graph drops every value after its last use; Inductor plans its buffers the same way. Inputs live all along.
An operation may need more while it runs (`workspace`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.workspace import workspace

# Sites whose norms are moved up -> (bytes of the peak then, the site that sets it or "").
Trial = Callable[[list[str]], tuple[float, str]]
PIECES = 8  # of a program's sites, below which a group that would cost memory is not taken apart


@dataclass(frozen=True)
class Instruction:
    """Makes buffers (name -> bytes) from those it reads, needing `transient` bytes beside them while it runs."""

    name: str
    makes: Mapping[str, float] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    transient: float = 0.0


@dataclass(frozen=True)
class Listing:
    """A program: `instructions` in order, bytes of its `inputs`, and the buffers that outlive it."""

    instructions: tuple[Instruction, ...]
    inputs: float
    outputs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Peak:
    """`bytes` at the worst instruction, its `index`, and the buffers that live there, largest first."""

    bytes: float
    index: int
    at: str
    live: tuple[tuple[str, float], ...]


def peak(listing: Listing) -> Peak:
    """Returns the Peak of `listing`."""
    steps = listing.instructions
    last = {name: i for i, step in enumerate(steps) for name in step.reads}
    dies: dict[int, list[str]] = {}
    for i, step in enumerate(steps):
        for name in step.makes:
            if name not in listing.outputs:
                dies.setdefault(max(last.get(name, i), i), []).append(name)
    size = {name: b for step in steps for name, b in step.makes.items()}
    now = worst = 0.0
    at = 0
    for i, step in enumerate(steps):
        now += sum(step.makes.values())
        if now + step.transient > worst:
            worst, at = now + step.transient, i
        now -= sum(size[name] for name in dies.get(i, ()))
    live = _live(steps, last, listing.outputs, at)
    return Peak(listing.inputs + worst, at, steps[at].name if steps else "", live)


def raised(sites: Sequence[str], first: Collection[str], trial: Trial) -> tuple[list[str], float]:
    """Returns the sites whose norms to move up into the backward, and the peak then; it is never above that of moving none.

    Those of `first` are tried as one, then the others, the last sites' (whose output gradients exist first) before the first
    ones'; of a group that costs memory its halves, and theirs. Behind that, a norm that sets the peak itself stays behind.
    """
    chosen: list[str] = []
    limit, at = trial([])
    todo = [group for group in ([s for s in sites if s not in first], [s for s in sites if s in first]) if group]
    while todo:
        some = todo.pop()
        found, where = trial([*chosen, *some])
        if found <= limit:
            chosen, limit, at = [*chosen, *some], found, where
        elif len(some) > max(len(sites) // PIECES, 1):
            todo += [some[:len(some) // 2], some[len(some) // 2:]]
    while at in chosen:
        fewer = [s for s in chosen if s != at]
        found, where = trial(fewer)
        if found >= limit:
            break
        chosen, limit, at = fewer, found, where
    return chosen, limit


def _live(steps: tuple[Instruction, ...], last: dict[str, int], outputs: frozenset[str],
          at: int) -> tuple[tuple[str, float], ...]:
    found = [(name, b) for i, step in enumerate(steps[: at + 1]) for name, b in step.makes.items()
             if name in outputs or last.get(name, i) >= at]
    if steps and steps[at].transient:
        found.append((steps[at].name, steps[at].transient))
    return tuple(sorted(found, key=lambda item: -item[1]))


def listing(graph: fx.Graph, results: Iterable[fx.Node] | None = None) -> tuple[Listing, dict[fx.Node, tuple[str, ...]]]:
    """Returns the Listing of a graph with fake values in `meta["val"]`, and the buffers behind every node.

    Views share the buffer of what they view. `results`: the nodes that outlive the program, default its outputs.
    """
    names: dict[int, str] = {}
    buffers: dict[fx.Node, tuple[str, ...]] = {}
    made: list[Instruction] = []
    inputs = 0.0
    for node in graph.nodes:
        storages = [t.untyped_storage() for t in _tensors(node)]
        fresh = {}
        for k, storage in enumerate(storages):
            if storage._cdata not in names:
                names[storage._cdata] = f"{node.name}.{k}"
                fresh[f"{node.name}.{k}"] = float(storage.nbytes())
        buffers[node] = tuple(names[s._cdata] for s in storages)
        if node.op in {"placeholder", "get_attr"}:
            inputs += sum(fresh.values())
        elif node.op == "call_function":
            reads = tuple(dict.fromkeys(b for n in node.all_input_nodes for b in buffers[n]))
            made.append(Instruction(node.name, fresh, reads, workspace(node)))
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    kept = output.all_input_nodes if results is None else results
    return Listing(tuple(made), inputs, frozenset(b for n in kept for b in buffers[n])), buffers


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, torch.Tensor)]
