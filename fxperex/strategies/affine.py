"""Scale and shift of normalisations: both gradients and norms by one Triton pass over the
activations.

`grad_b w = sum_t g_bt xhat_bt`, `grad_b b = sum_t g_bt`; `xhat` is formed from the statistics as it
is read: those of positions (layer, RMS), of groups, of channels (instance), or running ones (batch
and instance norm in eval mode).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxperex import kernels
from fxperex.cost_model.sites import outputs_bytes
from fxperex.kernels.device import DTYPES, interpreting
from fxperex.layers.shapes import packet, split
from fxperex.registry import Cost, Site, Uses, strategy
from fxperex.strategies.fused import INTERPRETED

BY_POSITION = {"layer_norm", "rms_norm"}
BY_CHANNEL = {"instance_norm", "batch_norm",
              "_native_batch_norm_legit_no_training"}  # weight, bias, running mean and variance
EPS = {
    "layer_norm": 4, "group_norm": 4, "instance_norm": 7, "batch_norm": 7,
    "_native_batch_norm_legit_no_training": 6
}
RUNNING = 3  # place of the running mean; the variance follows


@strategy("affine")
class Affine:
    stores = True

    def illegal(self, site: Site) -> str | None:
        if site.kind != "norm":
            return f"{site.op} of kind {site.kind} is no normalisation"
        if site.parts:
            return f"it serves one node at a time; this tensor has {len(site.parts)} uses"
        if site.dtype not in DTYPES:
            return ("the Triton kernels accumulate in float32, too little for "
                    f"{str(site.dtype).removeprefix('torch.')}")
        return kernels.unavailable(site.device)

    def cost(self, site: Site) -> Cost:
        held = 4.0 * site.rows * site.size
        return Cost((), 2 * outputs_bytes(site) + 2 * held, held, 0.0,
                    INTERPRETED if interpreting() else 2)

    def stored(self, uses: Uses) -> Tensor:
        return self._made(uses)[0]

    def sq_norm(self, uses: Uses) -> Tensor:
        return self._made(uses)[1]

    def weighted_sum(self, uses: Uses, factors: Tensor, valid: Tensor) -> Tensor:
        return kernels.weighted_sum(self._made(uses)[0], factors, valid)

    def _made(self, uses: Uses) -> tuple[Tensor, Tensor]:
        """(per-example gradients `[B, *shape]`, their squared norms `[B]`); scale and shift of a
        node are of one pass.
        """
        op, shared = packet(uses.node), uses.cache["node"]
        if "affine" not in shared:
            shared["affine"] = kernels.affine_gradients(
                *(_by_position(uses) if op in BY_POSITION else _by_group(uses)))
        *gradients, squares = shared["affine"]
        unrolled = len(
            uses.node.args[1]
        ) - 1 if op in BY_POSITION else 0  # `normalized_shape` among the flat arguments
        which = uses.site.arg - (1 if op in BY_CHANNEL else 2 + unrolled)
        return gradients[which].reshape(uses.site.rows, *uses.site.shape), squares[:, which]


Operands = tuple[Tensor, Tensor, Tensor, Tensor, int]


def _by_position(uses: Uses) -> Operands:
    """Layer and RMS norm: `[B, entries, positions]`, statistics per position."""
    site, axis = uses.site, uses.axes[0]
    assert axis is not None
    x, g = (split(v, where, site.rows).reshape(site.rows, -1, site.size).transpose(1, 2)
            for v, where in ((uses.args[0], axis), (uses.grad, uses.out_axis)))
    return (x, g,
            *(_lengths(x, uses) if packet(uses.node) == "rms_norm" else _statistics(x, 1, uses)), 0)


def _by_group(uses: Uses) -> Operands:
    """Others: `[B, images * channels, positions]`, statistics per image and group; every channel
    may be one.
    """
    site, axis = uses.site, uses.axes[0]
    assert axis is not None
    x, g = (split(v.reshape(*v.shape[:2], -1), where, site.rows).flatten(1, 2)
            for v, where in ((uses.args[0], axis), (uses.grad, uses.out_axis)))
    rows, count, channels, positions = x.shape
    groups = channels if packet(uses.node) in BY_CHANNEL else int(
        uses.node.args[1])  # type: ignore[call-overload]
    if _in_eval(uses.node):
        mean, rstd = (s.repeat(count).expand(rows, -1) for s in _running(uses))
    else:
        mean, rstd = _statistics(x.reshape(rows, count * groups, -1), 2, uses)
    # an example's images add to the same channels: they become positions, each with its own
    # statistics
    if count > 1:
        mean, rstd = (s.reshape(rows, count, groups, 1,
                                1).expand(-1, -1, -1, channels // groups,
                                          positions).reshape(rows, count, channels, positions)
                      for s in (mean, rstd))
        x = (x.float() - mean) * rstd
        x, g = (v.transpose(1, 2).flatten(2) for v in (x, g))
        return x, g, x.new_zeros(rows, 1), x.new_ones(rows, 1), channels
    return x.squeeze(1), g.squeeze(1), mean, rstd, channels // groups


def _in_eval(node: fx.Node) -> bool:
    """True where running statistics are used instead of the input's."""
    op = packet(node)
    return op in BY_CHANNEL and (op not in {"instance_norm", "batch_norm"} or not node.args[5])


def _running(uses: Uses) -> tuple[Tensor, Tensor]:
    mean, variance = (uses.args[RUNNING + i].float() for i in (0, 1))
    return mean, (variance + _eps(uses.node)).rsqrt()


def _statistics(x: Tensor, dim: int, uses: Uses) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x.float(), dim, correction=0)
    return mean, (variance + _eps(uses.node)).rsqrt()


def _eps(node: fx.Node) -> float:
    place = EPS[packet(node)]
    return float(node.args[place]) if len(node.args) > place else 1e-5  # type: ignore[arg-type]


def _lengths(x: Tensor, uses: Uses) -> tuple[Tensor, Tensor]:
    """RMS norm's statistics: no mean is taken off; where no eps is given it is that of what is
    computed in.
    """
    weight = uses.node.args[3] if len(uses.node.args) > 3 else None
    eps = torch.finfo(torch.promote_types(uses.args[0].dtype,
                                          torch.float32)).eps if weight is None else weight
    square = x.float().square().mean(1)
    return torch.zeros_like(square), (square + eps).rsqrt()
