"""A model and its loss as one function of the model and the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def as_forward(loss: Callable[..., Any] | None) -> Callable[..., Tensor]:
    """Returns `forward(model, *batch)` of a model and `loss(output, target)`; without a loss, the
    model returns it.
    """
    if loss is None:
        return lambda model, *batch: model(*batch)
    return lambda model, *batch: loss(model(*batch[:-1]), batch[-1])
