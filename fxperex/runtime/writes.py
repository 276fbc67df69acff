"""The end of a step: gradients added and buffers replaced, all of them or none."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fxperex.errors import StateError


def write(gradients: Iterable[tuple[str, nn.Parameter, Tensor]],
          buffers: Iterable[tuple[str, Tensor, Tensor]]) -> None:
    """Adds each (name, parameter, sum) to the parameter's `.grad`, copies each (name, buffer,
    value) into the buffer.

    Raises StateError where one of them cannot be written (a sparse, foreign or expanded `.grad`);
    then none is.
    """
    undo: list[tuple[nn.Parameter | None, Tensor | None, Tensor | None]] = []
    name = ""
    try:
        with torch.no_grad():
            # Every conversion that might not fit in memory comes before the first write.
            sums = [(n, p, value.to(p.dtype)) for n, p, value in gradients]
            for n, buffer, value in buffers:
                name = n
                before = buffer.clone()
                buffer.copy_(value)
                undo.append((None, buffer, before))
            # Adding to ordinary gradients cannot fail: only with others is there a copy to go back
            # to.
            careful = not all(_ordinary(p) for _, p, _ in sums)
            for n, p, value in sums:
                name = n
                old = p.grad
                copy = old.clone() if careful and old is not None else None
                p.grad = value if old is None else old.add_(value)
                undo.append((p, old, copy))
    except BaseException as error:
        _undo(undo)
        if isinstance(error, RuntimeError) and name:
            raise StateError(f"the step's result cannot be written to {name!r}: {error}. Nothing "
                             "was written. Set its `.grad` to None, or to an ordinary tensor of "
                             "its own shape, dtype and device") from error
        raise


def _ordinary(p: nn.Parameter) -> bool:
    """Returns True for a parameter without a gradient, or with a dense one of its own shape, dtype
    and device.
    """
    grad = p.grad
    if grad is None:
        return True
    expanded = grad.layout != torch.strided or any(
        stride == 0 and size > 1 for size, stride in zip(grad.shape, grad.stride(), strict=True))
    alike = (grad.shape, grad.dtype, grad.device) == (p.shape, p.dtype, p.device)
    return alike and not expanded and not grad.is_inference()


def _undo(written: list[tuple[nn.Parameter | None, Tensor | None, Tensor | None]]) -> None:
    with torch.no_grad():
        for parameter, target, before in reversed(written):
            if target is not None and before is not None:
                target.copy_(before)
            if parameter is not None:
                parameter.grad = target
