"""loss as people write it -> loss [B].

Before: the program ends in a scalar, a mean or sum over the batch. After: it ends in one loss per
example, the loss that the user's own code gives for a batch of that example alone. A reduction over
`[B * T]` positions becomes the example's own; a normaliser that couples examples (class weights,
`ignore_index`) becomes the example's own, and a warning says so.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import fx

from fxperex.analysis.rules.layers import CLASSIFY, MARGINS, REDUCTION
from fxperex.analysis.state import Reduced, arguments
from fxperex.capture.program import Capture, Program
from fxperex.capture.source_lines import source_line
from fxperex.errors import CaptureError, CoverageError, SemanticsWarning, ShapeError
from fxperex.graph.aten import packet
from fxperex.sites import BatchAxis

aten = torch.ops.aten


def per_example_loss(capture: Capture, axes: dict[str, Any], program: Program) -> fx.GraphModule:
    """Returns a copy of `program` whose last output is the loss `[B]`; the others are new buffer
    values.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    output = program.nodes[-1]
    outputs = list(output.args[0])  # type: ignore[arg-type]
    losses = outputs[len(capture.mutated):]
    if len(losses) != 1 or not isinstance(losses[0], fx.Node):
        raise CaptureError("forward and loss must return one tensor, the loss; found "
                           f"{len(losses)} outputs")
    rewriter = _Rewriter(capture, axes, program, graph, copies)
    loss = rewriter.final(losses[0])
    graph.output((*[copies.get(v, v) for v in outputs[: len(capture.mutated)]], loss))
    graph.eliminate_dead_code()
    return fx.GraphModule(program.graph, graph)


class _Rewriter:
    def __init__(self, capture: Capture, axes: dict[str, Any], program: Program, graph: fx.Graph,
                 copies: dict[fx.Node, fx.Node]) -> None:
        self.axes, self.rows, self.graph, self.copies = axes, program.rows, graph, copies
        self.twins = dict(zip((n.name for n in capture.main.nodes), capture.twin.nodes,
                              strict=True))
        self.mains = {n.name: n for n in capture.main.nodes}
        self.main_rows = capture.main.rows
        self.made: dict[str, fx.Node] = {}

    def final(self, node: fx.Node) -> fx.Node:
        state, value = self.axes[node.name], node.meta["val"]
        if not value.dtype.is_floating_point:
            raise ShapeError(f"the loss has dtype {value.dtype}; it must be a real floating point "
                             "number")
        if isinstance(state, Reduced):
            return self.rebuild(node)
        if not isinstance(state, BatchAxis):
            raise CaptureError(f"the loss at {source_line(node)} does not depend on the batch")
        if tuple(value.shape) != (self.rows,):
            raise ShapeError(f"the loss at {source_line(node)} has shape {list(value.shape)}, "
                             f"examples in dimension {state.dim}; reduce it to one number per "
                             "example, shape [B], or to a mean or sum")
        return self.copies[node]

    def rebuild(self, node: fx.Node) -> fx.Node:
        if node.name not in self.made:
            self.made[node.name] = self._rebuild(node)
        return self.made[node.name]

    def _rebuild(self, node: fx.Node) -> fx.Node:
        name = packet(node)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if name in REDUCTION or name in MARGINS:
            return self._loss(node, name)
        if name in {"sum", "mean"} and not isinstance(self.axes[source.name], Reduced):
            return self._own(self.copies[source], self.axes[source.name], source.meta["val"], name)
        if name in {"clone", "alias", "view", "squeeze", "sum", "mean", "reshape"}:
            return self.rebuild(source)
        if any(
                isinstance(a, fx.Node) and not isinstance(self.axes[a.name], Reduced)
                for a in node.args):
            self._no_parameters(node)
        args = tuple(self._tail(node, i, a) for i, a in enumerate(node.args))
        return self.graph.call_function(node.target, args,
                                        dict(node.kwargs))  # type: ignore[arg-type]

    def _no_parameters(self, node: fx.Node) -> None:
        visited, todo = set(), [
            a for a in node.all_input_nodes if not isinstance(self.axes[a.name], Reduced)
        ]
        while todo:
            current = todo.pop()
            if current.op == "placeholder" and current.name.startswith("p_"):
                raise CoverageError(f"the loss at {source_line(node)} adds a penalty on "
                                    "parameters, which does not depend on data and must not be "
                                    "clipped with it: use the optimizer's weight_decay")
            if current not in visited:
                visited.add(current)
                todo.extend(current.all_input_nodes)

    def _tail(self, node: fx.Node, index: int, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.rebuild(arg) if isinstance(self.axes[arg.name],
                                                   Reduced) else self.copies[arg]
        main, twin = self.mains[node.name].args[index], self.twins[node.name].args[index]
        if main == twin or not isinstance(main, int | float):
            return arg
        # A sum divided by the number of examples: for one example the number is its share of one.
        alone = of_one(main, twin, self.main_rows)
        if packet(node) not in {"div", "mul"} or alone is None:
            raise CaptureError(f"the loss at {source_line(node)} computes with the batch size in "
                               "a way that has no meaning for one example: a mean divides by "
                               "exactly as many as there are. Write .mean() or / len(x), or "
                               "return one loss per example")
        return alone

    def _own(self, value: fx.Node, axis: BatchAxis, fake: torch.Tensor, kind: str) -> fx.Node:
        """One number per example: its own mean or sum over everything but the batch."""
        shape, d = list(fake.shape), axis.dim
        split = [*shape[:d], axis.outer, self.rows, axis.inner, *shape[d + 1:]]
        order = [d + 1, *(i for i in range(len(split)) if i != d + 1)]
        call = self.graph.call_function
        flat = call(aten.reshape.default, (value, split))
        flat = call(aten.reshape.default, (call(aten.permute.default,
                                                (flat, order)), [self.rows, -1]))
        return call(aten.sum.dim_IntList if kind == "sum" else aten.mean.dim, (flat, [1]))

    def _loss(self, node: fx.Node, name: str) -> fx.Node:
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        values = arguments(node)
        kind = "mean" if values["reduction"] == 1 else "sum"
        named = {k: self.copies[v] if isinstance(v, fx.Node) else v
                 for k, v in values.items()} | {"reduction": 0}
        args = [named.pop(s.name) for s in schema if not s.kwarg_only]
        value = self.graph.call_function(node.target, tuple(args), named)  # type: ignore[arg-type]
        axis, fake = self.axes[node.name].axis, self._unreduced(node, name)
        if kind == "mean" and name in CLASSIFY and not values["target"].meta[
                "val"].dtype.is_floating_point:
            return self._normalised(node, values, value, axis, fake)
        return self._own(value, axis, fake, kind)

    def _unreduced(self, node: fx.Node, name: str) -> torch.Tensor:
        """A tensor of the shape that the loss would have without its reduction."""
        values = [a.meta["val"] for a in arguments(node).values() if isinstance(a, fx.Node)]
        score, target = values[:2]
        if name in MARGINS:
            return score.new_empty(score.shape[:1])
        if name not in CLASSIFY:
            return score.new_empty(torch.broadcast_shapes(*(v.shape for v in values)))
        if not target.dtype.is_floating_point:
            return target
        # Class probabilities: the loss drops dimension 1 of the scores, after the batch.
        return score.new_empty(
            [s for i, s in enumerate(score.shape) if i != min(1,
                                                              score.dim() - 1)])

    def _normalised(self, node: fx.Node, given: dict[str, Any], value: fx.Node, axis: BatchAxis,
                    fake: torch.Tensor) -> fx.Node:
        weight, ignore = given.get("weight"), given.get("ignore_index", -100)
        if weight is not None or ignore != -100:
            what = "class weights" if weight is not None else f"ignore_index={ignore}"
            warnings.warn(SemanticsWarning(
                f"the mean of the loss at {source_line(node)} divides by a total over the batch "
                f"({what}), which couples examples. Each example is divided by its own total "
                "instead, as in a batch of one."), stacklevel=5)
        call = self.graph.call_function
        target = self.copies[given["target"]]
        counted = call(aten.ne.Scalar, (target, ignore))
        if weight is None:
            mass = call(aten.to.dtype, (counted, value_dtype(given)))
        else:
            ids = call(aten.where.ScalarOther, (counted, target, 0))
            mass = call(aten.mul.Tensor, (call(aten.index.Tensor,
                                               (self.copies[weight], [ids])), counted))
        total = self._own(mass, axis, fake, "sum")
        total = call(aten.where.ScalarOther, (call(aten.ne.Scalar, (total, 0)), total, 1))
        return call(aten.div.Tensor, (self._own(value, axis, fake, "sum"), total))


def value_dtype(given: dict[str, Any]) -> torch.dtype:
    return given["self"].meta["val"].dtype


def of_one(main: Any, twin: Any, rows: int) -> int | float | None:
    """The number at one example that is `main` at `rows` and `twin` at one more, if it is a
    multiple of the number of examples or of one over it; None if it is neither."""
    if math.isclose(main * (rows + 1), twin * rows):
        return main // rows if isinstance(main, int) and main % rows == 0 else main / rows
    return main * rows if math.isclose(main * rows, twin * (rows + 1)) else None
