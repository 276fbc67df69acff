"""Other libraries' ways to one clipped sum: `PEERS[name](model, x, y, clip)` gives a call that
leaves it in `.grad`.

Each takes a model of its own (a copy), a mean cross entropy, and adds the clipped per-example
gradients: what `private.step` does. A library that cannot raises when it is made or first called;
the benchmark writes down what it said.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Call = Callable[[], None]


def _release(parameters: list[nn.Parameter], each: list[Tensor], clip: float) -> None:
    """Leaves `sum_b min(1, clip / |g_b|) g_b` in `.grad`, from per-example gradients `[B,
    *shape]`.
    """
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in each]).norm(dim=0)
    factors = (clip / (norms + 1e-6)).clamp(max=1.0)
    for p, g in zip(parameters, each, strict=True):
        p.grad = torch.einsum("b,b...->...", factors, g)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def opacus_hooks(model: nn.Module, x: Tensor, y: Tensor, clip: float, *,
                 functorch: bool = False) -> Call:
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model, loss_reduction="mean", force_functorch=functorch)
    parameters = _trainable(model)

    def run() -> None:
        wrapped.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        _release(parameters, [p.grad_sample for p in parameters], clip)  # type: ignore[attr-defined]

    return run


def opacus_functorch(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> Call:
    return opacus_hooks(model, x, y, clip, functorch=True)


def opacus_ghost(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> Call:
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )

    wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=clip,
                                                   use_ghost_clipping=True, loss_reduction="mean")

    def run() -> None:
        wrapped.zero_grad()
        losses = _losses(wrapped(x), y)
        losses.mean().backward(retain_graph=True)
        wrapped.zero_grad()
        factors = wrapped.get_clipping_coef()
        wrapped.disable_hooks()
        (factors * losses).sum().backward()
        wrapped.enable_hooks()

    return run


def _losses(output: Tensor, target: Tensor) -> Tensor:
    """Losses `[B]`; an example's own mean where it has a target per token."""
    return F.cross_entropy(output, target, reduction="none").reshape(len(target), -1).mean(1)


def vmap_grad(model: nn.Module, x: Tensor, y: Tensor, clip: float, *,
              compiled: bool = False) -> Call:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rest = {n: t for n, t in [*model.named_parameters(), *model.named_buffers()] if n not in named}
    held = {n: p.detach() for n, p in named.items()}

    def loss(parameters: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            torch.func.functional_call(model, {**parameters, **rest}, (row[None], )), target[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    if compiled:
        each = torch.compile(each)

    def run() -> None:
        found = each(held, x, y)
        _release(list(named.values()), [found[n] for n in named], clip)

    return run


def vmap_compiled(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> Call:
    return vmap_grad(model, x, y, clip, compiled=True)


def expanded_weights(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> Call:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    parameters = _trainable(model)

    def run() -> None:
        for p in parameters:
            p.grad_sample = None  # type: ignore[attr-defined]
        F.cross_entropy(call_for_per_sample_grads(model, loss_reduction="mean")(x), y).backward()
        _release(parameters, [p.grad_sample for p in parameters],
                 clip)  # type: ignore[attr-defined]

    return run


def backpack_norms(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> Call:
    """Squared norms by BackPACK's BatchL2Grad, then a second backward of the weighted losses."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    extended, parameters = extend(model), _trainable(model)

    def run() -> None:
        extended.zero_grad()
        losses = _losses(extended(x), y)
        with backpack(BatchL2Grad(), retain_graph=True):
            losses.sum().backward(retain_graph=True)
        norms = torch.stack([p.batch_l2 for p in parameters
                             ]).sum(0).sqrt()  # type: ignore[attr-defined]
        extended.zero_grad()
        ((clip / (norms + 1e-6)).clamp(max=1.0) * losses).sum().backward()

    return run


PEERS: dict[str, Callable[[nn.Module, Tensor, Tensor, float], Call]] = {
    "opacus hooks": opacus_hooks,
    "opacus ghost": opacus_ghost,
    "opacus functorch": opacus_functorch,
    "torch.func vmap": vmap_grad,
    "vmap compiled": vmap_compiled,
    "expanded weights": expanded_weights,
    "backpack": backpack_norms,
}


def peer(name: str, model: nn.Module, x: Tensor, y: Tensor, clip: float) -> tuple[nn.Module, Call]:
    """Returns (the copy of the model that the call writes to, the call). Nothing works in place
    there: hooks cannot bear it.
    """
    own = copy.deepcopy(model)
    for module in own.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return own, PEERS[name](own, x, y, clip)
