"""torchvision before and after `fxperex.fix`: batch normalisation is refused by its place, what
replaces it is accepted.

The proof alone, no step: `tests/families` holds the steps of these models, and of the
configurations of `transformers`, to the loop and to the probes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import fxperex
from fxperex.analysis import find_sites, prove
from fxperex.capture.forward import as_forward
from fxperex.capture.program import capture
from fxperex.errors import BatchMixingError

PLAIN = {"aux_logits": False, "init_weights": False}
# name -> (side of the image, arguments, in the ordinary run)
MODELS: dict[str, tuple[int, dict[str, Any], bool]] = {
    "alexnet": (64, {}, True), "vgg11_bn": (32, {}, False), "squeezenet1_1": (32, {}, True),
    "resnet18": (32, {}, False), "resnet50": (32, {}, False), "wide_resnet50_2": (32, {}, False),
    "resnext50_32x4d": (32, {}, False), "densenet121": (32, {}, False),
    "googlenet": (32, PLAIN, False), "inception_v3": (75, PLAIN, False),
    "mobilenet_v2": (32, {}, False), "mobilenet_v3_small": (32, {}, False),
    "mnasnet0_5": (32, {}, False), "shufflenet_v2_x0_5": (32, {}, True),
    "efficientnet_b0": (32, {}, False), "regnet_y_400mf": (32, {}, False),
    "convnext_tiny": (32, {}, False), "swin_t": (32, {}, False), "swin_v2_t": (64, {}, False)
}
CASES = [
    pytest.param(n, marks=[] if ordinary else [pytest.mark.nightly])
    for n, (_, _, ordinary) in MODELS.items()
]


def _prove(model: nn.Module, side: int) -> set[str]:
    """Returns the parameters that end in sites."""
    batch = (torch.randn(2, 3, side, side), torch.randint(0, 10, (2,)))
    captured = capture(model, as_forward(F.cross_entropy), batch, 2)
    analysis = find_sites(captured, prove(captured), {n for n, _ in model.named_parameters()})
    return {p for site in analysis.sites for p in site.params}


@pytest.mark.parametrize("name", CASES)
def test_is_accepted_once_batch_norm_is_gone(name: str) -> None:
    side, options, _ = MODELS[name]
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if norms:
        with pytest.raises(BatchMixingError, match="GroupNorm") as refused:
            _prove(model, side)
        assert any(f"(module {n})" in str(refused.value) for n in norms)
    fixed, changes = fxperex.fix(model)
    assert {c.name for c in changes} == norms
    assert _prove(fixed, side) == {n for n, _ in fixed.named_parameters()}


def test_they_are_seventeen() -> None:
    assert len(MODELS) >= 17
