"""Composite operators without a rule -> the operators that torch itself writes them with.

Before: `hstack([a, b])`, which no rule knows. After: `cat([a, b], 1)`. What has a rule of its own
stays whole: `linear` and `conv2d` are sites, and `einsum` says more than the products it becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._decomp import get_decompositions

from fxperex.graph.whole import is_composite, is_whole

# Takes the batch's size as a number; as products it does not.
SIZED = get_decompositions([torch.ops.aten.affine_grid_generator])
aten = torch.ops.aten
# Without their check of values: a row with a matrix that has no inverse is not finite, and is
# dropped.
UNCHECKED: dict[Any, Callable[..., Any]] = {
    aten.linalg_inv.default: lambda x: aten.linalg_inv_ex(x)[0],
    aten.linalg_cholesky.default: lambda x, *, upper=False:
    aten.linalg_cholesky_ex(x, upper=upper)[0],
    aten.linalg_solve.default: lambda a, b, *, left=True: aten.linalg_solve_ex(a, b, left=left)[0],
}
# Torch's own kernels of recurrent cells split so; only views and versions differ.
SPLIT: dict[Any, Callable[..., Any]] = {
    aten.unsafe_split.Tensor: lambda x, size, dim=0: aten.split.Tensor(x, size, dim),
    aten.unsafe_split_with_sizes.default:
    lambda x, sizes, dim=0: aten.split_with_sizes.default(x, sizes, dim),
}


def taken_apart(graph: fx.GraphModule) -> dict[Any, Callable[..., Any]]:
    """Returns {operator: its decomposition} of all that have no rule; {} if `graph` holds none of
    them.

    All of them, for one may be made of another.
    """
    if not any(_unknown(node.target) for node in graph.graph.nodes):
        return SIZED
    # Not `target.decompose`: that is what a table replaces.
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    apart = {target: partial(target._op_dk, key) for target in _operators() if _unknown(target)}
    return SIZED | apart | UNCHECKED | SPLIT


def _unknown(target: Any) -> bool:
    return is_composite(target) and target.namespace == "aten" and any(
        "Tensor" in str(result.type) for result in target._schema.returns) and not is_whole(target)


def _operators() -> Iterator[torch._ops.OpOverload]:
    for qualified in torch._C._dispatch_get_all_op_names():
        space, _, name = qualified.partition("::")
        packet, _, overload = name.partition(".")
        if space == "aten" and not overload.endswith("out"):
            yield getattr(getattr(torch.ops.aten, packet), overload or "default")
