"""`transform`: the whole flow in one function, from top to bottom. `outline`: its first half."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import fxperex.layers
import fxperex.strategies  # noqa: F401  (both register the library's own)
from fxperex.analysis import Analysis, find_sites, prove
from fxperex.arguments import Request, check_backend, check_dtypes, check_trains, request
from fxperex.capture.distributed import sharded
from fxperex.capture.plain import plain
from fxperex.capture.program import Capture, capture
from fxperex.clipping import Clip, as_rule
from fxperex.devices import profile
from fxperex.graph.show import show
from fxperex.graph.step_graph import StepGraph
from fxperex.planner import Plan, make_plan
from fxperex.planner.trial import Trial
from fxperex.ranks import Ranks, ranks_of
from fxperex.ranks.mesh import check_device
from fxperex.ranks.shards import Shards
from fxperex.rewrite.frame import trace_frames
from fxperex.rewrite.rewriter import rewrite
from fxperex.runtime.compiled import CompiledStep, compile_checked
from fxperex.runtime.module import PerExampleModule
from fxperex.runtime.on_ranks import (
    backend_of,
    check_alike,
    decided_plan,
    decided_step,
    over_shards,
)
from fxperex.runtime.signature import StepSignature


def transform(model: nn.Module, batch: Any,
              loss: Callable[[Any, Any], Tensor] | None = None, *,
              forward: Callable[..., Tensor] | None = None, clip: float | Clip = 1.0,
              strategy: str | Mapping[str, str] | Plan = "auto",
              memory: int | str | None = None, physical_batch: int | str | None = None,
              autocast: torch.dtype | None = None, backend: str = "auto",
              mesh: Any = None) -> PerExampleModule:
    """Returns the private step of `model`: per-example gradients, clipped and summed, as one
    compiled graph.

    model: any module on one device; its own parameters are used and only their `.grad` is ever
    written.
    batch: tuple of tensors, examples first, or a mapping of them; both may hold further ones.
    Values are used for shape and dtype only, but what is no tensor in a mapping is a constant.
    loss: `loss(output, target)` with `output = model(*batch[:-1])`, `target = batch[-1]`; of a
    mapping `loss(output, batch)` with `output = model(**batch)`; mean, sum or `[B]`.
    forward: instead of `loss`, `forward(model, *batch) -> loss`, of a mapping `forward(model,
    batch)`. With neither, the model returns its loss, alone or as `.loss` of its output.
    clip: bound of one example's gradient norm, or a rule of `fxperex.clipping`.
    strategy: "auto"; "measure" (also times on the device what the cost model cannot tell apart); a
    strategy's name for every node where it is legal; {glob of parameter names: name}; or a Plan
    made for this model before.
    memory: bytes, or "16GiB": the peak of the step, parameters and batch included, that the plan
    must fit.
    physical_batch: rows of one compiled step; default those of `batch`; "auto": what is fastest
    within `memory`.
    autocast: forward and backward under `torch.autocast` of this dtype.
    backend: "inductor", "eager" or "auto": on a CPU it steps eagerly at once, and changes to a
    compiled step once another process found it faster and it was checked here. `private.compile()`
    asks for that now. Several ranks compile before the first step.
    mesh: the torch DeviceMesh over whose dimensions rows are split; default all processes of
    torch.distributed, if it is initialised. False: this process alone.

    Raises an FxperexError, leaving everything as it was: ConfigError, ShapeError, CaptureError,
    BatchMixingError, MutationError, CoverageError. On several ranks all raise, or none.
    """
    ranks = ranks_of(mesh)
    with ranks.every("transform"):
        shards = sharded(model, ranks)
    with plain(model) if shards else nullcontext():
        with ranks.every("transform"):
            rule = as_rule(clip)
            check_backend(backend)
            backend = backend_of(backend, shards)
            asked = request(model, batch, loss, forward, strategy, memory, physical_batch, autocast)
            check_device(ranks, asked.batch_device)
        with asked.same_random_state():
            stages = _stages(ranks, asked, model, rule, backend, shards)
    return PerExampleModule(model, asked.tensors, *stages, ranks, shards)


def _stages(ranks: Ranks, asked: Request, model: nn.Module, rule: Clip, backend: str,
            shards: Shards | None
            ) -> tuple[Capture, Analysis, Plan, StepGraph, CompiledStep]:
    """What each stage makes, from the capture to the step that runs."""
    with ranks.every("transform"):
        captured, analysis = _proved(asked, model)
    check_alike(ranks, model, captured, rule, asked.described | {"backend": backend}, shards)
    plan = decided_plan(ranks, lambda: _plan(asked, captured, analysis),
                        lambda plan: _plan(asked.with_plan(plan), captured, analysis))
    with ranks.every("transform"):
        show(1, "plan", plan)
        show(2, "captured graph", captured.main.graph)
        step_graph = rewrite(captured, analysis, plan, rule)
        signature = StepSignature.of(asked.tensors, captured, analysis, plan, rule,
                                     asked.structure)
        over_shards(step_graph, signature, shards)
        show(3, "step graph", step_graph)
    compiled = decided_step(
        ranks, lambda by: compile_checked(step_graph, signature, model, asked.tensors, plan, by),
        backend)
    return captured, analysis, plan, step_graph, compiled


@dataclass(frozen=True)
class Outline:
    """A private step before it is rewritten: `capture`, `analysis`, `plan`."""

    capture: Capture
    analysis: Analysis
    plan: Plan


def outline(
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    forward: Callable[..., Tensor] | None = None,
    strategy: str | Mapping[str, str] | Plan = "auto",
    memory: int | str | None = None,
    physical_batch: int | str | None = None,
    autocast: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Outline:
    """Returns the Outline of `model`'s private step. Arguments and errors as `transform`.

    Model and batch may be on the meta device: planning needs neither weights nor the device that
    `device` names.
    """
    asked = request(model, batch, loss, forward, strategy, memory, physical_batch, autocast, device)
    with asked.same_random_state():
        captured, analysis = _proved(asked, model)
        analysis = analysis if device is None else analysis.on(device)
        return Outline(captured, analysis, _plan(asked, captured, analysis))


def _proved(asked: Request, model: nn.Module) -> tuple[Capture, Analysis]:
    """The captured program, and its sites: no example sees another."""
    captured = capture(model, asked.forward, asked.tensors, asked.capture_rows, asked.elsewhere)
    check_dtypes(captured, asked.structure)
    analysis = find_sites(captured, prove(captured), asked.trainable)
    check_trains(analysis)
    return captured, analysis


def _plan(asked: Request, captured: Capture, analysis: Analysis) -> Plan:
    """The cheapest plan that is asked for. Nothing is traced or timed unless it matters."""
    frames = cache(lambda: trace_frames(captured, analysis))
    timer = Trial(captured, analysis, asked.batch_device) if asked.measures else None
    return make_plan(analysis, profile(asked.device), asked.rows, asked.strategy, asked.memory,
                     batch=asked.logical, frozen=asked.frozen, frames=frames, timer=timer)
