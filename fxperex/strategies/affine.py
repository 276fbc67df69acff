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
from fxperex.cost_model.sizes import outputs_bytes
from fxperex.costs import Cost
from fxperex.graph.aten import packet
from fxperex.kernels.device import interpreting
from fxperex.layers.joined import every_use
from fxperex.layers.norms import Norm
from fxperex.layers.shapes import split
from fxperex.registry import strategy
from fxperex.sites import Site, SiteValues
from fxperex.strategies.one_pass import INTERPRETED, OnePass, no_kernel

BY_POSITION = {"layer_norm", "rms_norm"}
BY_CHANNEL = {"instance_norm", "batch_norm",
              "_native_batch_norm_legit_no_training"}  # weight, bias, running mean and variance
EPS = {
    "layer_norm": 4, "group_norm": 4, "instance_norm": 7, "batch_norm": 7,
    "_native_batch_norm_legit_no_training": 6
}
RUNNING = 3  # place of the running mean; the variance follows


@strategy("affine", order=40)
class Affine(OnePass):
    def illegal(self, site: Site) -> str | None:
        if not every_use(site, Norm):
            return f"{site.op} of kind {site.kind} is no normalisation"
        if site.parts:
            return f"it serves one node at a time; this tensor has {len(site.parts)} uses"
        return no_kernel(site)

    def cost(self, site: Site) -> Cost:
        held = 4.0 * site.rows * site.size
        return Cost((), 2 * outputs_bytes(site) + 2 * held, held, 0.0,
                    INTERPRETED if interpreting() else 2)

    def gradients_and_squares(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        """As `OnePass`; scale and shift of a node come from one pass."""
        op, shared = packet(values.node), values.shared
        if "affine" not in shared:
            operands = _by_position(values) if op in BY_POSITION else _by_group(values)
            shared["affine"] = kernels.affine_gradients(*operands)
        *gradients, squares = shared["affine"]
        # `normalized_shape` stands among the flat arguments.
        unrolled = len(values.node.args[1]) - 1 if op in BY_POSITION else 0
        which = values.site.arg - (1 if op in BY_CHANNEL else 2 + unrolled)
        return gradients[which].reshape(values.site.rows, *values.site.shape), squares[:, which]


Operands = tuple[Tensor, Tensor, Tensor, Tensor, int]


def _by_position(values: SiteValues) -> Operands:
    """Layer and RMS norm: `[B, entries, positions]`, statistics per position."""
    site, axis = values.site, values.axes[0]
    assert axis is not None
    x, g = (split(v, where, site.rows).reshape(site.rows, -1, site.size).transpose(1, 2)
            for v, where in ((values.args[0], axis), (values.grad, values.out_axis)))
    rms = packet(values.node) == "rms_norm"
    mean, rstd = _lengths(x, values) if rms else _statistics(x, 1, values)
    return x, g, mean, rstd, 0


def _by_group(values: SiteValues) -> Operands:
    """All others: `[B, images * channels, positions]`, statistics per image and group.

    A group may be one channel.
    """
    site, axis = values.site, values.axes[0]
    assert axis is not None
    x, g = (split(v.reshape(*v.shape[:2], -1), where, site.rows).flatten(1, 2)
            for v, where in ((values.args[0], axis), (values.grad, values.out_axis)))
    rows, count, channels, positions = x.shape
    groups = channels if packet(values.node) in BY_CHANNEL else int(values.node.args[1])
    if _in_eval(values.node):
        mean, rstd = (s.repeat(count).expand(rows, -1) for s in _running(values))
    else:
        mean, rstd = _statistics(x.reshape(rows, count * groups, -1), 2, values)
    # An example's images add to the same channels: they become positions with statistics of their
    # own.
    if count > 1:
        full = (rows, count, channels, positions)
        mean, rstd = (s.reshape(rows, count, groups, 1, 1).expand(
            -1, -1, -1, channels // groups, positions).reshape(full) for s in (mean, rstd))
        x = (x.float() - mean) * rstd
        x, g = (v.transpose(1, 2).flatten(2) for v in (x, g))
        return x, g, x.new_zeros(rows, 1), x.new_ones(rows, 1), channels
    return x.squeeze(1), g.squeeze(1), mean, rstd, channels // groups


def _in_eval(node: fx.Node) -> bool:
    """Returns True if running statistics are used instead of the input's."""
    op = packet(node)
    return op in BY_CHANNEL and (op not in {"instance_norm", "batch_norm"} or not node.args[5])


def _running(values: SiteValues) -> tuple[Tensor, Tensor]:
    mean, variance = (values.args[RUNNING + i].float() for i in (0, 1))
    return mean, (variance + _eps(values.node)).rsqrt()


def _statistics(x: Tensor, dim: int, values: SiteValues) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x.float(), dim, correction=0)
    return mean, (variance + _eps(values.node)).rsqrt()


def _eps(node: fx.Node) -> float:
    place = EPS[packet(node)]
    return float(node.args[place]) if len(node.args) > place else 1e-5  # type: ignore[arg-type]


def _lengths(x: Tensor, values: SiteValues) -> tuple[Tensor, Tensor]:
    """Returns RMS norm's statistics: a mean of 0, and the inverse lengths.

    An eps that is not named is that of the dtype computed in.
    """
    eps_argument = values.node.args[3] if len(values.node.args) > 3 else None
    wide = torch.promote_types(values.args[0].dtype, torch.float32)
    eps = torch.finfo(wide).eps if eps_argument is None else eps_argument
    square = x.float().square().mean(1)
    return torch.zeros_like(square), (square + eps).rsqrt()
