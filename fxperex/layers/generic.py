"""Everything else: any node with a parameter, differentiated one example at a time by `vmap` or
`multi`.
"""

from __future__ import annotations

import torch
from torch import fx

from fxperex.contract import LayerKind, Sample
from fxperex.registry import LAST, layer_kind


@layer_kind("generic", order=LAST)
class Generic(LayerKind):
    complex_numbers = True

    def claims(self, node: fx.Node, arg: int) -> bool:
        return True

    def samples(self) -> list[Sample]:
        from fxperex.testing import Bare

        randn = torch.randn
        return [
            (torch.nn.PReLU(4), (randn(3, 4, 5),)),
            (Bare(lambda p, ids: p[ids], (7, 3)), (torch.randint(7, (4, 5)),)),
            (Bare(lambda p, x: torch.cosine_similarity(x, p, 2), (4, 5)), (randn(3, 4, 5),)),
            (Bare(lambda p, x: torch.einsum("bti,bti,i->bt", x, x.sin(), p), (5,)),
             (randn(3, 4, 5),)),
        ]
