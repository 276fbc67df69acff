"""The affine part of layer, RMS, group, instance and (in eval mode) batch normalisation.

`y = xhat * w + b`: `grad_b w = sum_t g_bt xhat_bt`, `grad_b b = sum_t g_bt`; `xhat` is the same
operation run without its affine part. Of group norm neither is formed: its own backward of one
image with `N C` channels gives every example's sums, `rstd (sum_t g x - mean sum_t g)`, in one
pass; where positions are few, plain products do so sooner.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxperex.contract import ClosedForm, Sample
from fxperex.graph.aten import packet
from fxperex.layers.shapes import unbroadcast
from fxperex.registry import layer_kind
from fxperex.sites import Site, SiteValues

# op -> (place of the weight, place of the bias or None)
PLACES: dict[str, tuple[int, int | None]] = {
    "layer_norm": (2, 3), "rms_norm": (2, None), "group_norm": (2, 3), "instance_norm": (1, 2),
    "batch_norm": (1, 2), "_native_batch_norm_legit_no_training": (1, 2)
}


# positions below which group norm's own backward, a loop over channels, is slower than products
FEW = 8


@layer_kind("norm", order=80)
class Norm(ClosedForm):
    def claims(self, node: fx.Node, arg: int) -> bool:
        return arg == self._flat(node, 0) or arg == self._flat(node, 1)

    def _flat(self, node: fx.Node, which: int) -> int | None:
        """Place of weight (0) or bias (1) among the flat arguments, which unroll
        `normalized_shape`.
        """
        place = PLACES.get(packet(node), (None, None))[which]
        if place is None:
            return None
        return place + sum(len(a) - 1 for a in node.args[:place] if isinstance(a, list | tuple))

    def per_example(self, values: SiteValues) -> Tensor:
        site, g = values.site, values.grad
        if packet(values.node) == "group_norm" and values.out_axis.dim == 0:
            return self._of_groups(values)
        if site.arg == self._flat(values.node, 0):
            args = list(values.args)
            for which in (0, 1):
                place = self._flat(values.node, which)
                if place is not None and place < len(args):
                    args[place] = None
            scaled = values.call(args)
            g = g * (scaled if isinstance(scaled, Tensor) else scaled[0])
        trailing = packet(values.node) in {"layer_norm", "rms_norm"}
        shape = site.shape if trailing else (*site.shape, *(1,) * (g.dim() - 2))
        return unbroadcast(g, values.out_axis, shape, site.rows).reshape(site.rows, *site.shape)

    def _of_groups(self, values: SiteValues) -> Tensor:
        """From `aten.native_group_norm_backward`.

        The forward operation is the program's own: `remove_redundant` leaves one of the two.
        """
        x, groups, weight, bias = values.args[:4]
        eps = values.args[4] if len(values.args) > 4 else 1e-5
        images, channels = x.shape[:2]
        positions = x[:1, :1].numel()
        _, mean, rstd = torch.ops.aten.native_group_norm(x, weight, bias, images, channels,
                                                         positions, groups, eps)
        g, scale = values.grad, values.site.arg == self._flat(values.node, 0)
        if positions < FEW:
            xhat = (x.reshape(images, groups, -1) - mean[..., None]) * rstd[..., None]
            terms = g * xhat.reshape(x.shape) if scale else g
            sums = terms.reshape(images, channels, positions).sum(2)
        else:
            g, x = (v.reshape(1, images * channels, positions) for v in (g, x))
            # Of the weight's shape alone: what is asked for does not read it.
            weights = None if weight is None else weight.new_zeros(images * channels)
            _, *both = torch.ops.aten.native_group_norm_backward(
                g, x, mean.reshape(1, -1), rstd.reshape(1, -1), weights, 1, images * channels,
                positions, images * groups, [False, True, True])
            sums = both[0 if scale else 1].reshape(images, channels)
        return unbroadcast(sums, values.out_axis, values.site.shape, values.site.rows)

    def output_passes(self, site: Site) -> int:
        return 1 if site.op.endswith("group_norm") else super().output_passes(site)

    def samples(self) -> list[Sample]:
        from fxperex.testing import Call

        nn = torch.nn
        return [(nn.LayerNorm(5), (torch.randn(3, 4, 5), )),
                (nn.LayerNorm((4, 5), bias=False), (torch.randn(3, 4, 5), )),
                (nn.RMSNorm(5), (torch.randn(3, 4, 5), )),
                (nn.GroupNorm(2, 4), (torch.randn(3, 4, 5, 2), )),
                (nn.GroupNorm(1, 3), (torch.randn(3, 3, 6), )),
                (nn.GroupNorm(2, 6), (torch.randn(3, 6), )),
                (Call(lambda m, x: m(x.flatten(0, 1)).unflatten(0, (-1, 2)),
                      nn.GroupNorm(2, 4)), (torch.randn(3, 2, 4, 5), )),
                (Call(lambda m, x: F.group_norm(x, 2, None, m.bias),
                      nn.GroupNorm(2, 4)), (torch.randn(3, 4, 5), )),
                (nn.InstanceNorm1d(3, affine=True), (torch.randn(3, 3, 6), )),
                (nn.InstanceNorm2d(3, affine=True), (torch.randn(3, 3, 4, 2), )),
                (nn.BatchNorm2d(3).eval(), (torch.randn(4, 3, 2, 2), ))]
