"""The models of the `opacus` package's engine tests, imported from where it is installed."""

from __future__ import annotations

from typing import Any

import torch
from case import Case
from opacus_suite import second
from shipped import module
from torch import nn

KINDS = ("SampleConvNet", "SampleAttnNet", "SampleTiedWeights", "ModelWithCustomLinear")


def cases(kind: str) -> list[Case]:
    """Returns the one case of the model class `kind`, with an input of the size that its own test
    draws.
    """
    made: Any = getattr(module("opacus.tests.privacy_engine_test"), kind)
    torch.manual_seed(0)
    model: nn.Module = made()
    with torch.no_grad():  # weights up to 100 leave nothing of a float32 loss
        for p in model.parameters():
            p.mul_(0.01 if p.abs().max() > 10 else 1.0)
    if kind == "SampleConvNet":
        return [Case(kind, model, (torch.randn(4, 1, 35, 35),))]
    if kind == "SampleAttnNet":
        return [Case(kind, model, (torch.randint(100, (4, 12)),), second)]
    if kind == "SampleTiedWeights":
        return [Case(kind, model, (torch.randint(100, (4,)),))]
    return [Case(kind, model, (torch.randn(4, 4),))]
