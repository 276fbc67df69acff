"""A model whose parameters lie on several processes, for a while as it was before it was sharded:
plain parameters, its own classes, no hooks of fully_shard. All is put back at the end.

The stand-ins have no values: a capture reads shapes. They take memory only if somebody writes them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import nn

from fxperex.ranks.shards import is_sharded


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is a plain module with parameters of the same shapes, without values."""
    undo: list[Callable[[], None]] = []
    stand_ins: dict[int, nn.Parameter] = {}
    try:
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                undo.append(_replaced(hooks, {k: h for k, h in hooks.items() if not _ours(h)}))
            undo.append(_class_of(module))
            held = {n: _stand_in(p, stand_ins) for n, p in module._parameters.items()}
            undo.append(_replaced(module._parameters, held))
        yield
    finally:
        for put_back in reversed(undo):
            put_back()


def _stand_in(parameter: nn.Parameter | None,
              stand_ins: dict[int, nn.Parameter]) -> nn.Parameter | None:
    if parameter is None or not is_sharded(parameter):
        return parameter
    if id(parameter) not in stand_ins:
        device = parameter.to_local().device  # type: ignore[operator]
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        stand_ins[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    return stand_ins[id(parameter)]


def _replaced(held: MutableMapping[Any, Any], values: dict[Any, Any]) -> Callable[[], None]:
    """Puts `values` in the place of what `held` holds; returns what puts that back."""
    before = dict(held)

    def put(entries: dict[Any, Any]) -> None:
        held.clear()
        held.update(entries)

    put(values)
    return lambda: put(before)


def _class_of(module: nn.Module) -> Callable[[], None]:
    """Gives a module that fully_shard has subclassed its own class; returns what undoes it."""
    sharding, before = sys.modules.get("torch.distributed.fsdp"), type(module)
    if sharding is None or not isinstance(module, sharding.FSDPModule):
        return lambda: None
    module.__class__ = before.__bases__[1]

    def put_back() -> None:
        module.__class__ = before

    return put_back


def _ours(hook: Any) -> bool:
    """True for a hook of fully_shard."""
    inner = getattr(hook, "__wrapped__", hook)
    owners = [type(getattr(h, "__self__", None)).__module__ for h in (hook, inner)]
    modules = [getattr(h, "__module__", "") or "" for h in (hook, inner)]
    return any("_fully_shard" in name for name in (*owners, *modules))
