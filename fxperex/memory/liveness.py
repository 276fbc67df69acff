"""Peak memory of a program in the order it runs: a buffer lives from its maker to its last reader.

An eager fx graph drops every value after its last use; Inductor plans its buffers the same way.
Inputs live during the entire program. Some operations need more memory while they run: `workspace`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxperex.memory.workspace import workspace

# Sites whose norms run inside the backward -> (bytes of that step's peak, the site that sets it or
# "").
Trial = Callable[[list[str]], tuple[float, str]]
# Groups smaller than this share of all sites are not split.
SMALLEST_GROUP = 1 / 8


@dataclass(frozen=True)
class Instruction:
    """Makes buffers (name -> bytes) from those it reads, with `transient` more bytes meanwhile."""

    name: str
    makes: Mapping[str, float] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    transient: float = 0.0


@dataclass(frozen=True)
class Listing:
    """A program: `instructions` in order, bytes of its `inputs`, buffers that outlive it."""

    instructions: tuple[Instruction, ...]
    inputs: float
    outputs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Peak:
    """`bytes` at the worst instruction, its `index` and name, and the buffers in memory then,
    largest first.
    """

    bytes: float
    index: int
    instruction: str
    buffers: tuple[tuple[str, float], ...]


def peak(listing: Listing) -> Peak:
    """Returns the Peak of `listing`."""
    steps = listing.instructions
    final_reads = {name: i for i, step in enumerate(steps) for name in step.reads}
    dies: dict[int, list[str]] = {}
    for i, step in enumerate(steps):
        for name in step.makes:
            if name not in listing.outputs:
                dies.setdefault(max(final_reads.get(name, i), i), []).append(name)
    size = {name: count for step in steps for name, count in step.makes.items()}
    current = worst = 0.0
    index = 0
    for i, step in enumerate(steps):
        current += sum(step.makes.values())
        if current + step.transient > worst:
            worst, index = current + step.transient, i
        current -= sum(size[name] for name in dies.get(i, ()))
    buffers = _live_at(index, steps, final_reads, listing.outputs)
    return Peak(listing.inputs + worst, index, steps[index].name if steps else "", buffers)


def raised(sites: Sequence[str], freeing: Collection[str], trial: Trial) -> tuple[list[str], float]:
    """Returns (the sites whose norms to move into the backward, the peak after that).

    The peak is never above that of moving none. The sites in `freeing` are tried together, then all
    others. A group that would raise the peak is split in halves, and each half is tried again, the
    later sites first: their output gradients exist earlier. At the end, a norm that sets the peak
    itself is moved back.
    """
    chosen: list[str] = []
    limit, setter = trial([])
    groups = [[site for site in sites if site not in freeing],
              [site for site in sites if site in freeing]]
    queue = [group for group in groups if group]
    while queue:
        group = queue.pop()
        reached, cause = trial([*chosen, *group])
        if reached <= limit:
            chosen, limit, setter = [*chosen, *group], reached, cause
        elif len(group) > max(int(len(sites) * SMALLEST_GROUP), 1):
            queue += [group[:len(group) // 2], group[len(group) // 2:]]
    while setter in chosen:
        fewer = [site for site in chosen if site != setter]
        reached, cause = trial(fewer)
        if reached >= limit:
            break
        chosen, limit, setter = fewer, reached, cause
    return chosen, limit


def _live_at(index: int, steps: tuple[Instruction, ...], final_reads: dict[str, int],
             outputs: frozenset[str]) -> tuple[tuple[str, float], ...]:
    """Returns the buffers in memory at the instruction `index`, largest first."""
    buffers = [(name, count)
               for i, step in enumerate(steps[:index + 1])
               for name, count in step.makes.items()
               if name in outputs or final_reads.get(name, i) >= index]
    if steps and steps[index].transient:
        buffers.append((steps[index].name, steps[index].transient))
    return tuple(sorted(buffers, key=lambda buffer: -buffer[1]))


def listing(graph: fx.Graph, results: Iterable[fx.Node] | None = None) \
        -> tuple[Listing, dict[fx.Node, tuple[str, ...]]]:
    """Returns the Listing of a graph with fake values in `meta["val"]`, and every node's buffers.

    Views share the buffer of what they view. results: the nodes that outlive the program, default
    its outputs.
    """
    names: dict[int, str] = {}
    buffers: dict[fx.Node, tuple[str, ...]] = {}
    instructions: list[Instruction] = []
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
            sources = [*node.all_input_nodes, *_under_way(node)]
            reads = tuple(dict.fromkeys(b for n in sources for b in buffers[n]))
            instructions.append(Instruction(node.name, fresh, reads, workspace(node)))
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    results = output.all_input_nodes if results is None else results
    outputs = frozenset(buffer for node in results for buffer in buffers[node])
    return Listing(tuple(instructions), inputs, outputs), buffers


def _under_way(node: fx.Node) -> list[fx.Node]:
    """What a collective still reads when `node` waits for it; nothing for any other node."""
    if not str(node.target).startswith("_c10d_functional.wait_tensor"):
        return []
    return node.all_input_nodes[0].all_input_nodes


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, torch.Tensor)]
