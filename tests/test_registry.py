"""Every layer kind x strategy x sample x dtype against the float64 loop; a new rule is tested the
moment it exists.
"""

from __future__ import annotations

import copy

import pytest
import torch
from support import against_the_loop, curved

from fxperex import kernels
from fxperex.errors import ConfigError
from fxperex.registry import NAIVE, kinds, layer_kind, strategy, ways
from fxperex.transform import outline

KINDS, STRATEGIES = kinds(), ways()
CASES = [(k, i) for k, kind in KINDS.items() for i in range(len(kind.samples()))]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
# Every sample in float64, which shows a wrong formula; in float32 the first ones of a kind, and the
# others nightly.
FIRST = 4
TRITON = {"fused", "fused_stored", "affine"}


def _sample(kind: str, index: int,
            dtype: torch.dtype) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(7)
    model, batch = KINDS[kind].samples()[index]
    model = copy.deepcopy(model).to(dtype)
    return model, tuple(x.to(dtype) if x.is_floating_point() else x for x in batch)


@pytest.mark.parametrize(("kind", "index", "dtype"), [
    pytest.param(kind, index, dtype,
                 marks=pytest.mark.nightly if dtype == "float32" and index >= FIRST else ())
    for kind, index in CASES for dtype in DTYPES])
def test_against_the_loop(kind: str, index: int, dtype: str) -> None:
    model, batch = _sample(kind, index, DTYPES[dtype])
    choices = [c for step in against_the_loop(model, batch, STRATEGIES) for c in step.plan.choices]
    assert any(c.site.kind == kind for c in choices), f"the sample reaches no site of kind {kind}"
    legal: dict[str, set[str]] = {}
    ran: dict[str, set[str]] = {}
    for c in choices:
        legal.setdefault(c.site.name, set()).update(c.costs)
        ran.setdefault(c.site.name, set()).add(c.strategy)
    assert ran == legal, "a strategy that is legal at a site did not run there"


def test_every_strategy_is_legal_at_a_sample() -> None:
    """And so has run there: the test above holds what ran to what is legal."""
    wanted = set(STRATEGIES) - {NAIVE}  # a way to run the whole step
    if kernels.unavailable(torch.device("cpu")):
        wanted -= TRITON  # tests/kernels runs them under Triton's interpreter
    for kind in KINDS:
        model, batch = _sample(kind, 0, torch.float64)
        wanted -= {
            name
            for c in outline(model, batch, forward=curved).plan.choices
            for name in c.costs
        }
    assert not wanted, "no first sample of a kind allows these"


def test_a_duplicate_name_raises() -> None:
    with pytest.raises(ConfigError, match="registered already"):
        layer_kind("linear")(object)
    with pytest.raises(ConfigError, match="registered already"):
        strategy("ghost")(object)
