"""`transform`: the whole pipeline in one function, read from top to bottom."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import fxperex.layers
import fxperex.strategies  # noqa: F401  (both register the library's own)
from fxperex.analysis import Analysis, find_sites, prove
from fxperex.arguments import check_batch, check_callable, check_dtypes, check_strategy
from fxperex.capture.cuda_autocast import Elsewhere
from fxperex.capture.distributed import refuse_distributed
from fxperex.capture.program import Capture, capture
from fxperex.clipping import Clip, as_rule
from fxperex.compiler import BACKENDS
from fxperex.devices import profile
from fxperex.errors import ConfigError, CoverageError
from fxperex.graph.show import show
from fxperex.planner import Plan, make_plan, parse_memory
from fxperex.planner.planner import check_rows
from fxperex.planner.trial import Trial
from fxperex.rewrite.frame import trace_frames
from fxperex.runtime.module import PerExampleModule
from fxperex.testing import as_forward


def transform(
    model: nn.Module,
    batch: tuple[Tensor, ...],
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    *,
    forward: Callable[..., Tensor] | None = None,
    clip: float | Clip = 1.0,
    strategy: str | Mapping[str, str] | Plan = "auto",
    memory: int | str | None = None,
    physical_batch: int | str | None = None,
    autocast: torch.dtype | None = None,
    backend: str = "auto",
) -> PerExampleModule:
    """Returns the private step of `model`: per-example gradients, clipped and summed, as one
    compiled graph.

    model: any module on one device; its own parameters are used and only their `.grad` is ever
    written.
    batch: tuple of tensors, examples first; values are used for shape and dtype only.
    loss: `loss(output, target)` with `output = model(*batch[:-1])`, `target = batch[-1]`; mean, sum
    or `[B]`.
    forward: instead of `loss`, `forward(model, *batch) -> loss`. With neither, the model returns
    its loss.
    clip: bound of one example's gradient norm, or a rule of `fxperex.clipping`.
    strategy: "auto"; "measure" (also times on the device what the cost model cannot tell apart); a
    strategy's name for every node where it is legal; {glob of parameter names: name}; or a Plan
    made for this model before.
    memory: bytes, or "16GiB": the peak of the step, parameters and batch included, that the plan
    must fit.
    physical_batch: rows of one compiled step; default those of `batch`; "auto": what is fastest
    within `memory`.
    autocast: forward and backward under `torch.autocast` of this dtype.
    backend: "auto" (measured once), "inductor" or "eager".

    Raises an FxperexError, leaving everything as it was: ConfigError, ShapeError, CaptureError,
    BatchMixingError, MutationError, CoverageError.
    """
    rule = as_rule(clip)
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}; valid: {', '.join(BACKENDS)}")
    with _same_random_state(batch):
        outlined = outline(model, batch, loss, forward=forward, strategy=strategy, memory=memory,
                       physical_batch=physical_batch, autocast=autocast)
        show(1, "plan", outlined.plan)
        show(2, "captured graph", outlined.capture.main.graph)
        private = PerExampleModule(model, batch, outlined.capture, outlined.analysis, outlined.plan,
                                   rule, backend)
        show(3, "step graph", private.step_graph)
        return private


@dataclass(frozen=True)
class Outline:
    """What is known of a private step before it is built: `capture`, `analysis`, `plan`."""

    capture: Capture
    analysis: Analysis
    plan: Plan


def outline(
    model: nn.Module,
    batch: tuple[Tensor, ...],
    loss: Callable[[Any, Tensor], Tensor] | None = None,
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
    check_strategy(strategy)
    budget, device_of_batch = parse_memory(memory), check_batch(batch)
    trainable = _check_model(model, device_of_batch)
    rows = _check_rows(physical_batch, batch)
    if loss is not None and forward is not None:
        raise ConfigError("give loss or forward, not both")
    check_callable(loss, "loss")
    check_callable(forward, "forward")
    if isinstance(strategy, Plan):
        rows = check_rows(strategy, None if physical_batch is None else rows)
    run = _autocast(forward or as_forward(loss), autocast, device or device_of_batch)
    # The meta device has no autocast: the model is looked at as on the device that the plan is for.
    elsewhere = Elsewhere(
        device, device_of_batch) if autocast and device and device_of_batch.type == "meta" else None
    logical = max(len(batch[0]), 1)
    with _same_random_state(batch):
        # Code that makes a tensor without saying where means the model's device.
        with device_of_batch if device_of_batch.type == "meta" else contextlib.nullcontext():
            captured = capture(model, run, batch, logical if rows is None else rows, elsewhere)
        check_dtypes(captured)
        analysis = find_sites(captured, prove(captured), trainable)
        analysis = analysis if device is None else analysis.on(device)
        if not analysis.sites:
            raise CoverageError("the loss does not depend on any trainable parameter of the model")
        timer = Trial(
            captured, analysis,
            device_of_batch) if strategy == "measure" and device_of_batch.type != "meta" else None
        frames = cache(lambda: trace_frames(captured, analysis))
        plan = make_plan(analysis, profile(device or device_of_batch), rows, strategy, budget,
                         batch=logical, frozen=_frozen(model,
                                                       trainable), frames=frames, timer=timer)
        return Outline(captured, analysis, plan)


def _same_random_state(batch: object) -> Any:
    device = batch[0].device if isinstance(batch, tuple) and batch and isinstance(
        batch[0], Tensor) else torch.device("cpu")
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _frozen(model: nn.Module, trainable: set[str]) -> tuple[str, ...]:
    return tuple(
        n for n, p in model.named_parameters() if not p.requires_grad and n not in trainable)


def _check_model(model: object, device: torch.device) -> set[str]:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    refuse_distributed(model)
    trainable = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    if not trainable:
        raise CoverageError("the model has no trainable parameter (requires_grad=True): nothing "
                            "to train privately")
    for name, p in trainable.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise CoverageError(f"parameter {name!r} is lazy and has no shape yet; run the model "
                                "once first")
        if not p.dtype.is_floating_point:
            raise CoverageError(f"parameter {name!r} has dtype {p.dtype}; per-example gradients "
                                "need real floating point")
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.device != device:
            raise ConfigError(f"the batch is on {device}, {name!r} on {t.device}; move the model "
                              "or the batch")
    # A parameter under two names is one parameter: the first name stands for it.
    first_names = {id(p): n for n, p in reversed(list(trainable.items()))}
    return set(first_names.values())


def _check_rows(physical_batch: int | str | None, batch: tuple[Tensor, ...]) -> int | None:
    """Returns the rows of one step, None where the planner is to choose."""
    if physical_batch is None:
        return max(len(batch[0]), 1)
    if physical_batch == "auto":
        return None
    if isinstance(physical_batch,
                  bool) or not isinstance(physical_batch, int) or physical_batch < 1:
        raise ConfigError("physical_batch must be 'auto' or a whole number of rows above 0; got "
                          f"{physical_batch!r}")
    return physical_batch


def _autocast(run: Callable[..., Tensor], dtype: torch.dtype | None,
              device: torch.device) -> Callable[..., Tensor]:
    if dtype is None:
        return run
    if dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(f"autocast must be torch.bfloat16 or torch.float16; got {dtype!r}")

    def cast(model: nn.Module, *batch: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            return run(model, *batch)

    return cast
