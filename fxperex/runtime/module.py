"""The object people hold: a model's private step, with the plan, the graphs and what explains them.

`fxperex.transform` makes it of values that are ready: nothing is captured, rewritten or compiled
in its constructor. `runtime.step` runs it.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex.analysis.sites import Analysis
from fxperex.capture.program import Capture
from fxperex.capture.structure import BatchStructure, as_arguments
from fxperex.compiler import Step, compile_step
from fxperex.devices import profile
from fxperex.errors import ConfigError
from fxperex.graph.step_graph import StepGraph
from fxperex.numerics import rounding
from fxperex.plan.alternative import Alternative
from fxperex.plan.plan import Plan
from fxperex.planner.alternatives import explained
from fxperex.ranks import ALONE, Ranks
from fxperex.ranks.shards import Shards
from fxperex.rewrite.frame import trace_frames
from fxperex.rewrite.passes.gather import gather
from fxperex.rewrite.rewriter import rewrite
from fxperex.runtime import batches
from fxperex.runtime.compiled import CompiledStep, example_inputs, graph_peak
from fxperex.runtime.package import Facts, save
from fxperex.runtime.step import StepRunner
from fxperex.runtime.step_result import StepResult

__all__ = ["PerExampleModule", "StepResult"]


class PerExampleModule:
    """A model's private step. Made by `fxperex.transform`; see there.

    captured, analysis, plan, step_graph, compiled: what each stage of the flow returned. ranks:
    the processes that rows are split over; shards: how parameters lie on them, None if whole.
    """

    def __init__(self, model: nn.Module, batch: tuple[Tensor, ...], captured: Capture,
                 analysis: Analysis, plan: Plan, step_graph: StepGraph,
                 compiled: CompiledStep, ranks: Ranks = ALONE,
                 shards: Shards | None = None) -> None:
        self.model, self.plan, self.ranks, self.shards = model, plan, ranks, shards
        self.captured, self.analysis = captured, analysis
        self.step_graph, self.compiled = step_graph, compiled
        self.signature, self.clip = compiled.signature, compiled.signature.clip
        self._device = batch[0].device
        self._ranges = batches.ranges(batch)
        self._runner = StepRunner(model, self.signature, compiled, compiled.filler,
                                  rounding.operands(self._device),
                                  lambda: captured.at(plan.frame_rows).graph, ranks)
        self.parameters: dict[str, nn.Parameter] = self._runner.parameters
        self._steps_by_row: dict[str, Step] = {}  # for norms and gradients, once asked for

    @property
    def proved(self) -> bool:
        """True: in this process every operation of `capture` was proved not to mix examples. False
        for a loaded step.
        """
        return True

    @property
    def backend(self) -> str:
        """What runs the step: "inductor", "eager" or "eager, channels last"."""
        return self.compiled.backend

    def compile(self) -> str:
        """Compiles a step of `backend="auto"` now, and times it; returns what runs the step from
        then on.
        """
        return self.compiled.compile()

    @property
    def structure(self) -> BatchStructure:
        """Where a batch holds its tensors, and the constants that the step holds beside them."""
        return self.signature.structure

    @property
    def capture(self) -> fx.GraphModule:
        """The captured program, at the physical batch."""
        return self.captured.main.graph

    @property
    def sites(self) -> tuple[Any, ...]:
        return self.analysis.sites

    @property
    def peak(self) -> float:
        """Bytes of the step graph at its worst node, in the order it runs: inputs, parameters and
        all it makes.
        """
        return graph_peak(self.step_graph)

    def __repr__(self) -> str:
        counts = Counter(c.strategy for c in self.plan.choices)
        chosen = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        return (f"PerExampleModule({type(self.model).__name__}: {len(self.plan.choices)} sites "
                f"({chosen}), {self.plan.rows} rows a step, backend {self.backend})")

    def explain(self, top: int | None = None) -> str:
        """Prints and returns the plan: every site with its cost and runner-up, totals,
        alternatives, every parameter. Rows that repeat from block to block are one row.

        top: only so many rows, the dearest. On a terminal what is printed fits its width. Raises
        ConfigError.
        """
        from fxperex.report.explain import check_top, full
        from fxperex.report.terminal import show

        check_top(top)
        plan, rivals = self._explained()
        show(plan, rivals, top)
        constants = ""
        if self.structure.constants:
            constants = f"\nThe batch holds {self.structure}. A constant is the same in every step."
            print(constants)
        return full(plan, rivals, top) + constants

    def diff(self, other: PerExampleModule | Plan) -> str:
        """Prints and returns what differs between this private step and `other`: strategies of
        sites, what they take, operations of the step graphs. Raises ConfigError.
        """
        from fxperex.report.difference import difference

        if not isinstance(other, PerExampleModule | Plan):
            raise ConfigError("diff takes what transform returned, or a Plan; got "
                              f"{type(other).__name__}")
        plan = other if isinstance(other, Plan) else other.plan
        graphs = None if isinstance(other, Plan) else (self.step_graph.graph,
                                                       other.step_graph.graph)
        text = difference(self.plan, plan, graphs)
        print(text)
        return text

    def draw(self, path: str | Path) -> Path:
        """Returns the path of a picture of the captured graph and the step graph: .svg, .png or
        .html.
        """
        from fxperex.report.draw import draw

        plan, _ = self._explained()
        name = type(self.model).__name__
        return draw(path, self.capture.graph, plan, name, self.step_graph.graph)

    def _repr_html_(self) -> str:
        from fxperex.report.canvas import svg
        from fxperex.report.draw import picture
        from fxperex.report.html import plan_html

        plan, rivals = self._explained()
        name = type(self.model).__name__
        drawn = svg(picture(self.capture.graph, plan, name, self.step_graph.graph))
        return plan_html(plan, drawn, rivals)

    def _explained(self) -> tuple[Plan, list[Alternative]]:
        """The plan with seconds of forward and backward and its peak, and what each strategy alone
        would cost.
        """
        return explained(self.plan, trace_frames(self.captured, self.analysis),
                         profile(self._device))

    def step(self, *batch: Any) -> StepResult:
        """Returns StepResult of `batch`; adds the clipped SUM of its per-example gradients to each
        `.grad`.

        batch: as at `transform`, `step(x, y)` or `step(batch)`. Any number of rows, zero included.
        On several ranks each hands over its own rows, and the sum is that of all of them. Raises
        ShapeError, DataError or StateError; then nothing is written, on any rank.
        """
        return self._runner.step(batch)

    def sums(self, *batch: Any) -> tuple[StepResult, list[Tensor]]:
        """Returns StepResult of `batch` and the clipped SUM for each of `parameters`, in the dtype
        it was formed in.

        Does not write `.grad`. Use this when noise must be added before the sum is rounded to the
        parameters' dtype. On several ranks it is the sum of this rank's rows, and nothing is
        exchanged. Raises as `step`.
        """
        return self._runner.sums(batch)

    def norms(self, *batch: Any) -> Tensor:
        """Returns the per-example gradient norms `[B]`, float64; writes nothing."""
        return self._runner.by_row(self._step_for("norms"), batch)[0]

    def gradients(self, *batch: Any) -> dict[str, Tensor]:
        """Returns {parameter name: per-example gradients `[B, *shape]`}; writes nothing."""
        values = self._runner.by_row(self._step_for("gradients"), batch)
        return dict(zip(self.parameters, values, strict=True))

    def _step_for(self, want: str) -> Step:
        if want not in self._steps_by_row:
            graph = rewrite(self.captured, self.analysis, self.plan, self.clip, want)
            if self.shards is not None:
                gather(graph, self.signature.parameters, self.shards)
            self._steps_by_row[want] = compile_step(graph, [], "eager")[0]
        return self._steps_by_row[want]

    def step_inputs(self, batch: Any, mask: Tensor | None = None) -> list[Tensor]:
        """Returns what `step_graph` and `compiled` take for one physical batch.

        mask: the rows `[rows]` that count; None for all.
        """
        if mask is None:
            mask = torch.ones(self.signature.rows, dtype=torch.bool, device=self._device)
        tensors = self.structure.tensors(as_arguments(batch))
        return self.signature.of_model(self.model, tensors, mask)

    def example_inputs(self) -> list[Tensor]:
        """Returns stand-in inputs of the step graph: the model's own tensors, copies of one row, a
        full mask.
        """
        return example_inputs(self.signature, self.model, self.compiled.filler)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Returns `path`, where a compiled copy of the step now lies: `fxperex.load(path, model)`
        runs it elsewhere.

        Raises ConfigError or PackageError; an older file is then left as it was.
        """
        if self.shards is not None:
            raise ConfigError("a step with sharded parameters belongs to its processes and cannot "
                              "be saved; transform again where it is to run")
        facts = Facts(str(self.plan), self.plan.peak or self.peak, self._runner.operands,
                      self._ranges)
        return save(path, self.step_graph, self.signature, self.model, self.example_inputs(), facts)

    def check(self, *batch: Any) -> None:
        """Raises ShapeError unless `batch` is what the step takes, StateError as `check_model`;
        runs nothing.
        """
        self._runner.check(batch)

    def check_model(self) -> None:
        """Raises StateError if the model or the precision of products is not as it was at
        transform.

        Parameters, buffers and training modes must be those that were transformed. Float32 products
        must not round their operands more than they did then: no norm of this step covers that.
        """
        self._runner.check_model()
