"""A tiny private run that every test of the engine starts from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fxperex
from fxperex.privacy import PrivacyEngine

X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors of twenty numbers: a second thread only waits for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Making a step costs a second and nothing about a run is left in it but weights: used again,
# weights renewed.
POOLED = (0.5,)
_pool: dict[float, list[fxperex.PerExampleModule]] = {}


@pytest.fixture
def private() -> Iterator[Callable[..., fxperex.PerExampleModule]]:
    used: list[tuple[float, fxperex.PerExampleModule]] = []

    def make(clip: Any = 0.5, model: nn.Module | None = None) -> fxperex.PerExampleModule:
        torch.manual_seed(0)
        if clip in POOLED and model is None:
            fresh = nn.Linear(
                6, 3)  # drawn first, or the weights would tell whether the pool was empty
            free = _pool.setdefault(clip, [])
            used.append((clip, free.pop() if free else _made(copy.deepcopy(fresh), clip)))
            with torch.no_grad():
                for p, value in zip(used[-1][1].parameters.values(), fresh.parameters(),
                                    strict=True):
                    p.copy_(value)
                    p.grad = None
            return used[-1][1]
        return _made(model or nn.Linear(6, 3), clip)

    yield make
    for clip, step in used:
        _pool[clip].append(step)


def _made(model: nn.Module, clip: Any) -> fxperex.PerExampleModule:
    return fxperex.transform(model, (X[:4], Y[:4]), nn.functional.cross_entropy, clip=clip,
                             backend="eager")


@pytest.fixture
def engine(
        private: Callable[..., fxperex.PerExampleModule]) -> Iterator[Callable[..., PrivacyEngine]]:
    made: list[PrivacyEngine] = []

    def make(step: fxperex.PerExampleModule | None = None, *, clip: Any = 0.5,
             optimizer: Any = None, dataset: Any = (X, Y), **change: Any) -> PrivacyEngine:
        step = step or private(clip)
        optimizer = optimizer or torch.optim.SGD(step.parameters.values(), lr=1.0)
        settings = {
            "expected_batch": 10, "epochs": 1, "delta": 1e-3, "noise_multiplier": 1.3, "seed": 4
        } | change
        made.append(PrivacyEngine(step, optimizer, dataset, **settings))
        return made[-1]

    yield make
    for e in made:
        e.close()
