"""Capture + Analysis + Plan -> the step graph: one torch.fx GraphModule.

Before: the forward program. After: forward; backward to the sites' outputs only (no ordinary weight
gradient is computed unless a strategy asks for it); per-site norms or per-example gradients; clip
factors; weighted sums; pull-backs to the parameters. Inputs: the capture's placeholders in order,
the clip rule's inputs, the mask `[B]`. Nodes made for a site are marked
(`graph.provenance.Made`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxperex.analysis.losses import per_example_loss
from fxperex.analysis.sites import Analysis
from fxperex.capture.program import Capture
from fxperex.clipping import Clip
from fxperex.config import LONGEST
from fxperex.graph.provenance import PART, Part, tagged
from fxperex.graph.show import show
from fxperex.graph.step_graph import StepGraph
from fxperex.kernels import by_factors
from fxperex.numerics.norms import sq_norm
from fxperex.numerics.rounding import raised
from fxperex.plan.plan import Plan
from fxperex.rewrite.emit import Emit
from fxperex.rewrite.evaluate import backward, evaluate
from fxperex.rewrite.naming import name_ends
from fxperex.rewrite.passes import PASSES, Orders, apply, user_passes
from fxperex.rewrite.trace import trace
from fxperex.rewrite.verify import verify

WANTS = ("step", "norms", "gradients")


def rewrite(capture: Capture, analysis: Analysis, plan: Plan, clip: Clip,
            want: str = "step") -> StepGraph:
    """Returns the step graph. Outputs by `want`: (losses, norms, factors, sums by parameter...,
    buffers...), (norms,) or (per-example gradients by parameter...); parameters in the order of
    `parameter_order`. Factors are `[B]`, or `[B, K]` for a rule of K groups. Raises ConfigError for
    a clip rule that does not fit the parameters."""
    rows = plan.frame_rows
    program = capture.at(rows)
    loss_graph = per_example_loss(capture, analysis.axes, program)
    show(4, "loss graph: per example", loss_graph)
    build = _naive if plan.mode == "naive" else _graph
    step = build(capture, analysis, plan, clip, loss_graph, want, rows)
    values = [n.meta["val"] for n in program.nodes if n.op == "placeholder"]
    with capture.fakes:
        mask = torch.ones(rows, dtype=torch.bool, device=values[-1].device)
        inputs = [*values, *clip.inputs(), mask]
    traced = trace(step, inputs, capture.fakes, users_code=True)
    show(4, "traced step", traced)
    named = dict(zip((k for _, k in capture.inputs.values()), values, strict=True))
    shapes = [tuple(named[n].shape) for n in parameter_order(capture, analysis)]

    def check(graph: fx.GraphModule) -> None:
        if want == "step":
            verify(graph, rows, shapes, plan.mode)

    apply(traced, (*PASSES, *user_passes().values()), _orders(plan, want), check)
    check(traced)
    ends = [(kind, str(key)) for kind, key in capture.inputs.values()]
    name_ends(traced.graph, ends, len(clip.inputs()), _outputs(capture, analysis, want))
    return StepGraph(traced, traced.graph)


def _orders(plan: Plan, want: str) -> Orders:
    """What the plan asks of the passes. Only the step itself recomputes."""
    early = frozenset(c.site.name for c in plan.choices if not c.cost.rereads)
    repeats = want == "step" and plan.recompute is not None
    return Orders(early, frozenset(plan.recompute.nodes) if repeats else frozenset())


def _outputs(capture: Capture, analysis: Analysis, want: str) -> list[str]:
    """Returns the outputs of the step graph in words."""
    order = parameter_order(capture, analysis)
    if want == "norms":
        return ["norms"]
    if want == "gradients":
        return [f"gradients of {name}" for name in order]
    return ["losses", "norms", "factors", *(f"sum of {name}" for name in order),
            *(f"new {name}" for name in capture.mutated)]


def parameter_order(capture: Capture, analysis: Analysis) -> list[str]:
    """Returns the trainable parameters in the order of the capture's inputs."""
    trainable = {p for s in analysis.sites for p in s.params} | set(analysis.unused)
    keys = [key for kind, key in capture.inputs.values() if kind == "parameter"]
    return list(dict.fromkeys(key for key in keys if key in trainable))


def _graph(capture: Capture, analysis: Analysis, plan: Plan, clip: Clip, graph: fx.GraphModule,
           want: str, rows: int) -> Callable[..., tuple[Any, ...]]:
    chosen = {c.site.name: c.strategy for c in plan.choices}
    order = parameter_order(capture, analysis)
    groups = dict(zip(order, clip.groups(order), strict=True))

    def step(*args: Tensor) -> tuple[Any, ...]:
        mask = args[-1]
        with torch.enable_grad():
            with tagged(PART, Part.FORWARD):
                run = evaluate(capture, analysis, graph, args[:len(capture.inputs)])
            with tagged(PART, Part.BACKWARD):
                uses = backward(capture, analysis, run, graph, rows)
        with torch.no_grad():
            emit = Emit(analysis, chosen, run, uses, rows, groups)
            if want == "gradients":
                return tuple(emit.per_example(name, args, capture) for name in order)
            squares = emit.squares(mask)
            if want == "norms":
                return (squares.sum(1).sqrt(),)
            norms, factors, valid = _clip(clip, squares, mask, args[len(capture.inputs):-1])
            sums = emit.sums(factors, valid)
            params = dict(zip((k for _, k in capture.inputs.values()), args, strict=False))
            results = [sums[n] if n in sums else torch.zeros_like(params[n]) for n in order]
            assert run.loss is not None
            return (run.loss.detach(), norms, _squeezed(factors), *results, *run.buffers)

    return step


def _naive(capture: Capture, analysis: Analysis, plan: Plan, clip: Clip, graph: fx.GraphModule,
           want: str, rows: int) -> Callable[..., tuple[Any, ...]]:
    """The step of one row: an ordinary backward to the parameters."""
    order = parameter_order(capture, analysis)
    groups = clip.groups(order)

    def step(*args: Tensor) -> tuple[Any, ...]:
        mask, names = args[-1], [k for _, k in capture.inputs.values()]
        with torch.enable_grad():
            env = {
                k: a.detach().requires_grad_(k in order)
                for k, a in zip(names, args[:len(names)], strict=True)
            }
            *buffers, loss = fx.Interpreter(graph).run(*(env[k] for k in names))
            leaves = [env[n] for n in order]
            gradients = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
        with torch.no_grad():
            grads = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(leaves, gradients, strict=True)
            ]
            if want == "gradients":
                return tuple(g.unsqueeze(0) for g in grads)
            squared = [raised(sq_norm(g.unsqueeze(0)), g.dtype) for g in grads]
            of_groups = [[s for s, group in zip(squared, groups, strict=True) if group == k]
                         for k in sorted(set(groups))]
            squares = torch.stack([torch.stack(of).sum(0) for of in of_groups], 1)
            if want == "norms":
                return (squares.sum(1).sqrt(),)
            norms, factors, valid = _clip(clip, squares, mask, args[len(names):-1])
            sums = [
                by_factors(g.unsqueeze(0), factors[:, k], valid)
                for g, k in zip(grads, groups, strict=True)
            ]
            return (loss.detach(), norms, _squeezed(factors), *sums, *buffers)

    return step


def _clip(clip: Clip, squares: Tensor, mask: Tensor,
          inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns norms `[B]`, factors `[B, K]` and the rows `[B]` that count: unmasked, with a
    gradient that can be clipped.
    """
    norms = squares.sum(1).sqrt()
    norms = torch.where(norms > LONGEST, torch.inf, norms)
    valid = mask & torch.isfinite(norms)
    return norms, torch.where(valid[:, None], clip.apply(squares.sqrt(), *inputs), 0.0), valid


def _squeezed(factors: Tensor) -> Tensor:
    return factors.squeeze(1) if factors.shape[1] == 1 else factors
