"""Every batch rule against perturbation: where a rule accepts, replacing the other examples changes
nothing.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
import rule_cases_layers  # noqa: F401  (adds its cases)
import rule_cases_parts  # noqa: F401
import torch
from perturb import Case, Draw, meets, verdict
from rule_cases import CASES

from fxperex.analysis.rules import RULES
from fxperex.errors import BatchMixingError

DRAWS = 24
# Sums over the leading dimension whatever it is; draws as many numbers as its input asks for; ways
# in that hold no example, or that a graph never holds in this form.
NEVER = {
    "addbmm", "poisson", "binomial", "diagonal", "dot", "_batch_norm_with_update_functional",
    "native_batch_norm", "ravel"
}
TOLD: Counter[str] = Counter()


def draws(name: str) -> Iterator[tuple[Case, int]]:
    for seed in range(20 * DRAWS):
        d = Draw(seed)
        overload, args = CASES[name][seed % len(CASES[name])](d)
        named = args[-1] if isinstance(args[-1], dict) else {}
        target = getattr(getattr(torch.ops.aten, name), overload)
        yield Case(target, args[:-1] if named else args, named), seed


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_rule_agrees_with_perturbation(name: str) -> None:
    accepted = refused = invalid = 0
    for case, seed in draws(name):
        if accepted + refused == DRAWS:
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = verdict(case, seed)
        except BatchMixingError:
            refused += 1
            continue
        except (RuntimeError, IndexError, ValueError, AssertionError):
            invalid += 1  # torch itself refuses these shapes
            continue
        assert not meets(case, state, seed), f"accepted, and the examples meet: {case} -> {state}"
        accepted += 1
    TOLD.update(accepted=accepted, refused=refused, invalid=invalid)
    assert accepted + refused == DRAWS, f"only {accepted + refused} of {DRAWS} draws ran"
    assert accepted or name in NEVER, "no draw was accepted: the rule or its cases are too narrow"


def test_every_rule_has_cases() -> None:
    bare = {name.removeprefix("aten.")
            for name in RULES} - {"pointwise", "cudnn_batch_norm"}  # that one runs on CUDA alone
    assert bare - set(CASES) == set()


def test_at_least_150_operations_are_covered() -> None:
    known = {
        n
        for n in CASES
        if f"aten.{n}" in RULES or any(
            torch.Tag.pointwise in getattr(getattr(torch.ops.aten, n), o).tags
            for o in getattr(torch.ops.aten, n).overloads())
    }
    assert len(known) >= 150
