"""What the tests share: a non-linear loss, and one capture run under many strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from fxperex.analysis import find_sites, prove
from fxperex.capture.program import capture
from fxperex.clipping import Clip, as_rule
from fxperex.devices import profile
from fxperex.planner import make_plan
from fxperex.rewrite.rewriter import rewrite
from fxperex.runtime.compiled import compile_checked
from fxperex.runtime.module import PerExampleModule
from fxperex.runtime.signature import StepSignature
from fxperex.testing import clipped, error, loop

LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}


def curved(model: nn.Module, *batch: Tensor) -> Tensor:
    """A per-example loss `[B]` whose output gradients differ by element and example."""
    out = model(*batch)
    out = out[0] if isinstance(out, tuple) else out
    weights = torch.linspace(0.5, 2.0, out[0].numel(), dtype=out.dtype).reshape(out.shape[1:])
    return ((out * weights).sin() + out**2 / 3).flatten(1).sum(1)


def under(model: nn.Module, batch: tuple[Tensor, ...], forward: Callable[..., Tensor], clip: float,
          names: Iterable[str]) -> Iterator[tuple[str, PerExampleModule]]:
    """Yields (strategy, private step): `fxperex.transform` under each strategy, captured and proved
    once.
    """
    return steps(model, batch, forward, ((name, clip) for name in names))


def steps(model: nn.Module, batch: tuple[Tensor, ...], forward: Callable[..., Tensor],
          pairs: Iterable[tuple[str, float | Clip]], *,
          repeats: bool = True) -> Iterator[tuple[str, PerExampleModule]]:
    """Yields (strategy, private step) for each (strategy, clip), captured and proved once.

    `repeats=False` leaves out plans that were run already: where a strategy is legal nowhere, its
    plan is the planner's own.
    """
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    with torch.random.fork_rng():
        captured = capture(model, forward, batch, len(batch[0]))
    axes = prove(captured)
    analysis = find_sites(captured, axes, trainable)
    plans: set[tuple[object, ...]] = set()
    for name, clip in pairs:
        plan = make_plan(analysis, profile(batch[0].device), len(batch[0]), name)
        key = (clip, plan.mode, *(c.strategy for c in plan.choices))
        if not repeats and key in plans:
            continue
        plans.add(key)
        rule = as_rule(clip)
        graph = rewrite(captured, analysis, plan, rule)
        signature = StepSignature.of(batch, captured, analysis, plan, rule)
        compiled = compile_checked(graph, signature, model, batch, plan, "eager")
        yield name, PerExampleModule(model, batch, captured, analysis, plan, graph, compiled)


# A norm that is read from one float32 product covers the rounding of two, `2 T 2^-24 S`: with T of
# 30 and S of 4 norms, as in some samples of convolutions, it is 1.3e-5 above the true one by
# design.
TIGHT = {"fused": 2}


def against_the_loop(model: nn.Module, batch: tuple[Tensor, ...], names: Iterable[str] = ("auto",),
                     forward: Callable[..., Tensor] = curved) -> list[PerExampleModule]:
    """Asserts norms, clipped sums and per-example gradients against the float64 loop; returns the
    steps.
    """
    limit = LIMIT[next(model.parameters()).dtype]
    truth = loop(model, forward, batch)
    # A clip below most norms, so that the factors matter.
    clip = 0.7 * float(clipped(truth, 1.0)[1].median())
    total, norms = clipped(truth, clip)
    scale, ran = 1e-3 * float(norms.max()), []
    pairs = ((name, clip) for name in names)
    for name, private in steps(model, batch, forward, pairs, repeats=False):
        model.zero_grad()
        near = limit * TIGHT.get(name, 1)
        assert error(private.step(*batch).norms, norms) <= near, name
        for p, want in total.items():
            assert error(model.get_parameter(p).grad, want, scale) <= near, (name, p)
        if name in {"naive", "vmap", "auto"}:
            grads = private.gradients(*batch)
            for p, want in truth.items():
                assert error(grads[p], want, scale) <= limit, (name, p)
        ran.append(private)
    return ran


