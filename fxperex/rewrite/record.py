"""A function on fake tensors -> its graph: what `make_fx` gives, in about half of its time.

`make_fx` follows whatever a program may do: symbolic sizes, constants, subclasses of tensors. A
step does none of it as a rule. What this recorder does not know it leaves to `make_fx`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_impls import fast_detach
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from fxperex.graph.provenance import into

aten = torch.ops.aten
SIZES = {aten.size.default, aten.stride.default, aten.storage_offset.default}
# Constants, numbers read from tensors, and views that change their input are for `make_fx`.
UNKNOWN = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape,
           torch.Tag.inplace_view)


class _Unknown(Exception):
    """The function does what this recorder does not follow."""


class _Recorder(TorchDispatchMode):
    """Adds a node to `graph` for each operation, and remembers which node made which tensor."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.graph, self.unknown = graph, False
        # Weakly: autograd copies what something else holds, and a copy is a node.
        self.made_by = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if not _known(func):
            self.give_up(str(func))
        if func not in SIZES and _composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func is aten.detach.default:
            func = aten.alias.default  # as make_fx does: no gradient is asked for a second time
        node = self.graph.create_node(
            "call_function", func, *map_aggregate((args, kwargs), self.plain),
            name=func.overloadpacket.__name__)
        value = func(*args, **kwargs)
        self.keep(node, value)
        return value

    def give_up(self, reason: str) -> None:
        """Raises what `record` takes for a sign to leave the function to `make_fx`."""
        self.unknown = True
        raise _Unknown(reason)

    def plain(self, argument: Any) -> Any:
        """Returns what stands for an argument in the graph."""
        return self.node(argument) if isinstance(argument, Tensor) else argument

    def node(self, x: Tensor) -> fx.Node:
        """Returns the node that made `x`."""
        if (node := self.made_by.get(x)) is None:
            self.give_up("a tensor from elsewhere")
        return node

    def keep(self, node: fx.Node, value: Any) -> None:
        """Enters `value` as what `node` makes, and its parts as what their own nodes take of it."""
        if isinstance(value, FakeTensor):
            node.meta["val"] = _detached(value)
            self.made_by[value] = node
        elif isinstance(value, list | tuple):
            node.meta["val"] = pytree.tree_map_only(FakeTensor, _detached, value)
            for i, part in enumerate(value):
                item = self.graph.create_node("call_function", operator.getitem, (node, i))
                self.keep(item, part)
        elif value is not None and not isinstance(value, bool | int | float):
            self.give_up(type(value).__name__)


def record(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule | None:
    """Returns the graph of `function(*inputs)`, with fake values in `meta["val"]`; None if it does
    what only `make_fx` follows. Within the mode of the fake `inputs`.
    """
    graph = fx.Graph()
    recorder = _Recorder(graph)
    for i, x in enumerate(inputs):
        recorder.keep(graph.placeholder(f"arg{i}_1"), x)
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a cast that is remembered is in no graph
    try:
        with into(graph), recorder:
            result = function(*inputs)
        graph.output(pytree.tree_map_only(Tensor, recorder.node, result))
    except Exception:
        if not recorder.unknown:
            raise
        return None
    finally:
        torch.set_autocast_cache_enabled(cached)
    return fx.GraphModule({}, graph)


def _detached(x: FakeTensor) -> Tensor:
    """Returns `x` without its history, with its memory."""
    return fast_detach(x.fake_mode, x)


@functools.cache
def _known(func: Any) -> bool:
    return (isinstance(func, torch._ops.OpOverload) and "lift" not in str(func)
            and not any(tag in func.tags for tag in UNKNOWN))


@functools.cache
def _composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd")
