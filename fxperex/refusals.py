"""What export would accept in silence, or refuse in torch's words: the reasons, in this library's.

A captured program has ATen's own backward and runs none of the model's Python, so whatever a forward pass does outside
ATen (a backward of its own, numbers kept on modules, values read out of tensors) would be lost without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

from fxperex.errors import CaptureError, CoverageError, MutationError
from fxperex.lines import source_line

STATE = (int, float, str)


def no_custom_backward(loss: Any) -> Any:
    """Returns `loss`, the output of a traced forward. Raises CoverageError for a torch.autograd.Function behind it."""
    todo = [t.grad_fn for t in pytree.tree_leaves(loss) if isinstance(t, Tensor)]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        own = getattr(node, "_forward_cls", None) if isinstance(node, BackwardCFunction) else None
        if own is not None and own.__module__ != "torch._library.autograd":  # a registered op takes its backward with it
            raise CoverageError(f"the model uses the torch.autograd.Function {own.__module__}.{own.__qualname__}, whose backward "
                                "is Python that a captured graph does not hold: its gradients would be others. Write it with "
                                "torch operations, or .eval() and freeze that part (torch.utils.checkpoint: use_reentrant=False)")
        todo += [n for n, _ in node.next_functions]
    return loss


def no_writes(source: Any) -> None:
    """Raises MutationError where an exported program writes into a parameter or its input; buffers are the proof's to judge."""
    made = {n.name: n for n in source.graph_module.graph.nodes}
    for item in source.graph_signature.output_specs:
        if item.kind.name in {"PARAMETER_MUTATION", "USER_INPUT_MUTATION"}:
            what = "parameter" if item.kind.name == "PARAMETER_MUTATION" else "input"
            raise MutationError(f"the forward pass writes into its {what} {item.target.removeprefix('model.')!r} in place at "
                                f"{source_line(made[item.arg.name])}; the step writes nothing but .grad. Use an operation that "
                                "returns a new tensor (x * 2 for x.mul_(2), inplace=False), and no max_norm of an embedding, "
                                "which rewrites the rows that a batch looks up")


@contextlib.contextmanager
def same_numbers(model: nn.Module) -> Iterator[None]:
    """Raises CaptureError, all put back, where forward changes a number or string that a module holds."""
    before = {m: {k: v for k, v in vars(m).items() if isinstance(v, STATE)} for m in model.modules()}
    yield
    changed = [(path, m, k) for path, m in model.named_modules() for k, v in before.get(m, {}).items() if vars(m).get(k) != v]
    for _, m, k in changed:
        vars(m)[k] = before[m][k]
    if changed:
        path, _, name = changed[0]
        raise CaptureError(f"forward changes {path + '.' if path else ''}{name}: Python state, which the step would hold at its "
                           "first value. Make it a buffer that does not depend on the batch, or leave it out of forward")
