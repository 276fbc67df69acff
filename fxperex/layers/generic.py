"""Everything else: any node with a parameter, differentiated one example at a time by `vmap` or
`multi`.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxperex.registry import BatchAxis, Uses, kinds, layer_kind


@layer_kind("generic")
class Generic:
    ops = ()

    def claims(self, node: fx.Node, arg: int) -> bool:
        return True

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> None:
        return None

    def samples(self) -> list[tuple[torch.nn.Module, tuple[Tensor, ...]]]:
        from fxperex.testing import Bare

        return [(torch.nn.PReLU(4), (torch.randn(3, 4, 5), )),
                (Bare(lambda p, ids: p[ids], (7, 3)), (torch.randint(7, (4, 5)), )),
                (Bare(lambda p, x: torch.cosine_similarity(x, p, 2), (4, 5)), (torch.randn(3, 4,
                                                                                           5), )),
                (Bare(lambda p, x: torch.einsum("bti,bti,i->bt", x, x.sin(), p),
                      (5, )), (torch.randn(3, 4, 5), ))]


def single(uses: Uses, values: list[object], weight: Tensor) -> Tensor:
    """Returns the node's (first) output for one example's `values`, with `weight` in the site's
    place.

    A kind whose output depends on the weight in a simpler way than the whole node may give that
    part alone (`single`).
    """
    kind = kinds()[uses.site.kind]
    if hasattr(kind, "single"):
        return kind.single(uses, weight)
    args = list(values)
    args[uses.site.arg] = weight
    return uses.call(args)
