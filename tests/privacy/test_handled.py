"""What is no error: rows that are not finite, empty and single batches, gradients of nothing; each
is an ordinary step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxperex
from fxperex.privacy import PrivacyEngine

X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3
NAN, INF = float("nan"), float("inf")


class Spare(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 3)
        self.spare = nn.Parameter(torch.ones(2))


HANDLED: dict[str, Callable[..., tuple[Any, ...]]] = {
    "NaN rows": lambda x: (x.fill_(NAN), ),
    "Inf rows": lambda x: (x.fill_(INF), ),
    "zero gradient": lambda x: (x, 0.0),
    "denormals": lambda x: (x.mul_(1e-42), ),
    "constant loss": lambda x: (x, 0.0, 1.0),
    "unused parameter": lambda x: (x, ),
    "B = 0": lambda x: (x, ),
    "B = 1": lambda x: (x, ),
    "a batch of padding alone": lambda x: (x, ),
}
EXPECTED = {"B = 0": 1e-6, "a batch of padding alone": 1e-6, "B = 1": 1}


@pytest.mark.parametrize("name", HANDLED)
def test_is_no_error(name: str, engine: Callable[..., PrivacyEngine]) -> None:
    """Each is an ordinary step: counted, noised on every parameter, everything finite."""
    x, *rest = HANDLED[name](X.clone())
    scale, shift = [*rest, *(1.0, 0.0)[len(rest):]]
    model = Spare() if name == "unused parameter" else nn.Linear(6, 3)
    step = fxperex.transform(model, (X[:4], Y[:4]),
                             lambda o, y: scale * F.cross_entropy(o, y, reduction="none") + shift,
                             backend="eager")
    expected = EXPECTED.get(name, 10)
    run = engine(step, dataset=(x, Y), expected_batch=expected, epochs=2 * expected / 40)
    before = {n: p.detach().clone() for n, p in step.parameters.items()}
    results = list(run)
    assert len(results) == run.books.units == 2
    assert name not in {"B = 0", "a batch of padding "
                                 "alone"} or [len(r.norms) for r in results] == [0, 0]
    assert name not in {"NaN rows", "Inf rows"
                        } or sum(r.dropped for r in results) == sum(len(r.norms)
                                                                    for r in results) > 0
    for n, p in step.parameters.items():
        assert torch.isfinite(p).all() and (p != before[n]).all(), n
