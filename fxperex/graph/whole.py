"""Operators that later stages know by name, so that capture leaves them whole.

A composite operator that nobody knows (`hstack`, `tensordot`, `triplet_margin_loss`) is taken apart
into those that are known.
"""

from __future__ import annotations

from typing import Any

import torch

from fxperex.graph.aten import packet_name

WHOLE: set[str] = set()


def leave_whole(*operators: str) -> None:
    """Adds names such as "aten.einsum" to those that capture does not take apart."""
    WHOLE.update(operators)


def is_composite(target: Any) -> bool:
    """Returns True for an operator that torch itself writes with others, for every device."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return isinstance(target, torch._ops.OpOverload) and has_kernel(
        target.name(), "CompositeImplicitAutograd")


def is_whole(target: Any) -> bool:
    """Returns True if `target` has a rule by its name or, as one that works entry by entry, by its
    tag.
    """
    return packet_name(target) in WHOLE or torch.Tag.pointwise in target.tags
