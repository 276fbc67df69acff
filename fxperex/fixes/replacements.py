"""Is a replaced layer the layer it replaces, but for its normalisation? Tried on numbers of every
shape that it takes.

A subclass of BatchNorm may do anything in its forward: activate, drop, transpose. Known parts of it
are kept by `fix`; this file says which, by running the layer on random statistics beside a batch
norm over dimension 1 followed by those parts.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PIXELS = (3, 5, 7, 11)


def after_the_norm(module: _BatchNorm) -> dict[str, nn.Module] | None:
    """Returns the children that `module` applies after normalising over dimension 1; None if it
    does anything else.
    """
    children = dict(module.named_children())
    return next((names for names in ({}, children) if _norm_then(module, list(names))), None)


def same_outputs(before: nn.Module, after: nn.Module) -> bool:
    """True if two layers with `num_features` channels, both in training mode, compute the same."""
    probe = _probe(before)
    return _equal(probe, probe, _probe(after))


def _norm_then(module: _BatchNorm, names: list[str]) -> bool:
    """True if `module` is a batch norm followed by its children `names`, in evaluation and in
    training mode.
    """
    probe = _probe(module)
    # A synchronised one would ask the other processes for their examples.
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())

    def reference(x: Tensor) -> Tensor:
        over = probe.training or probe.running_mean is None
        x = F.batch_norm(x, None if over else probe.running_mean,
                         None if over else probe.running_var, probe.weight, probe.bias, over, 0.0,
                         probe.eps)
        for name in names:
            x = probe.get_submodule(name)(x)
        return x

    return all(
        _equal(probe.train(mode), probe, reference)
        for mode in ((False, True) if alone else (False, )))


def _equal(module: nn.Module, before: Callable[[Tensor], Tensor],
           after: Callable[[Tensor], Tensor]) -> bool:
    """True if both agree on every shape that `module` takes, and there is one."""
    agreed = False
    for x in _inputs(module.num_features):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                expected = before(x.clone())
            except Exception:  # not a shape for this layer
                continue
            torch.manual_seed(0)
            try:
                actual = after(x.clone())
            except Exception:  # not a layer like the other
                return False
        if expected.shape != actual.shape or not torch.allclose(expected, actual, 1e-6, 1e-6):
            return False
        agreed = True
    return agreed


def _inputs(channels: int) -> Iterator[Tensor]:
    """Random inputs with 0 to 3 dimensions after the channels, none as long as the channels are
    many.
    """
    sizes = [n for n in PIXELS if n != channels][:3]
    generator = torch.Generator().manual_seed(0)
    for count in range(4):
        yield torch.randn(4, channels, *itertools.islice(sizes, count), generator=generator,
                          dtype=torch.float64)


def _probe(module: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU, whose parameters and statistics are random numbers between a
    half and 3/2.
    """
    probe = copy.deepcopy(module).to_empty(device="cpu").double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for x in itertools.chain(probe.parameters(), probe.buffers()):
            if x.is_floating_point():
                x.copy_(torch.rand(x.shape, generator=generator, dtype=torch.float64) + 0.5)
            else:
                x.zero_()
    return probe.requires_grad_(False).train()
