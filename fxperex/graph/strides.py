"""`view` -> `reshape`: a graph holds shapes, and the strides seen while it was traced are not those
it will run with.

Kernels lay out their results as they like (a depthwise convolution of a transposed input keeps the
transposition), and otherwise for another number of examples or another device; a `view` that held
for fake tensors then fails.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, fx, nn

VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}


def forget_strides(graph: fx.GraphModule) -> int:
    """Rewrites every view of `graph` in place as a reshape, which is a view if one is possible.
    Returns how many there were.
    """
    views = [node for node in graph.graph.nodes if node.target in VIEWS]
    for node in views:
        node.target = torch.ops.aten.reshape.default
    graph.recompile()
    return len(views)


def distinct(model: nn.Module, batch: tuple[Tensor, ...]) -> int:
    """Returns a prime number of examples that divides no dimension of an example, a parameter or a
    buffer.

    Export fixes a symbolic size where a comparison of strides holds for the size it was shown, if
    only because there are as many examples as, say, positions. No product of other dimensions is a
    multiple of this one.
    """
    shapes = [x.shape[1:]
              for x in batch] + [t.shape for t in (*model.parameters(), *model.buffers())]
    sizes = {size for shape in shapes for size in shape}
    primes = (n for n in itertools.count(5, 2) if all(n % k for k in range(3, n, 2)))
    return next(n for n in primes if all(size % n for size in sizes if size))
