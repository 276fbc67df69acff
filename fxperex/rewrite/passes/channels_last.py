"""Images as they come -> images with their channels last, from the first node on.

On a CPU some networks run faster on that layout and others slower, so the compiler measures both.
Every operation hands its input's layout on, and a step graph holds no strides
(`strides.forget_strides`), so one copy of each image is all there is to add. On a GPU Inductor lays
out convolutions itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxperex.graph.step_graph import copied

CONVOLUTION, COPY = torch.ops.aten.convolution.default, torch.ops.aten.clone.default


def channels_last(graph: fx.GraphModule, fixed: Sequence[bool]) -> fx.GraphModule | None:
    """Returns a copy of `graph` that lays its images out channels last; None where it convolves no
    images `[B, C, H, W]`.

    fixed: for each input, whether it is a parameter or a buffer, which keeps its layout. `graph`
    stays as it was.
    """
    if not any(n.target is CONVOLUTION and n.meta["val"].dim() == 4 for n in graph.graph.nodes):
        return None
    new = copied(graph)
    inputs = new.graph.find_nodes(op="placeholder")
    images = [
        n for n, stays in zip(inputs, fixed, strict=False) if not stays and n.meta["val"].dim() == 4
    ]
    with new.graph.inserting_after(inputs[-1]):
        for image in images:
            laid = new.graph.call_function(COPY, (image,), {"memory_format": torch.channels_last})
            image.replace_all_uses_with(laid,
                                        delete_user_cb=lambda user, laid=laid: user is not laid)
    new.recompile()
    return new if images else None
