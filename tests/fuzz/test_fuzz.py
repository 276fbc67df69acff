"""Random programs under random legal strategies equal the float64 loop at every batch size; mixing
ones are refused.
"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from programs import Program, Recipe, forward, recipes

import fxperex
from fxperex.errors import FxperexError
from fxperex.registry import strategies
from fxperex.testing import clipped, error, loop
from fxperex.transform import outline

REACHED: set[tuple[str, str]] = set()
QUIET = {
    "deadline": None, "database": None, "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate, Phase.shrink]
}


def some_strategies(model: Program, x: torch.Tensor, choice: random.Random) -> dict[str, str]:
    """Returns a legal strategy for every parameter, drawn from `choice`."""
    plan = outline(model, (x,), forward=forward).plan
    legal: dict[str, set[str]] = {}
    for c in plan.choices:
        for name in c.site.params:
            legal[name] = legal.get(name, set(strategies())) & set(c.costs)
    return {name: choice.choice(sorted(names)) for name, names in legal.items() if names}


def check(recipe: Recipe, number: int) -> None:
    """Raises AssertionError, with the recipe as source, unless the step equals the loop."""
    model, choice = Program(recipe), random.Random(number)
    x = torch.randn(4, recipe.positions, recipe.width, dtype=torch.float64)
    wanted = some_strategies(model, x, choice)
    private = fxperex.transform(model, (x, ), forward=forward, strategy=wanted, clip=0.7,
                                backend="eager")
    REACHED.update((use.kind, c.strategy) for c in private.plan.choices for use in c.site.each)
    for rows in (4, choice.choice([0, 1, 2, 5])):
        x = torch.randn(rows, recipe.positions, recipe.width, dtype=torch.float64)
        truth = loop(model, forward, (x,))
        total, norms = clipped(truth, 0.7)
        model.zero_grad()
        result = private.step(x)
        told = f"check({recipe!r}, {number})\nstrategies {wanted}, {rows} rows"
        assert error(result.norms, norms) <= 1e-9, told
        named = dict(model.named_parameters())
        assert not any(truth[n].any() for n in private.analysis.unused), told
        for name, want in total.items():
            assert error(named[name].grad, want, 1e-3) <= 1e-9, f"{told}\n{name}"


def refused(recipe: Recipe) -> None:
    """Raises AssertionError if a program whose examples meet is accepted."""
    x = torch.randn(4, recipe.positions, recipe.width, dtype=torch.float64)
    try:
        fxperex.transform(Program(recipe), (x,), forward=forward, backend="eager")
    except FxperexError:
        return
    raise AssertionError(f"examples meet and it was accepted: refused({recipe!r})")


def equal(chunk: int, count: int) -> int:
    """Runs `count` programs from the seed `chunk`; returns how many ran to the end."""
    ran = 0

    @seed(chunk)
    @settings(max_examples=count, **QUIET)
    @given(recipes(), st.integers(0, 2**32))
    def run(recipe: Recipe, number: int) -> None:
        nonlocal ran
        check(recipe, number)
        ran += 1

    run()
    return ran


def mixing(chunk: int, count: int) -> int:
    """Runs `count` mixing programs from the seed `chunk`; returns how many were refused."""
    ran = 0

    @seed(chunk)
    @settings(max_examples=count, **QUIET)
    @given(recipes(mixing=True))
    def run(recipe: Recipe) -> None:
        nonlocal ran
        refused(recipe)
        ran += 1

    run()
    return ran


@pytest.mark.parametrize("chunk", [
    0, 1, *(pytest.param(chunk, marks=pytest.mark.nightly) for chunk in range(2, 9))])
def test_random_programs_equal_the_loop(chunk: int) -> None:
    assert equal(chunk, 20) >= 20


def test_random_mixing_programs_are_refused() -> None:
    assert mixing(0, 20) >= 20


@pytest.mark.nightly
def test_two_thousand_programs() -> None:
    assert equal(1000, 1800) >= 1800 and mixing(1000, 200) >= 200
    missing = {"linear", "conv", "bias", "norm", "elementwise", "generic"
               } - {kind
                    for kind, _ in REACHED}
    assert not missing, f"no program reached {missing}"
