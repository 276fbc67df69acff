"""Scale and shift of layer, RMS and group normalisation: both gradients and norms by one Triton pass over the activations.

`grad_b w = sum_t g_bt xhat_bt`, `grad_b b = sum_t g_bt`; `xhat` is formed from the statistics as it is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex import kernels
from fxperex.kernels.device import DTYPES, interpreting
from fxperex.layers.shapes import packet, split
from fxperex.registry import Cost, Site, Uses, strategy
from fxperex.strategies.fused import INTERPRETED
from fxperex.work import outputs_bytes

OPS = {"aten.layer_norm", "aten.rms_norm", "aten.group_norm"}
BY_POSITION = {"layer_norm", "rms_norm"}


@strategy("affine")
class Affine:
    stores = True

    def illegal(self, site: Site) -> str | None:
        if site.kind != "norm" or site.op not in OPS:
            return f"{site.op} of kind {site.kind} is neither layer, RMS nor group normalisation"
        if site.parts:
            return f"it serves one node at a time; this tensor has {len(site.parts)} uses"
        if site.dtype not in DTYPES:
            return f"the Triton kernels accumulate in float32, too little for {str(site.dtype).removeprefix('torch.')}"
        return kernels.unavailable(site.device)

    def cost(self, site: Site) -> Cost:
        held = 4.0 * site.rows * site.size
        return Cost((), 2 * outputs_bytes(site) + 2 * held, held, 0.0, INTERPRETED if interpreting() else 2)

    def stored(self, uses: Uses) -> Tensor:
        return self._made(uses)[0]

    def sq_norm(self, uses: Uses) -> Tensor:
        return self._made(uses)[1]

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        return kernels.weighted_sum(self._made(uses)[0], factors, valid)

    def _made(self, uses: Uses) -> tuple[Tensor, Tensor]:
        """(per-example gradients `[B, *shape]`, their squared norms `[B]`); the other of the pair is the same node."""
        if "affine" not in uses.cache:
            layer = packet(uses.node) in BY_POSITION
            *made, squares = kernels.affine_gradients(*(_by_position(uses) if layer else _by_group(uses)))
            first = 2 + (len(uses.node.args[1]) - 1 if layer else 0)  # flat arguments unroll `normalized_shape`
            which = uses.site.arg - first
            uses.cache["affine"] = made[which].reshape(uses.site.rows, *uses.site.shape), squares[:, which]
        return uses.cache["affine"]


Operands = tuple[Tensor, Tensor, Tensor, Tensor, int]


def _by_position(uses: Uses) -> Operands:
    """Layer and RMS norm: `[B, entries, positions]`, statistics per position."""
    site, axis = uses.site, uses.axes[0]
    assert axis is not None
    x, g = (split(v, where, site.rows).reshape(site.rows, -1, site.size).transpose(1, 2)
            for v, where in ((uses.args[0], axis), (uses.grad, uses.out_axis)))
    return (x, g, *(_lengths(x, uses) if packet(uses.node) == "rms_norm" else _statistics(x, 1, uses)), 0)


def _by_group(uses: Uses) -> Operands:
    """Group norm: `[B, images * channels, positions]`, statistics per image and group."""
    site, groups = uses.site, int(uses.node.args[1])  # type: ignore[call-overload]
    axis = uses.axes[0]
    assert axis is not None
    x, g = (split(v.reshape(*v.shape[:2], -1), where, site.rows).flatten(1, 2)
            for v, where in ((uses.args[0], axis), (uses.grad, uses.out_axis)))
    rows, count, channels, positions = x.shape
    mean, rstd = _statistics(x.reshape(rows, count * groups, -1), 2, uses)
    if count > 1:  # an example's images add to the same channels: they become positions, each with its own statistics
        mean, rstd = (s.reshape(rows, count, groups, 1, 1).expand(-1, -1, -1, channels // groups, positions)
                      .reshape(rows, count, channels, positions) for s in (mean, rstd))
        x = (x.float() - mean) * rstd
        x, g = (v.transpose(1, 2).flatten(2) for v in (x, g))
        return x, g, x.new_zeros(rows, 1), x.new_ones(rows, 1), channels
    return x.squeeze(1), g.squeeze(1), mean, rstd, channels // groups


def _statistics(x: Tensor, dim: int, uses: Uses) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x.float(), dim, correction=0)
    eps = uses.node.args[4] if len(uses.node.args) > 4 else 1e-5
    return mean, (variance + eps).rsqrt()


def _lengths(x: Tensor, uses: Uses) -> tuple[Tensor, Tensor]:
    """RMS norm's statistics: no mean is taken off; where no eps is given it is that of what is computed in."""
    given = uses.node.args[3] if len(uses.node.args) > 3 else None
    eps = torch.finfo(torch.promote_types(uses.args[0].dtype, torch.float32)).eps if given is None else given
    square = x.float().square().mean(1)
    return torch.zeros_like(square), (square + eps).rsqrt()
