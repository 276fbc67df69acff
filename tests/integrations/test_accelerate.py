"""Prepared models and optimizers train privately, in the precision that was asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fxperex
from fxperex.errors import ConfigError, FxperexError
from fxperex.integrations.accelerate import unwrap, unwrapped_optimizer
from fxperex.privacy import PrivacyEngine

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(True)


def _prepared(**settings: Any) -> tuple[Any, nn.Module, nn.Module, Any]:
    accelerator = accelerate.Accelerator(cpu=True, **settings)
    model = nn.Sequential(nn.Linear(4, 3))
    plain = copy.deepcopy(model)
    return accelerator, plain, *accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_prepared_model_trains_as_the_plain_one_under_autocast(precision: str) -> None:
    accelerator, plain, model, optimizer = _prepared(mixed_precision=precision)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    ready = unwrap(accelerator, model, optimizer)
    assert ready.autocast == {"no": None, "bf16": torch.bfloat16}[precision]
    assert ready.model.forward.__func__ is type(ready.model).forward  # accelerate's is off
    runs = [(ready.model, ready.optimizer), (plain, torch.optim.SGD(plain.parameters(), 0.1))]
    for net, optim in runs:
        private = fxperex.transform(net, (x, y), nn.CrossEntropyLoss(), backend="eager",
                                    autocast=ready.autocast)
        engine = PrivacyEngine(private, optim, (x, y), expected_batch=6, epochs=1, delta=1e-5,
                               noise_multiplier=1.0, seed=0)
        assert len(list(engine)) == 2
    for p, q in zip(ready.model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    dtypes = {n.meta["val"].dtype for n in private.capture.graph.nodes
              if n.op == "call_function" and isinstance(n.meta.get("val"), torch.Tensor)}
    assert (torch.bfloat16 in dtypes) == (precision == "bf16")


def test_what_a_private_step_cannot_be_is_refused() -> None:
    accelerator, plain, model, optimizer = _prepared(gradient_accumulation_steps=4)
    with pytest.raises(ConfigError, match="accumulates 4"):
        unwrap(accelerator, model, optimizer)
    with pytest.raises(ConfigError, match=r"accelerate\.Accelerator; got Linear"):
        unwrap(nn.Linear(1, 1), model, optimizer)
    with pytest.raises(FxperexError, match="got list"):
        unwrapped_optimizer([])
    own = torch.optim.SGD(plain.parameters(), 0.1)
    assert unwrapped_optimizer(own) is own and unwrapped_optimizer(optimizer) is not optimizer
