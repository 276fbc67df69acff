"""Does a replacement compute what the layer computes, except for the normalisation? It is tried.

A subclass of BatchNorm may do anything in its forward: activate, drop, transpose. `fix` keeps the
child modules that it applies after normalising. This file finds out whether that is all: it runs
the layer, with random statistics, and a batch norm over dimension 1 followed by the children, on
inputs of every shape that the layer takes.
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
    """Returns the children that `module` applies after normalising over dimension 1; None if it is
    anything else.
    """
    children = dict(module.named_children())
    return next((names for names in ({}, children) if _norm_then(module, list(names))), None)


def same_outputs(before: nn.Module, after: nn.Module) -> bool:
    """True if two layers with `num_features` channels, both in training mode, compute the same."""
    probe = _probe(before)
    return _equal(probe, probe, _probe(after))


def _norm_then(module: _BatchNorm, names: list[str]) -> bool:
    """True if `module` is a batch norm followed by its children `names`, in both modes."""
    probe = _probe(module)
    # In training mode a synchronised one would ask the other processes for their examples.
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())

    def reference(x: Tensor) -> Tensor:
        over_batch = probe.training or probe.running_mean is None
        mean, variance = (None, None) if over_batch else (probe.running_mean, probe.running_var)
        x = F.batch_norm(x, mean, variance, probe.weight, probe.bias, over_batch, 0.0, probe.eps)
        for name in names:
            x = probe.get_submodule(name)(x)
        return x

    modes = (False, True) if alone else (False,)
    return all(_equal(probe.train(mode), probe, reference) for mode in modes)


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
    """Yields random inputs with 0 to 3 dimensions after the channels, none of that same length."""
    sizes = [n for n in PIXELS if n != channels][:3]
    generator = torch.Generator().manual_seed(0)
    for count in range(4):
        yield torch.randn(4, channels, *itertools.islice(sizes, count), generator=generator,
                          dtype=torch.float64)


def _probe(module: nn.Module) -> nn.Module:
    """Returns a copy in float64 on the CPU; its parameters and statistics are random numbers from
    1/2 to 3/2.
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
