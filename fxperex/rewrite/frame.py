"""The step without its sites: forward and backward to the sites' outputs, as a Listing and a Cost.

The planner places every site's norm and weighted sum into this frame, in the order the step will
run. So it knows the memory of a plan without tracing a step for each plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxperex.analysis.losses import per_example_loss
from fxperex.analysis.sites import Analysis
from fxperex.capture.program import Capture
from fxperex.cost_model.nodes import node_cost
from fxperex.costs import Cost, Work
from fxperex.graph.effects import repeatable
from fxperex.graph.provenance import PART, Part, tagged
from fxperex.memory.liveness import Instruction, Listing, listing
from fxperex.registry import kinds
from fxperex.rewrite.evaluate import backward, evaluate
from fxperex.rewrite.trace import trace


@dataclass(frozen=True)
class Frame:
    """Forward and backward at `rows` examples.

    listing: the instructions in order; costs: one per instruction.
    reads: site -> (buffers of its inputs, buffers of its output gradients).
    forward: how many instructions are the forward's; repeatable: those that give the same bits
    again.
    """

    rows: int
    listing: Listing
    reads: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    costs: tuple[Cost, ...]
    forward: int
    repeatable: frozenset[str]

    @cached_property
    def ready(self) -> Mapping[str, int]:
        """Site -> the index in the listing after which its inputs and output gradients exist."""
        exists = {
            name: i + 1
            for i, step in enumerate(self.listing.instructions)
            for name in step.makes
        }
        return {site: max((exists.get(buffer, 0) for buffer in inputs + grads), default=0)
                for site, (inputs, grads) in self.reads.items()}


@dataclass(frozen=True)
class Frames:
    """The frame at two batch sizes. All others are interpolated linearly in the number of
    examples.
    """

    main: Frame
    twin: Frame

    def at(self, rows: int) -> Frame:
        """Returns the Frame at `rows` examples."""
        main, twin = self.main, self.twin
        if rows in (main.rows, twin.rows):
            return main if rows == main.rows else twin
        share = (rows - main.rows) / (twin.rows - main.rows)
        pairs = zip(main.listing.instructions, twin.listing.instructions, strict=True)
        steps = tuple(_instruction_between(*pair, share) for pair in pairs)
        inputs = main.listing.inputs + share * (twin.listing.inputs - main.listing.inputs)
        costs = tuple(
            _cost_between(*pair, share) for pair in zip(main.costs, twin.costs, strict=True))
        listing = replace(main.listing, instructions=steps, inputs=inputs)
        return replace(main, rows=rows, listing=listing, costs=costs)


def _between(low: float, high: float, share: float) -> float:
    return max(low + share * (high - low), 0.0)


def _instruction_between(low: Instruction, high: Instruction, share: float) -> Instruction:
    makes = {name: _between(size, high.makes[name], share) for name, size in low.makes.items()}
    return replace(low, makes=makes, transient=_between(low.transient, high.transient, share))


def _cost_between(low: Cost, high: Cost, share: float) -> Cost:
    work = tuple(_work_between(*pair, share) for pair in zip(low.work, high.work, strict=True))
    return replace(low, work=work, bytes=_between(low.bytes, high.bytes, share))


def _work_between(low: Work, high: Work, share: float) -> Work:
    shape = tuple(
        max(round(_between(i, j, share)), 1) for i, j in zip(low.shape, high.shape, strict=True))
    return replace(low, shape=shape, amount=_between(low.amount, high.amount, share))


def trace_frames(capture: Capture, analysis: Analysis) -> Frames:
    """Returns the Frames of a capture, traced at its two sizes. Nothing runs: all values are
    fake.
    """
    return Frames(trace_frame(capture, analysis, capture.main.rows),
                  trace_frame(capture, analysis, capture.twin.rows))


def trace_frame(capture: Capture, analysis: Analysis, rows: int) -> Frame:
    """Returns the Frame of a capture at `rows` examples."""
    program = capture.at(rows)
    graph = per_example_loss(capture, analysis.axes, program)
    order: list[tuple[str, int, int]] = []

    def run(*args: Tensor) -> tuple[Any, ...]:
        with torch.enable_grad():
            with tagged(PART, Part.FORWARD):
                values = evaluate(capture, analysis, graph, args)
            uses = backward(capture, analysis, values, graph, rows)
        flat: list[Tensor] = []
        for name, use in uses.items():
            inputs = [arg for part in use.each if kinds()[part.site.kind].reads_inputs
                      for arg, axis in zip(part.args, part.axes, strict=True)
                      if axis is not None and isinstance(arg, Tensor)]
            grads = [g for part in use.each for g in part.grads if g is not None]
            order.append((name, len(inputs), len(grads)))
            flat += [v.detach() for v in inputs + grads]
        assert values.loss is not None
        return (values.loss.detach(), *values.buffers, *flat)

    inputs = [n.meta["val"] for n in program.nodes if n.op == "placeholder"]
    traced = trace(run, inputs, capture.fakes).graph
    traced.eliminate_dead_code()
    return _frame(traced, rows, order, len(capture.mutated))


def _frame(graph: fx.Graph, rows: int, order: list[tuple[str, int, int]], mutated: int) -> Frame:
    outputs = list(next(
        n for n in reversed(graph.nodes) if n.op == "output").args[0])  # type: ignore[arg-type]
    results = [n for n in outputs[: 1 + mutated] if isinstance(n, fx.Node)]
    program, buffers = listing(graph, results)
    reads, start = {}, 1 + mutated
    for name, inputs, grads in order:
        middle, end = start + inputs, start + inputs + grads
        reads[name] = (_buffers(outputs[start:middle],
                                buffers), _buffers(outputs[middle:end], buffers))
        start = end
    ignored = _output_views(graph, program)
    steps = tuple(s for s in program.instructions if s.name not in ignored)
    calls = [n for n in graph.nodes if n.op == "call_function" and n.name not in ignored]
    forward = sum(n.meta.get(PART) is Part.FORWARD for n in calls)
    repeats = frozenset(n.name for n in repeatable(calls) if n.meta.get(PART) is Part.FORWARD)
    return Frame(rows, replace(program, instructions=steps), reads, tuple(map(node_cost, calls)),
                 forward, repeats)


def _output_views(graph: fx.Graph, program: Listing) -> set[str]:
    """Returns the views that exist only because the frame returns every value.

    A real step does not have them, so their reads must not count.
    """
    views = {s.name for s in program.instructions if not s.makes}
    only_output = {"output"}
    for node in reversed(graph.nodes):
        if node.name in views and all(user.name in only_output for user in node.users):
            only_output.add(node.name)
    return only_output


def _buffers(nodes: list[Any], buffers: dict[fx.Node, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(b for n in nodes if isinstance(n, fx.Node) for b in buffers[n])
