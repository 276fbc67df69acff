"""What a compiled step relies on in the user's model, and the error that says what of it has
changed.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fxperex.errors import StateError

State = dict[str, dict[str, Any]]


def state(model: nn.Module) -> State:
    """Returns which parameters there are, where, trainable or not; which buffers; which modules
    train.
    """
    named = {n: (id(p), tuple(p.shape), p.dtype, p.device, p.requires_grad)
             for n, p in model.named_parameters(remove_duplicate=False)}
    buffers = {
        n: (tuple(b.shape), b.dtype, b.device)
        for n, b in model.named_buffers(remove_duplicate=False)
    }
    modes = {n: m.training for n, m in model.named_modules()}
    return {"parameter": named, "buffer": buffers, "training mode of module": modes}


def compare(before: State, after: State) -> None:
    """Raises StateError that names the difference of two states."""
    for what, items in before.items():
        for name in [*items, *(n for n in after[what] if n not in items)]:
            if items.get(name) != after[what].get(name):
                raise StateError(f"{what} {name!r} changed since transform: {items.get(name)} -> "
                                 f"{after[what].get(name)}. Transform again; the compiled step "
                                 "belongs to the model as it was")
