"""Model families that people train: clipped sum and norms within 1e-5 of the float64 loop, and no
example sees another.
"""

from __future__ import annotations

import pytest
from measure import measure
from table import document, named
from zoo import FAMILIES, build

import fxperex

CASES = [
    pytest.param(f.name, marks=[pytest.mark.nightly] if f.heavy else []) for f in FAMILIES.values()
]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_loop(name: str) -> None:
    for package in FAMILIES[name].needs.split():
        pytest.importorskip(package)
    row = measure(name)
    assert not row.refusal
    assert not row.dropped
    assert row.norms <= 1e-5
    assert row.sums <= 1e-5
    # The kernels may round a row differently beside other rows; they may not see them.
    assert row.leak <= 1e-5


@pytest.mark.nightly
@pytest.mark.parametrize("name", FAMILIES)
def test_a_compiled_step_is_never_suspected_falsely(name: str) -> None:
    """A difference from the eager step would be a BackendWarning: an error in the tests."""
    for package in FAMILIES[name].needs.split():
        pytest.importorskip(package)
    case = build(name)
    private = fxperex.transform(case.model, case.batch, forward=case.forward, backend="inductor")
    private.step(*case.batch)
    assert private.backend == "inductor"


def test_the_families_are_many_enough() -> None:
    """The prover accepts at least 17 models of torchvision and 8 configurations of transformers:
    all of these.
    """
    packages = [f.needs for f in FAMILIES.values()]
    assert packages.count("torchvision") >= 17 and packages.count("transformers") >= 8


def test_the_document_lists_every_family() -> None:
    assert named(document()) == set(FAMILIES)
