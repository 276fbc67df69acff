"""Transposed convolutions in one to three dimensions: stride, padding, output padding, dilation,
groups.

`y[o, s t + d k - p] += x[c,t] w[c,o,k]`, so `dL/dw[c,o,k] = sum_t x[c,t] g[o, s t + d k - p]`: the
weight gradient of the convolution that takes y back to x. Input and output gradient change places:
`a [B,G,T,D]` are patches of the output gradient (D = O/G * |K|), `g [B,G,T,P]` the inputs (P = C/G,
T the input's positions).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from fxperex.contract import Sample
from fxperex.layers.conv import Conv
from fxperex.layers.windows import _T, Geometry, each, geometry, options
from fxperex.registry import layer_kind


@layer_kind("conv_transpose", order=40)
class ConvTranspose(Conv):
    ops = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

    def geometry(self, node: fx.Node) -> Geometry:
        # The windows of the output end where the input does; output padding within a stride is lost
        # to the floor anyway.
        shape = geometry(node)
        extra = each(options(node)["output_padding"], len(shape.kernel))
        after = (p - e if e >= s else p
                 for p, e, s in zip(shape.after, extra, shape.stride, strict=True))
        return replace(shape, after=tuple(after))

    def ordered(self, x: _T, g: _T) -> tuple[_T, _T]:
        return g, x

    def samples(self) -> list[Sample]:
        from fxperex.testing import Bare, Call

        nn, randn = torch.nn, torch.randn
        return [
            (nn.ConvTranspose1d(2, 4, 3), (randn(3, 2, 5), )),
            (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1,
                                groups=2), (randn(3, 4, 5), )),
            # Output padding beyond the stride, which only a dilation allows.
            (nn.ConvTranspose1d(2, 3, 2, stride=1, padding=1, output_padding=2,
                                dilation=3), (randn(3, 2, 4), )),
            (nn.ConvTranspose2d(3, 4, (3, 2), stride=(1, 3), output_padding=(0, 2), dilation=(2, 1),
                                bias=False), (randn(3, 3, 4, 3), )),
            (nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4), (randn(3, 4, 2, 3), )),
            (nn.ConvTranspose2d(3, 5, 4), (randn(4, 3, 1,
                                                 1), )),  # the head of a generator: one position
            (nn.ConvTranspose3d(2, 4, 2, stride=(1, 2, 1), padding=(0, 1, 0),
                                output_padding=(0, 1, 0), groups=2), (randn(2, 2, 2, 3, 2), )),
            (nn.ConvTranspose2d(9, 3, 2), (randn(2, 9, 2,
                                                 1), )),  # fewer positions than channels in
            # Taps whose every output is cut away by the padding.
            (nn.ConvTranspose1d(2, 3, 5, padding=3), (randn(3, 2, 3), )),
            (Call(lambda m, x: m(x.flatten(0, 1)).unflatten(0, (-1, 2)),
                  nn.ConvTranspose2d(3, 4, 3)), (randn(3, 2, 3, 3, 2), )),
            (Call(lambda m, x: m(m(x).tanh()), nn.ConvTranspose1d(3, 3, 2,
                                                                  stride=2)), (randn(3, 3, 3), )),
            (nn.ConvTranspose2d(3, 8, 3, stride=2, output_padding=1), (randn(3, 3, 3, 2), )),
            # One weight down and up again, as tied autoencoders have it.
            (Bare(lambda p, x: torch.conv_transpose1d(torch.conv1d(x, p).tanh(), p),
                  (4, 2, 3)), (randn(3, 2, 6), )),
            (Bare(lambda p, x: torch.conv_transpose1d(torch.conv1d(x, p).tanh(), p),
                  (4, 9, 3)), (randn(3, 9, 6), )),
        ]
