"""Checks of what the user hands to the public functions: its kind, before anything is traced. Each
raises an FxperexError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxperex.capture.program import Capture
from fxperex.capture.source_lines import source_line
from fxperex.errors import ConfigError, ShapeError
from fxperex.plan.plan import Plan
from fxperex.runtime.batches import check_dense

# Operations whose operands must be of one dtype when they run; on values without storage they do
# not say so.
PRODUCTS = {
    f"aten.{name}"
    for name in ("linear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "addmv", "mv",
                 "dot", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d",
                 "conv_transpose2d", "conv_transpose3d", "scaled_dot_product_attention", "bilinear",
                 "einsum")
}


def check_batch(batch: object) -> torch.device:
    """Returns the device of `batch`. Raises ShapeError unless it is a tuple of dense tensors with
    as many examples each.
    """
    if not isinstance(batch, tuple) or not batch or not all(isinstance(x, Tensor) for x in batch):
        raise ShapeError(
            "batch must be a tuple of tensors, examples first; got "
            f"{type(batch).__name__}" +
            (f" of {[type(x).__name__ for x in batch]}" if isinstance(batch, tuple
                                                                      | list) else "") +
            (". Hand over its values, tuple(batch.values()), and say in "
             "forward=... what each is" if isinstance(batch, Mapping) else ""))
    for i, x in enumerate(batch):
        check_dense(x, f"batch[{i}]")
    if any(x.dim() == 0 for x in batch):
        raise ShapeError("a batch tensor has no dimensions; every tensor needs the examples in "
                         "dimension 0")
    if len({len(x) for x in batch}) != 1:
        raise ShapeError("batch tensors have different numbers of examples: "
                         f"{[list(x.shape) for x in batch]}. A batch of graphs in flat form has "
                         "no place for each example: pad them, with one adjacency matrix each")
    if len({x.device for x in batch}) != 1:
        raise ShapeError("batch tensors are on different devices: "
                         f"{[str(x.device) for x in batch]}")
    return batch[0].device


def check_strategy(strategy: object) -> None:
    """Raises ConfigError unless `strategy` is a name, {glob: name} or a Plan."""
    named = isinstance(strategy, Mapping) and all(
        isinstance(x, str) for pair in strategy.items() for x in pair)
    if not isinstance(strategy, str | Plan) and not named:
        raise ConfigError("strategy must be 'auto', 'measure', a strategy's name, {glob of "
                          "parameter names: name} or a Plan; "
                          f"got {strategy!r}")


def check_callable(value: object, name: str) -> None:
    """Raises ConfigError unless `value` is None or can be called."""
    if value is not None and not callable(value):
        raise ConfigError(f"{name} must be a function; got {value!r}")


def check_dtypes(capture: Capture) -> None:
    """Raises ShapeError for a product of two dtypes, which would fail when it runs."""
    for node in capture.main.nodes:
        if node.op == "call_function" and str(getattr(node.target, "overloadpacket",
                                                      "")) in PRODUCTS:
            dtypes = [
                v.dtype
                for v in map(_value, node.all_input_nodes)
                if isinstance(v, Tensor) and v.is_floating_point()
            ]
            if len(set(dtypes)) > 1:
                batch = [f"batch[{k}] is "
                         f"{_value(n).dtype}" for n in capture.main.nodes if n.op == "placeholder"
                         for kind, k in [capture.inputs[n.name]] if kind == "batch"]
                raise ShapeError(f"{node.target} at {source_line(node)} takes "
                                 f"{' and '.join(map(str, dict.fromkeys(dtypes)))}; "
                                 f"{', '.join(batch)}. Convert the batch to the model's dtype, or "
                                 "use autocast=")


def _value(node: Any) -> Any:
    return next(iter(pytree.tree_leaves(node.meta.get("val"))), None)
