"""A case against the float64 loop: per-example gradients, norms and the clipped sum, relative to
what rounding can do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from case import Case
from torch import Tensor, nn

import fxperex
from fxperex.errors import CaptureError, FxperexError
from fxperex.testing import clipped, loop

LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}
RIGHT, WRONG, REFUSED = "right", "wrong", "refused"


@dataclass(frozen=True)
class Verdict:
    """`error`: the largest relative error; `why`: what was wrong, or the refusal; `captured`: the
    graph was made.
    """

    case: str
    state: str
    error: float = 0.0
    why: str = ""
    captured: bool = True


def judge(case: Case, dtype: torch.dtype) -> Verdict:
    """Returns the Verdict on `case`, its floating point tensors and parameters in `dtype`."""
    module = copy.deepcopy(case.module).to(dtype)
    batch = tuple(x.to(dtype) if x.is_floating_point() else x for x in case.batch)
    name = f"{case} {str(dtype).removeprefix('torch.')}"
    try:
        if case.mixes:
            return _must_refuse(case, module, batch, name)
        found = _errors(case, module, batch)
    except FxperexError as refusal:
        return Verdict(name, REFUSED, why=f"{type(refusal).__name__}: {refusal}",
                       captured=not isinstance(refusal, CaptureError))
    except Exception as crash:  # whatever else escapes is a fault of the library's
        return Verdict(name, WRONG, why=f"{type(crash).__name__}: {crash}")
    worst = max(found, key=found.__getitem__)
    bad = not found[worst] <= LIMIT[dtype] and not found[worst] <= _allowed(case, module, batch)
    return Verdict(name, WRONG if bad else RIGHT, found[worst], f"{worst}: error "
                   f"{found[worst]:.1e}" if bad else "")


def _allowed(case: Case, module: nn.Module, batch: tuple[Tensor, ...]) -> float:
    """The error that the case's precision permits: four times that of torch's own loop in it and 16
    ulp, at most 3e-5.

    A gradient that cancels inside the network, not in the last sum, is as far off in any float32
    program.
    """
    dtype = next(module.parameters()).dtype
    if dtype == torch.float64:
        return LIMIT[dtype]
    truth, sizes = loop(module, case.forward, batch), scales(module, case, batch)
    plain = loop(module, case.forward, batch, dtype)
    return min(4 * max(relative(plain[n], truth[n], sizes[n]) for n in truth) + 16 * 2.0**-24, 3e-5)


def _must_refuse(case: Case, module: nn.Module, batch: tuple[Tensor, ...], name: str) -> Verdict:
    try:
        fxperex.transform(module, batch, forward=case.forward, backend="eager")
    except FxperexError as refusal:
        return Verdict(name, RIGHT, captured=not isinstance(refusal, CaptureError))
    return Verdict(name, WRONG, why="mixes examples and was accepted")


def _errors(case: Case, module: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """Returns relative errors by what was compared. Raises what the library raises."""
    truth, sizes = loop(module, case.forward, batch), scales(module, case, batch)
    # A clip below most norms, so that the factors matter.
    clip = 0.7 * float(clipped(truth, 1.0)[1].median()) if len(batch[0]) else 1.0
    private = fxperex.transform(module, batch, forward=case.forward, clip=max(clip, 1e-6),
                                backend="eager")
    found, result = private.gradients(*batch), private.step(*batch)
    total, norms = clipped(truth, max(clip, 1e-6))
    factors = (max(clip, 1e-6) / norms).clamp(max=1.0)
    errors = {
        "norms": relative(result.norms, norms,
                          torch.stack(list(sizes.values())).square().sum(0).sqrt())
    }
    for p, want in truth.items():
        errors[f"gradients of {p}"] = relative(found[p], want, sizes[p])
        errors[f"sum of {p}"] = relative(
            module.get_parameter(p).grad[None], total[p][None], (factors * sizes[p]).sum()[None])
    return errors


def relative(found: Tensor, truth: Tensor, scale: Tensor) -> float:
    """Returns the largest `|found_b - truth_b| / max(|truth_b|, scale_b)` over the examples; 0 for
    none.
    """
    assert found.shape == truth.shape, f"{list(found.shape)} is not {list(truth.shape)}"
    if not len(truth):
        return 0.0
    size = truth.reshape(len(truth), -1).norm(dim=1).maximum(scale).clamp(min=1e-30)
    ratio = (found.double() - truth).reshape(len(truth), -1).norm(dim=1) / size
    return float(ratio.nan_to_num(torch.inf).max())


def scales(module: nn.Module, case: Case, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Returns {parameter: `[B]`}, `|sum_t |g_t|^T |a_t||` in float64 for weights of products and
    for biases, else zero.

    Rounding is relative to this and not to the gradient, which may cancel: the bias of an
    attention's keys has a gradient of zero, a sum over positions of numbers that are not.
    """
    exact, seen = copy.deepcopy(module).double(), []
    for layer in exact.modules():
        layer.register_forward_hook(lambda *call: seen.append(call), with_kwargs=True)
    sizes = {
        p: torch.zeros(len(batch[0]), dtype=torch.float64)
        for p in exact.parameters()
        if p.requires_grad
    }
    for b in range(len(batch[0])):
        seen.clear()
        loss = case.forward(
            exact,
            *(x[b:b + 1].double() if x.is_floating_point() else x[b:b + 1] for x in batch)).sum()
        calls = [c for c in seen if isinstance(c[-1], Tensor) and c[-1].requires_grad]
        outs = [c[-1] for c in calls]
        grads = torch.autograd.grad(loss, outs, allow_unused=True,
                                    retain_graph=True) if outs else ()
        for (layer, args, options, out), g in zip(calls, grads, strict=True):
            if g is not None:
                for param, size in _absolute(layer, [*args, *options.values()], out, g.abs()):
                    sizes[param][b] += size.norm()
    return {n: sizes[p] for n, p in exact.named_parameters() if p in sizes}


def _absolute(layer: nn.Module, args: list[Any], out: Tensor,
              g: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yields one layer's own parameters with their gradients for absolute values of input and
    output gradient.
    """
    own = dict(layer.named_parameters(recurse=False))
    if "bias" in own and own["bias"].requires_grad:
        yield own["bias"], torch.autograd.grad(out, own["bias"], g, retain_graph=True)[0]
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and own["weight"].requires_grad:
        yield own["weight"], torch.autograd.grad(layer.forward(args[0].detach().abs()),
                                                 own["weight"], g)[0]
