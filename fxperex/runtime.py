"""The object people hold: runs the compiled step over batches of any size and fills `.grad`.

Physical batches are static: a smaller one is padded and masked, an empty one is all mask, a larger one runs as
several. The only thing a step writes is `.grad` of the user's own parameters, at its very end.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex.analysis.sites import Analysis
from fxperex.arguments import check_dense
from fxperex.capture import Capture
from fxperex.clipping import Clip
from fxperex.compiler import Step, compile_step, guarded
from fxperex.devices import profile, reserve
from fxperex.errors import BackendWarning, ShapeError, StateError
from fxperex.frame import trace_frames
from fxperex.liveness import listing, peak
from fxperex.planner import Plan
from fxperex.planner.alternatives import Alternative, explained
from fxperex.rewriter import parameter_order, rewrite
from fxperex.step_graph import StepGraph


@dataclass(frozen=True)
class StepResult:
    """Per-example `losses`, `norms` and clip `factors`, each `[B]` (factors `[B, K]` for K clip groups). Not private."""

    losses: Tensor
    norms: Tensor
    factors: Tensor

    @property
    def dropped(self) -> int:
        """Number of examples whose gradient was not finite or longer than 2^64; they added nothing. Waits for the device."""
        return int((~torch.isfinite(self.norms)).sum())


class PerExampleModule:
    """A model's private step. Made by `fxperex.transform`; see there."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, ...], capture: Capture, analysis: Analysis, plan: Plan,
                 clip: Clip, backend: str) -> None:
        self.model, self.clip, self.plan = model, clip, plan
        self._capture, self._analysis, self._backend = capture, analysis, backend
        self._rows = 1 if plan.whole == "naive" else plan.rows
        self._spec = [(tuple(x.shape[1:]), x.dtype, x.device) for x in batch]
        named = dict(model.named_parameters(remove_duplicate=False))
        trainable = {p for s in analysis.sites for p in s.params} | set(analysis.unused)
        self._order = parameter_order(capture, trainable)
        self.parameters: dict[str, nn.Parameter] = {n: named[n] for n in self._order}
        self._state = _state(model)
        self.step_graph: StepGraph = rewrite(capture, analysis, plan, clip)
        self._others: dict[str, Step] = {}
        self._lid = reserve(self._own_bytes) if self._spec[0][2].type == "cpu" else None
        self._step, self.backend = self._compile(self.step_graph)

    @property
    def capture(self) -> fx.GraphModule:
        """The captured program, at the physical batch."""
        return self._capture.main.graph

    @property
    def sites(self) -> tuple[Any, ...]:
        return self._analysis.sites

    def explain(self) -> str:
        """Prints and returns the plan: every site with its cost and runner-up, totals, alternatives, every parameter."""
        from fxperex.report.explain import full

        text = full(*self._explained())
        print(text)
        return text

    def draw(self, path: str | Path) -> Path:
        """Returns the path of a picture of the captured graph and the step graph: .svg, .png or .html."""
        from fxperex.report.draw import draw

        return draw(path, self.capture.graph, self._explained()[0], type(self.model).__name__, self.step_graph.graph)

    def _repr_html_(self) -> str:
        from fxperex.report.canvas import svg
        from fxperex.report.draw import picture
        from fxperex.report.html import plan_html

        plan, others = self._explained()
        drawn = svg(picture(self.capture.graph, plan, type(self.model).__name__, self.step_graph.graph))
        return plan_html(plan, drawn, others)

    def _explained(self) -> tuple[Plan, list[Alternative]]:
        """The plan with seconds of forward and backward and its peak, and what each strategy alone would cost."""
        return explained(self.plan, trace_frames(self._capture, self._analysis), profile(self._spec[0][2]))

    @property
    def peak(self) -> float:
        """Bytes of the step graph at its worst node, in the order it runs: inputs, parameters and all it makes."""
        return peak(listing(self.step_graph.graph)[0]).bytes

    @property
    def _own_bytes(self) -> float:
        """Bytes of all that a step makes, at its worst node."""
        made = listing(self.step_graph.graph)[0]
        return peak(made).bytes - made.inputs

    def step(self, *batch: Tensor) -> StepResult:
        """Returns StepResult of `batch`; adds the clipped SUM of its per-example gradients to each `.grad`.

        Any number of rows, zero included. Raises ShapeError or StateError before anything is written.
        """
        result, sums = self.sums(*batch)
        self._write(sums)
        return result

    def sums(self, *batch: Tensor) -> tuple[StepResult, list[Tensor]]:
        """Returns StepResult of `batch` and the clipped SUM for each of `parameters`, in the dtype it was formed in.

        Writes no `.grad`: for who must not round the sum to the parameters' dtype before noise. Raises as `step`.
        """
        self.check(*batch)
        sums: list[Tensor] | None = None
        parts: list[list[Tensor]] = [[], [], []]
        buffers: Sequence[Any] = ()
        for rows, mask, count in self._physical(batch):
            outputs = self._step(*self._inputs(rows), mask)
            found = outputs[3:3 + len(self._order)]
            buffers = outputs[3 + len(self._order):]
            sums = self._keep(found) if sums is None else [s.add_(f) for s, f in zip(sums, found, strict=True)]
            for part, value in zip(parts, outputs[:3], strict=True):
                part.append(value[:count].clone())
        named = dict(self.model.named_buffers(remove_duplicate=False))
        for name, value in zip(self._capture.mutated, buffers, strict=False):
            named[name].copy_(value)
        return StepResult(*(torch.cat(p) for p in parts)), sums or []

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
        parts = [[value[:count] for value in self._others[want](*self._inputs(rows), mask)]
                 for rows, mask, count in self._physical(batch)]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def _compile(self, graph: StepGraph) -> tuple[Step, str]:
        inputs = self.example_inputs()
        # Parameters and buffers stay where they are; batch, clip inputs and mask come anew with every step.
        fixed = [kind != "batch" for kind, _ in self._capture.inputs.values()]
        fixed += [False] * (len(inputs) - len(fixed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", BackendWarning)
            step, backend = compile_step(graph, inputs, self._backend, fixed)
        return guarded(step, self.plan, lambda: self.peak), backend

    def example_inputs(self) -> list[Tensor]:
        """Returns stand-in inputs of the step graph: the model's own tensors, a batch of zeros, a full mask."""
        rows = tuple(torch.zeros((self._rows, *shape), dtype=dtype, device=device) for shape, dtype, device in self._spec)
        return [*self._inputs(rows), torch.ones(self._rows, dtype=torch.bool, device=rows[0].device)]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Returns `path`, where a compiled copy of the step now lies: `fxperex.load(path, model)` runs it elsewhere.

        Raises ConfigError or PackageError; an older file is then left as it was.
        """
        from fxperex.package import save

        return save(self, path)

    def _inputs(self, rows: tuple[Tensor, ...]) -> list[Tensor]:
        named = dict(self.model.named_parameters(remove_duplicate=False))
        named |= dict(self.model.named_buffers(remove_duplicate=False))
        values = []
        for kind, key in self._capture.inputs.values():
            value = rows[key] if kind == "batch" else self._capture.constants[key] if kind == "constant" else named[key]
            values.append(value.detach())
        return values + [x.to(rows[0].device) for x in self.clip.inputs()]

    def _physical(self, batch: tuple[Tensor, ...]) -> list[tuple[tuple[Tensor, ...], Tensor, int]]:
        """Physical batches: (padded tensors, mask, rows that count). An empty batch is one, all mask."""
        total, made = len(batch[0]), []
        for start in range(0, max(total, 1), self._rows):
            rows = tuple(_pad(x[start:start + self._rows], self._rows) for x in batch)
            count = min(total - start, self._rows)
            mask = torch.arange(self._rows, device=rows[0].device) < count
            made.append((rows, mask, count))
        return made

    def _write(self, sums: list[Tensor]) -> None:
        with torch.no_grad():
            # Every conversion that might not fit comes before the first write.
            values = [v.to(self.parameters[n].dtype) for n, v in zip(self._order, sums, strict=True)]
            for name, value in zip(self._order, values, strict=True):
                p = self.parameters[name]
                p.grad = value if p.grad is None else p.grad.add_(value)

    def check(self, *batch: Tensor) -> None:
        """Raises ShapeError unless `batch` is what the step takes, StateError as `check_model`; runs nothing."""
        if len(batch) != len(self._spec):
            raise ShapeError(f"step takes {len(self._spec)} tensors, as at transform; got {len(batch)}")
        for i, (x, (shape, dtype, device)) in enumerate(zip(batch, self._spec, strict=True)):
            if isinstance(x, Tensor):
                check_dense(x, f"batch[{i}]")
            if not isinstance(x, Tensor) or x.dim() == 0:
                raise ShapeError(f"batch[{i}] must be a tensor with the examples first; got {type(x).__name__}")
            if tuple(x.shape[1:]) != shape or x.dtype != dtype or x.device != device:
                raise ShapeError(f"batch[{i}] is {_told(x.shape[1:], x.dtype, x.device)}; this step was made for "
                                 f"{_told(shape, dtype, device)}. Transform again for another")
        if len({len(x) for x in batch}) != 1:
            raise ShapeError(f"batch tensors have different numbers of examples: {[len(x) for x in batch]}")
        self.check_model()

    def check_model(self) -> None:
        """Raises StateError if parameters, buffers or training modes are no longer those that were transformed."""
        _compare(self._state, _state(self.model))


def _told(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> str:
    return f"[B, {', '.join(map(str, shape))}] {str(dtype).removeprefix('torch.')} on {device}"


def _pad(x: Tensor, rows: int) -> Tensor:
    if len(x) == rows:
        return x
    # A repeated row is ordinary data; zeros might be outside what the model can digest.
    filler = x[:1].expand(rows - len(x), *x.shape[1:]) if len(x) else x.new_zeros((rows, *x.shape[1:]))
    return torch.cat([x, filler])


State = dict[str, dict[str, Any]]


def _state(model: nn.Module) -> State:
    """What a step relies on: which parameters, where, trainable or not; which modules train."""
    named = {n: (id(p), tuple(p.shape), p.dtype, p.device, p.requires_grad)
             for n, p in model.named_parameters(remove_duplicate=False)}
    buffers = {n: (tuple(b.shape), b.dtype, b.device) for n, b in model.named_buffers(remove_duplicate=False)}
    return {"parameter": named, "buffer": buffers, "training mode of module": {n: m.training for n, m in model.named_modules()}}


def _compare(before: State, now: State) -> None:
    for what, items in before.items():
        for name in [*items, *(n for n in now[what] if n not in items)]:
            if items.get(name) != now[what].get(name):
                raise StateError(f"{what} {name!r} changed since transform: {items.get(name)} -> {now[what].get(name)}. "
                                 "Transform again; the compiled step belongs to the model as it was")


