"""The step without its sites: forward and backward to the sites' outputs, as a Listing and a Cost.

The planner hangs every site's norm and weighted sum into this frame to see what a plan needs in memory, in the
order the step will run, without tracing a step for every plan.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxperex.analysis.losses import per_example_loss
from fxperex.analysis.sites import Analysis
from fxperex.capture import Capture
from fxperex.cost import node_cost
from fxperex.evaluate import backward, evaluate
from fxperex.liveness import Instruction, Listing, listing
from fxperex.marks import tagged
from fxperex.registry import Cost, reads_inputs
from fxperex.repeat import repeatable


@dataclass(frozen=True)
class Frame:
    """At `rows` examples: `listing` in order; `reads`: site -> (buffers of inputs, of output gradients); `costs` by instruction.

    The first `forward` instructions are the forward's; those named in `repeatable` give the same bits again.
    """

    rows: int
    listing: Listing
    reads: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    costs: tuple[Cost, ...]
    forward: int
    repeatable: frozenset[str]

    @cached_property
    def ready(self) -> Mapping[str, int]:
        """Site -> the place in the listing from which on its inputs and output gradients exist."""
        made = {name: i + 1 for i, step in enumerate(self.listing.instructions) for name in step.makes}
        return {site: max((made.get(b, 0) for b in inputs + grads), default=0) for site, (inputs, grads) in self.reads.items()}


@dataclass(frozen=True)
class Frames:
    """The frame at two sizes: what lies between and beyond is a straight line in the number of examples."""

    one: Frame
    two: Frame

    def at(self, rows: int) -> Frame:
        """Returns the Frame at `rows` examples."""
        if rows in (self.one.rows, self.two.rows):
            return self.one if rows == self.one.rows else self.two
        share = (rows - self.one.rows) / (self.two.rows - self.one.rows)
        pairs = zip(self.one.listing.instructions, self.two.listing.instructions, strict=True)
        steps = tuple(_between(a, b, share) for a, b in pairs)
        inputs = self.one.listing.inputs + share * (self.two.listing.inputs - self.one.listing.inputs)
        costs = tuple(_cost_between(a, b, share) for a, b in zip(self.one.costs, self.two.costs, strict=True))
        made = replace(self.one.listing, instructions=steps, inputs=inputs)
        return replace(self.one, rows=rows, listing=made, costs=costs)


def _between(one: Instruction, two: Instruction, share: float) -> Instruction:
    return replace(one, makes={k: max(v + share * (two.makes[k] - v), 0.0) for k, v in one.makes.items()},
                   transient=max(one.transient + share * (two.transient - one.transient), 0.0))


def _cost_between(one: Cost, two: Cost, share: float) -> Cost:
    def between(a: float, b: float) -> float:
        return max(a + share * (b - a), 0.0)

    work = tuple(replace(a, shape=tuple(max(round(between(i, j)), 1) for i, j in zip(a.shape, b.shape, strict=True)),
                         amount=between(a.amount, b.amount)) for a, b in zip(one.work, two.work, strict=True))
    return replace(one, work=work, bytes=between(one.bytes, two.bytes))


def trace_frames(capture: Capture, analysis: Analysis) -> Frames:
    """Returns the Frames of a capture, traced at its two sizes. Nothing runs: all values are fake."""
    return Frames(trace_frame(capture, analysis, capture.main.rows), trace_frame(capture, analysis, capture.twin.rows))


def trace_frame(capture: Capture, analysis: Analysis, rows: int) -> Frame:
    """Returns the Frame of a capture at `rows` examples."""
    program = capture.at(rows)
    graph = per_example_loss(capture, analysis.axes, program)
    order: list[tuple[str, int, int]] = []

    def run(*args: Tensor) -> tuple[Any, ...]:
        with torch.enable_grad():
            with tagged("part", "forward"):
                made = evaluate(capture, analysis, graph, args)
            uses = backward(capture, analysis, made, graph, rows)
        flat: list[Tensor] = []
        for name, use in uses.items():
            inputs = [v for one in use.each if reads_inputs(one.site.kind) for v, axis in zip(one.args, one.axes, strict=True)
                      if axis is not None and isinstance(v, Tensor)]
            grads = [g for one in use.each for g in one.grads if g is not None]
            order.append((name, len(inputs), len(grads)))
            flat += [v.detach() for v in inputs + grads]
        assert made.loss is not None
        return (made.loss.detach(), *made.buffers, *flat)

    values = [n.meta["val"] for n in program.nodes if n.op == "placeholder"]
    with warnings.catch_warnings(), capture.fakes:
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            traced = make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)(*values).graph
    traced.eliminate_dead_code()
    return _frame(traced, rows, order, len(capture.mutated))


def _frame(graph: fx.Graph, rows: int, order: list[tuple[str, int, int]], mutated: int) -> Frame:
    outputs = list(next(n for n in reversed(graph.nodes) if n.op == "output").args[0])  # type: ignore[arg-type]
    kept = [n for n in outputs[: 1 + mutated] if isinstance(n, fx.Node)]
    made, buffers = listing(graph, kept)
    reads, at = {}, 1 + mutated
    for name, inputs, grads in order:
        ends = at + inputs, at + inputs + grads
        reads[name] = (_buffers(outputs[at:ends[0]], buffers), _buffers(outputs[ends[0]:ends[1]], buffers))
        at = ends[1]
    shown = _shown(graph, made)
    steps = tuple(s for s in made.instructions if s.name not in shown)
    calls = [n for n in graph.nodes if n.op == "call_function" and n.name not in shown]
    forward = sum(n.meta.get("part") == "forward" for n in calls)
    again = frozenset(n.name for n in repeatable(calls) if n.meta.get("part") == "forward")
    return Frame(rows, replace(made, instructions=steps), reads, tuple(map(node_cost, calls)), forward, again)


def _shown(graph: fx.Graph, made: Listing) -> set[str]:
    """The views that do nothing but hand values out: they read them behind everything, and no step has such reads."""
    views = {s.name for s in made.instructions if not s.makes}
    found = {"output"}
    for node in reversed(graph.nodes):
        if node.name in views and all(user.name in found for user in node.users):
            found.add(node.name)
    return found


def _buffers(nodes: list[Any], buffers: dict[fx.Node, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(b for n in nodes if isinstance(n, fx.Node) for b in buffers[n])
