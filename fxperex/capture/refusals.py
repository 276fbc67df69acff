"""Refusals of code that torch.export accepts in silence, and that a captured program would lose.

A captured program has ATen's own backward and runs none of the model's Python. It would lose a
backward of the user's own, hooks on gradients, and numbers that the forward changes on modules or
in globals.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxperex.capture.python_state import DRAWS, watched
from fxperex.capture.source_lines import is_users, source_line
from fxperex.errors import CaptureError, CoverageError, MutationError


def no_custom_backward(loss: Any) -> Any:
    """Returns `loss`, the output of a traced forward. Raises CoverageError for a
    torch.autograd.Function behind it.
    """
    todo = [t.grad_fn for t in pytree.tree_leaves(loss) if isinstance(t, Tensor)]
    visited: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        own = getattr(node, "_forward_cls", None) if isinstance(node, BackwardCFunction) else None
        # a registered op takes its backward with it
        if own is not None and own.__module__ != "torch._library.autograd":
            raise CoverageError("the model uses the torch.autograd.Function "
                                f"{own.__module__}.{own.__qualname__}, whose backward is Python "
                                "that a captured graph does not hold: its gradients would be "
                                "others. Write it with torch operations, or .eval() and freeze "
                                "that part (torch.utils.checkpoint: use_reentrant=False)")
        todo += [n for n, _ in node.next_functions]
    return loss


def refuse_input_writes(source: Any) -> None:
    """Raises MutationError where an exported program writes into a parameter or its input; buffers
    are the proof's to judge.
    """
    nodes = {n.name: n for n in source.graph_module.graph.nodes}
    for item in source.graph_signature.output_specs:
        if item.kind.name in {"PARAMETER_MUTATION", "USER_INPUT_MUTATION"}:
            what = "parameter" if item.kind.name == "PARAMETER_MUTATION" else "input"
            raise MutationError(f"the forward pass writes into its {what} "
                                f"{item.target.removeprefix('model.')!r} in place at "
                                f"{source_line(nodes[item.arg.name])}; the step writes nothing "
                                "but .grad. Use an operation that returns a new tensor (x * 2 for "
                                "x.mul_(2), inplace=False), and no max_norm of an embedding, "
                                "which rewrites the rows that a batch looks up")


@contextlib.contextmanager
def refuse_state_changes(model: nn.Module, run: Any) -> Iterator[None]:
    """Raises CaptureError, all put back, if forward changes Python state or draws random numbers
    outside torch."""
    before = watched(model, run)
    yield
    changed = before.changed(watched(model, run))
    if changed and changed[0].startswith(DRAWS):
        raise CaptureError(f"forward changes {changed[0]}: it draws random numbers outside torch, "
                           "and the step would use the first draw for ever. Draw for every "
                           "example with torch: torch.rand(len(x), 1), torch.where")
    if changed:
        raise CaptureError(f"forward changes {changed[0]}: Python state, which the step would "
                           "hold at its first value. Make it a buffer that does not depend on the "
                           "batch, written between steps, or leave it out of forward")


def same_constants(one: Any, two: Any) -> None:
    """Raises CaptureError if two Programs of one model hold different constants:
    `torch.tensor(float(len(x)))`."""
    for name, value in one.constants.items():
        twin = two.constants.get(name)
        if twin is None or not _equal(value, twin):
            node = next(n for n in one.nodes if n.name == name)
            raise CaptureError(f"a constant at {source_line(node)} is another with {one.rows} "
                               f"examples than with {two.rows}: it holds the batch size, so a "
                               "gradient would depend on how many examples there are. Make it of "
                               "numbers that do not depend on the batch, such as torch.tensor(3.0)")


def _equal(one: Tensor, two: Tensor) -> bool:
    if one is two or one.shape != two.shape or one.dtype != two.dtype or one.is_meta or isinstance(
            one, FakeTensor):
        return one.shape == two.shape and one.dtype == two.dtype
    return bool(((one == two) | ((one != one) & (two != two))).all())


@contextlib.contextmanager
def nothing_unseen(model: nn.Module, run: Any) -> Iterator[None]:
    """Within it forward is traced; raises for hooks on its tensors, Python state and random numbers
    outside torch."""
    with refuse_state_changes(model, run), NoHooks():
        yield


def no_backward_hooks(model: nn.Module) -> None:
    """Raises CoverageError if the model's modules or parameters have hooks on gradients."""
    hooks = torch.nn.modules.module
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise _hooked(f"module {name or type(module).__name__!r} has a backward hook")
    if hooks._global_backward_hooks or hooks._global_backward_pre_hooks:
        raise _hooked("all modules have a global backward hook")
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise _hooked(f"parameter {name!r} has a hook on its gradient")


class NoHooks(TorchFunctionMode):
    """Within it a hook on a tensor's gradient raises CoverageError, with the user's line."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in {"register_hook", "register_post_accumulate_grad_hook"}:
            frames = [f for f in traceback.extract_stack() if is_users(f.filename)]
            lines = [f' at {f.filename}:{f.lineno} "{f.line}"' for f in frames[-1:]]
            raise _hooked(f"forward calls {func.__name__}{''.join(lines)}")
        return func(*args, **(kwargs or {}))


def _hooked(what: str) -> CoverageError:
    return CoverageError(f"{what}: Python in the backward pass, which a captured graph does not "
                         "hold, so gradients would be others. Remove it, or write it as a part of "
                         "forward: h * 0.1 + h.detach() * 0.9 has a tenth of the gradient of h")
