"""`view` -> `reshape`: a graph holds shapes, and the strides seen while it was traced are not those it will run with.

Kernels lay out their results as they like (a depthwise convolution of a transposed input keeps the transposition), and
otherwise for another number of examples or another device; a `view` that held for fake tensors then fails.
"""

from __future__ import annotations

import torch
from torch import fx

VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}


def forget_strides(graph: fx.GraphModule) -> None:
    """Rewrites every view of `graph` in place as a reshape, which is a view wherever one is possible."""
    for node in graph.graph.nodes:
        if node.target in VIEWS:
            node.target = torch.ops.aten.reshape.default
    graph.recompile()
