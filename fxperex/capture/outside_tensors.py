"""Trainable tensors that are no parameters of the model, where a forward or a loss uses them.

A captured program would hold them as constants: a temperature of the loss, a weight kept in a plain
attribute, a tensor computed when the module was built would never train, without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxperex.capture.source_lines import is_users
from fxperex.errors import CoverageError


class NothingOutside(TorchFunctionMode):
    """Raises CoverageError, while a program is traced, for a real tensor with gradient that meets
    the traced ones.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled() and _trains(value):
            outside = next((t for t in pytree.tree_leaves((args, kwargs or {}))
                            if _trains(t) and not is_fake(t)), None)
            if outside is not None:
                raise CoverageError(f"a tensor {list(outside.shape)} that requires a gradient is "
                                    f"used at {_place()} and is no parameter of the model; its "
                                    "gradient would be lost. Make it an nn.Parameter of the model "
                                    "(also one that the loss uses), or .detach() it")
        return value


def _trains(value: Any) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in pytree.tree_leaves(value))


def _place() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
