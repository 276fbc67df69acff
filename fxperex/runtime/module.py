"""The object people hold: runs the compiled step over batches of any size and fills `.grad`.

Physical batches are static: a smaller one is padded and masked, an empty one is all mask, a larger
one runs as several. The only thing a step writes is `.grad` of the user's own parameters, at its
very end.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex.analysis.sites import Analysis
from fxperex.capture.program import Capture
from fxperex.clipping import Clip
from fxperex.compiler import Check, Step, compile_step, guarded, tries
from fxperex.devices import hold_heap, profile
from fxperex.errors import BackendWarning, FxperexError
from fxperex.graph.step_graph import StepGraph
from fxperex.memory.liveness import listing, peak
from fxperex.numerics import rounding
from fxperex.plan.alternative import Alternative
from fxperex.plan.plan import Plan
from fxperex.planner.alternatives import explained
from fxperex.rewrite.frame import trace_frames
from fxperex.rewrite.rewriter import parameter_order, rewrite
from fxperex.runtime import batches
from fxperex.runtime.blame import blamed
from fxperex.runtime.model_state import compare, state
from fxperex.runtime.step_result import StepResult
from fxperex.runtime.writes import write

__all__ = ["PerExampleModule", "StepResult"]


class PerExampleModule:
    """A model's private step. Made by `fxperex.transform`; see there."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, ...], capture: Capture,
                 analysis: Analysis, plan: Plan, clip: Clip, backend: str) -> None:
        self.model, self.clip, self.plan = model, clip, plan
        self._capture, self._analysis, self._backend = capture, analysis, backend
        self._rows = 1 if plan.whole == "naive" else plan.rows
        self._spec = [(tuple(x.shape[1:]), x.dtype, x.device) for x in batch]
        self._filler, self._ranges = batches.filler(batch, self._spec), batches.ranges(batch)
        named = dict(model.named_parameters(remove_duplicate=False))
        trainable = {p for s in analysis.sites for p in s.params} | set(analysis.unused)
        self._order = parameter_order(capture, trainable)
        self.parameters: dict[str, nn.Parameter] = {n: named[n] for n in self._order}
        self._state = state(model)
        self._operands = rounding.operands(batch[0].device)
        self.step_graph: StepGraph = rewrite(capture, analysis, plan, clip)
        self._others: dict[str, Step] = {}
        self._lid = hold_heap(self._own_bytes) if self._spec[0][2].type == "cpu" else None
        self._check: Check | None = None
        self._step, self.backend = self._compile(batch)

    @property
    def proved(self) -> bool:
        """True: in this process every operation of `capture` was proved not to mix examples. False
        for a loaded step.
        """
        return True

    @property
    def capture(self) -> fx.GraphModule:
        """The captured program, at the physical batch."""
        return self._capture.main.graph

    @property
    def sites(self) -> tuple[Any, ...]:
        return self._analysis.sites

    def explain(self) -> str:
        """Prints and returns the plan: every site with its cost and runner-up, totals,
        alternatives, every parameter.
        """
        from fxperex.report.explain import full

        text = full(*self._explained())
        print(text)
        return text

    def draw(self, path: str | Path) -> Path:
        """Returns the path of a picture of the captured graph and the step graph: .svg, .png or
        .html.
        """
        from fxperex.report.draw import draw

        return draw(path, self.capture.graph,
                    self._explained()[0],
                    type(self.model).__name__, self.step_graph.graph)

    def _repr_html_(self) -> str:
        from fxperex.report.canvas import svg
        from fxperex.report.draw import picture
        from fxperex.report.html import plan_html

        plan, rivals = self._explained()
        drawn = svg(
            picture(self.capture.graph, plan,
                    type(self.model).__name__, self.step_graph.graph))
        return plan_html(plan, drawn, rivals)

    def _explained(self) -> tuple[Plan, list[Alternative]]:
        """The plan with seconds of forward and backward and its peak, and what each strategy alone
        would cost.
        """
        return explained(self.plan, trace_frames(self._capture, self._analysis),
                         profile(self._spec[0][2]))

    @property
    def peak(self) -> float:
        """Bytes of the step graph at its worst node, in the order it runs: inputs, parameters and
        all it makes.
        """
        return peak(listing(self.step_graph.graph)[0]).bytes

    @property
    def _own_bytes(self) -> float:
        """Bytes of all that a step makes, at its worst node."""
        program = listing(self.step_graph.graph)[0]
        return peak(program).bytes - program.inputs

    def step(self, *batch: Tensor) -> StepResult:
        """Returns StepResult of `batch`; adds the clipped SUM of its per-example gradients to each
        `.grad`.

        Any number of rows, zero included. Raises ShapeError, DataError or StateError; then nothing
        is written.
        """
        result, sums, buffers = self._summed(batch)
        write([(n, self.parameters[n], s) for n, s in zip(self._order, sums, strict=True)], buffers)
        return result

    def sums(self, *batch: Tensor) -> tuple[StepResult, list[Tensor]]:
        """Returns StepResult of `batch` and the clipped SUM for each of `parameters`, in the dtype
        it was formed in.

        Writes no `.grad`: for who must not round the sum to the parameters' dtype before noise.
        Raises as `step`.
        """
        result, sums, buffers = self._summed(batch)
        write((), buffers)
        return result, sums

    def _summed(
        self,
        batch: tuple[Tensor,
                     ...]) -> tuple[StepResult, list[Tensor], list[tuple[str, Tensor, Tensor]]]:
        """Result, sums and (name, buffer, its new value) of `batch`; writes nothing."""
        self.check(*batch)
        sums: list[Tensor] | None = None
        parts: list[list[Tensor]] = [[], [], []]
        buffers: Sequence[Any] = ()
        for rows, mask, count in batches.physical(batch, self._rows, self._filler):
            step = self._step if self._check is None or not count else guarded(
                self._first, self.plan, lambda: self.peak)
            outputs = self._attempt(step, rows, mask)
            formed = outputs[3:3 + len(self._order)]
            buffers = outputs[3 + len(self._order):]
            sums = self._keep(formed) if sums is None else [
                s.add_(f) for s, f in zip(sums, formed, strict=True)
            ]
            for part, value in zip(parts, outputs[:3], strict=True):
                part.append(value[:count].clone())
        named = dict(self.model.named_buffers(remove_duplicate=False))
        changed = [
            (n, named[n], value) for n, value in zip(self._capture.mutated, buffers, strict=False)
        ]
        return StepResult(*(torch.cat(p) for p in parts)), sums or [], changed

    def _attempt(self, step: Step, rows: tuple[Tensor, ...], mask: Tensor) -> Sequence[Any]:
        """The outputs of `step`. Raises DataError for what torch raises of the batch's values."""
        inputs = [*self._inputs(rows), mask]
        try:
            return step(*inputs)
        except (FxperexError, Warning):
            raise
        except Exception as error:  # each operation fails in its own way
            raise blamed(error, self._program, inputs[:len(self._capture.inputs)], rows) from error

    def _program(self) -> fx.GraphModule:
        return self._capture.at(self._rows).graph

    def _keep(self, found: Sequence[Tensor]) -> list[Tensor]:
        # A CUDA graph writes the same memory at every replay; elsewhere the outputs are ours.
        return [s.clone() for s in found] if found[0].is_cuda else list(found)

    def norms(self, *batch: Tensor) -> Tensor:
        """Returns the per-example gradient norms `[B]`, float64; writes nothing."""
        return self._run("norms", batch)[0]

    def gradients(self, *batch: Tensor) -> dict[str, Tensor]:
        """Returns {parameter name: per-example gradients `[B, *shape]`}; writes nothing."""
        return dict(zip(self._order, self._run("gradients", batch), strict=True))

    def _run(self, want: str, batch: tuple[Tensor, ...]) -> list[Tensor]:
        self.check(*batch)
        if want not in self._others:
            graph = rewrite(self._capture, self._analysis, self.plan, self.clip, want)
            self._others[want] = compile_step(graph, [], "eager")[0]
        parts = [[value[:count] for value in self._attempt(self._others[want], rows, mask)]
                 for rows, mask, count in batches.physical(batch, self._rows, self._filler)]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def _compile(self, batch: tuple[Tensor, ...]) -> tuple[Step, str]:
        """The step and what runs it, compared with the eager graph on rows that stand in for
        `batch`; its first batch is too.
        """
        names = [
            "the losses", "the norms", "the factors", *(f"the sum of {n!r}" for n in self._order),
            *(f"the buffer {n!r}" for n in self._capture.mutated)
        ]
        check = Check(self.step_graph, names, 3)
        compiling = guarded(self._compared, self.plan, lambda: self.peak)
        step, backend = compiling(check, batch if len(batch[0]) else self._filler)
        self._check = None if backend == "eager" else check
        return guarded(step, self.plan, lambda: self.peak), backend

    def _compared(self, check: Check, shown: tuple[Tensor, ...]) -> tuple[Step, str]:
        # Parameters and buffers stay where they are; batch, clip inputs and mask come anew with
        # every step.
        fixed = [kind != "batch" for kind, _ in self._capture.inputs.values()]
        fixed += [False] * (len(self.clip.inputs()) + 1)
        on = [] if self._backend == "eager" else tries(
            check, shown, self._rows, lambda rows, mask: [*self._inputs(rows), mask])
        inputs = on[0][1] if on else self.example_inputs()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", BackendWarning)
            return compile_step(self.step_graph, inputs, self._backend, fixed, check, on)

    def _first(self, *inputs: Tensor) -> Sequence[Any]:
        """The step's first batch, by the eager graph as well; where they differ the step is eager
        from here on.
        """
        check = self._check
        assert check is not None
        text, outputs = check(self._step, inputs, "the first batch")
        self._check = None
        if text:
            backend, self.backend = self.backend, "eager"
            self._step = guarded(check.eager, self.plan, lambda: self.peak)
            warnings.warn(BackendWarning(f"the step by {backend} is not the eager one, it runs "
                                         f"eagerly from here on: {text}"),
                          stacklevel=6)
        return outputs

    def example_inputs(self) -> list[Tensor]:
        """Returns stand-in inputs of the step graph: the model's own tensors, copies of one row, a
        full mask.
        """
        rows = tuple(
            x.expand(self._rows, *x.shape[1:]).contiguous()
            for x in (row[:1] for row in self._filler))
        return [
            *self._inputs(rows),
            torch.ones(self._rows, dtype=torch.bool, device=rows[0].device)
        ]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Returns `path`, where a compiled copy of the step now lies: `fxperex.load(path, model)`
        runs it elsewhere.

        Raises ConfigError or PackageError; an older file is then left as it was.
        """
        from fxperex.runtime.package import save

        return save(self, path)

    def _inputs(self, rows: tuple[Tensor, ...]) -> list[Tensor]:
        """What the step graph takes before the mask, of the model as it is."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        return self._assembled(named | dict(self.model.named_buffers(remove_duplicate=False)), rows)

    def _assembled(self, named: dict[str, Tensor], rows: tuple[Tensor, ...], *mask:
                   Tensor) -> list[Tensor]:
        """What the step graph takes, in its order, of parameters and buffers by name, rows and
        mask.
        """
        values = []
        for kind, key in self._capture.inputs.values():
            value = rows[key] if kind == "batch" else self._capture.constants[
                key] if kind == "constant" else named[key]
            values.append(value.detach())
        return [*values, *(x.to(rows[0].device) for x in self.clip.inputs()), *mask]

    def check(self, *batch: Tensor) -> None:
        """Raises ShapeError unless `batch` is what the step takes, StateError as `check_model`;
        runs nothing.
        """
        batches.check(batch, self._spec)
        self.check_model()

    def check_model(self) -> None:
        """Raises StateError if the model or the precision of products is not as it was at
        transform.

        Parameters, buffers and training modes must be those that were transformed. Float32 products
        must
        not round their operands more than they did then: no norm of this step covers that.
        """
        compare(self._state, state(self.model))
        rounding.refuse_coarser(self._operands, self._spec[0][2])
