"""`torch.func.vmap(vjp)` of one node: anything with a parameter works; the last resort."""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.cost_model.sites import (
    convolves,
    each_by_convolution,
    fresh,
    grads_bytes,
    grouped_scratch,
    outputs_bytes,
    passes,
    per_example_product,
    whole,
)
from fxperex.layers.generic import single
from fxperex.layers.shapes import split
from fxperex.registry import Cost, Site, Uses, strategy
from fxperex.strategies.multi import as_one
from fxperex.strategies.stored import Stored


@strategy("vmap")
class Vmap(Stored):
    def illegal(self, site: Site) -> str | None:
        return None

    def forming(self, site: Site) -> Cost:
        d, grads, out = site.dims, grads_bytes(site), outputs_bytes(site)
        if d is None or site.kind == "embedding":
            return Cost(fresh(grads), (2 + passes(site)) * out + 4 * grads,
                        transient=2 * out + grads, launches=8)
        conv = convolves(site)
        work = each_by_convolution(site, whole(d, site), "vmap") if conv else per_example_product(
            site, d)
        own = grads + (grouped_scratch(site, d) if conv else 0.0)
        return Cost((work,), 4 * grads, transient=grads + own, launches=30)

    def gradients(self, uses: Uses) -> Tensor:
        site = uses.site
        moving = [
            i for i, axis in enumerate(uses.axes)
            if axis is not None and isinstance(uses.args[i], Tensor)
        ]
        inputs = [split(uses.args[i].detach(), uses.axes[i], site.rows) for i in moving]
        outs = [
            (i, axis) for i, axis in enumerate(uses.cache["out_axes"]) if uses.grads[i] is not None
        ]
        grads = [split(uses.grads[i], axis, site.rows) for i, axis in outs
                 ]  # type: ignore[arg-type]
        weight = uses.args[site.arg].detach()

        def one(rows: list[Tensor], backs: list[Tensor]) -> Tensor:
            values = [
                s if isinstance(s, int) else a
                for s, a in zip(uses.cache["single"], uses.args, strict=True)
            ]
            for i, row in zip(moving, rows, strict=True):
                values[i] = as_one(row, uses.axes[i])  # type: ignore[arg-type]

            def run(w: Tensor) -> list[Tensor]:
                result = single(uses, values, w)
                outputs = [result] if isinstance(result, Tensor) else list(result)
                return [outputs[i] for i, _ in outs]

            pull = torch.func.vjp(run, weight)[1]
            return pull([as_one(b, axis) for b, (_, axis) in zip(backs, outs, strict=True)])[0]

        return torch.func.vmap(one, randomness="different")(inputs, grads)
