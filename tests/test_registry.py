"""Every layer kind x strategy x sample x dtype against the float64 loop; a new rule is tested the moment it exists."""

from __future__ import annotations

import copy

import pytest
import torch
from support import against_the_loop

from fxperex import kernels
from fxperex.errors import ConfigError
from fxperex.registry import kinds, layer_kind, strategies, strategy

KINDS, STRATEGIES = kinds(), strategies()
CASES = [(k, i) for k, kind in KINDS.items() for i in range(len(kind.samples()))]
TRITON = {"fused", "fused_stored", "affine"}
REACHED: dict[str, set[str]] = {}


def _sample(kind: str, index: int, dtype: torch.dtype) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(7)
    model, batch = KINDS[kind].samples()[index]
    model = copy.deepcopy(model).to(dtype)
    return model, tuple(x.to(dtype) if x.is_floating_point() else x for x in batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("kind", "index"), CASES)
def test_against_the_loop(kind: str, index: int, dtype: torch.dtype) -> None:
    model, batch = _sample(kind, index, dtype)
    choices = [c for step in against_the_loop(model, batch, STRATEGIES) for c in step.plan.choices]
    assert any(c.site.kind == kind for c in choices), f"the sample reaches no site of kind {kind}"
    legal: dict[str, set[str]] = {}
    ran: dict[str, set[str]] = {}
    for c in choices:
        REACHED.setdefault(c.site.kind, set()).add(c.strategy)
        legal.setdefault(c.site.name, set()).update(c.costs)
        ran.setdefault(c.site.name, set()).add(c.strategy)
    assert ran == legal, "a strategy that is legal at a site did not run there"


def test_every_strategy_is_reached() -> None:
    if len(REACHED) < len(KINDS):
        pytest.skip("runs after the samples of every kind")
    for name in STRATEGIES:
        if name in TRITON and kernels.unavailable(torch.device("cpu")):
            continue  # tests/kernels runs them under Triton's interpreter
        assert name == "naive" or any(name in found for found in REACHED.values()), f"no sample allows {name}"


def test_a_duplicate_name_raises() -> None:
    with pytest.raises(ConfigError, match="registered already"):
        layer_kind("linear")(object)
    with pytest.raises(ConfigError, match="registered already"):
        strategy("ghost")(object)
