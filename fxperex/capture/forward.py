"""A model and its loss as one function of the model and the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def as_forward(loss: Callable[..., Any] | None) -> Callable[..., Tensor]:
    """Returns `forward(model, *batch)` of a model and `loss(output, target)`, or of
    `forward(model, batch)` and `loss(output, batch)` for a mapping.

    Without a loss the model returns it, alone or as `.loss` of its output.
    """
    def forward(model: Callable[..., Any], *batch: Any) -> Any:
        if len(batch) == 1 and isinstance(batch[0], Mapping):
            output = model(**batch[0])
            return _loss_of(output) if loss is None else loss(output, batch[0])
        if loss is None:
            return _loss_of(model(*batch))
        return loss(model(*batch[:-1]), batch[-1])

    return forward


def _loss_of(output: Any) -> Any:
    """The loss that `output` is, or holds under that name."""
    if isinstance(output, torch.Tensor):
        return output
    named = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return output if named is None else named
