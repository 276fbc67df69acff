"""The paper's `multi`: per node, one weight-gradient call per example, unrolled (arXiv 1912.06015,
section 3.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxperex.cost_model.sites import (
    convolutions,
    convolves,
    grads_bytes,
    name_of,
    outputs_bytes,
    whole,
)
from fxperex.layers.generic import single
from fxperex.layers.shapes import split
from fxperex.registry import BatchAxis, Cost, Site, Uses, Work, strategy
from fxperex.strategies.stored import Stored


@strategy("multi")
class Multi(Stored):
    def illegal(self, site: Site) -> str | None:
        return None

    def forming(self, site: Site) -> Cost:
        d, grads = site.dims, grads_bytes(site)
        peak, launches = 2 * grads, 8 * site.rows  # each example's, and all of them stacked
        if d is None or site.kind == "embedding":
            return Cost((), 8 * outputs_bytes(site) + 4 * grads, transient=peak, launches=launches)
        if convolves(site):
            work = convolutions(site, whole(d, site), "conv_weight", 1, site.rows * d.G)
        else:
            work = Work("mm", (d.P, d.T, d.D), 2.0 * d.T * d.D * d.P, site.rows, name_of(site))
        # All examples' results are held at once, and stacked: none is written where another was.
        return Cost((work, Work("fresh", (int(grads), ), 2 * grads)), 2 * grads, transient=peak,
                    launches=launches)

    def gradients(self, uses: Uses) -> Tensor:
        return torch.stack([self._one(uses, b) for b in range(uses.site.rows)])

    def _one(self, uses: Uses, b: int) -> Tensor:
        values = [
            _example(a, axis, uses.site.rows, b)
            for a, axis in zip(uses.args, uses.axes, strict=True)
        ]
        values = [
            s if isinstance(s, int) else v
            for s, v in zip(uses.cache["single"], values, strict=True)
        ]
        with torch.enable_grad():
            weight = uses.args[uses.site.arg].detach().requires_grad_()
            outputs = single(uses, values, weight)
            outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            pairs = [(o, _example(g, axis, uses.site.rows, b)) for o, g, axis in
                     zip(outs, uses.grads, uses.cache["out_axes"], strict=True) if g is not None]
            return torch.autograd.grad([o for o, _ in pairs], weight, [g for _, g in pairs])[0]


def _example(value: Any, axis: BatchAxis | None, rows: int, b: int) -> Any:
    """One example's slice, as a batch of one; what carries no batch stays as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value if axis is None else as_one(split(value, axis, rows)[b], axis)


def as_one(row: Tensor, axis: BatchAxis) -> Tensor:
    """`[*before, outer, inner, *after]` -> the tensor of a batch of one."""
    d = axis.dim
    return row.reshape(*row.shape[:d], axis.outer * axis.inner, *row.shape[d + 2:])
