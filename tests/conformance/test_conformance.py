"""The suites of others: nothing wrong, nothing lost, nearly nothing refused. The full corpora run
nightly.
"""

from __future__ import annotations

import importlib
import unittest
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch_modules
from case import Case
from corpora import CORPORA, Tally, tally
from document import DOCUMENT, ROW, offered, recorded, written
from judge import REFUSED, RIGHT, WRONG, judge
from opacus_suite import KINDS, files, handed, packed
from torch import Tensor, nn

import fxperex

Record = Callable[[str, object], None]
# Cases of each kind in the ordinary run.
FEW = {"Opacus layers": 2, "PyTorch module_db": 1, "TensorFlow Privacy tables": 3, "hand-made": 4}
PAIRS = [
    pytest.param(name, kind, id=f"{name}-{kind}")
    for name, corpus in CORPORA.items()
    for kind in corpus.kinds
]


def _run(corpus: str, kind: str, record: Record, most: int | None = None) -> Tally:
    found = tally(corpus, kind, most)
    record(ROW, found.plain())
    return found


@pytest.mark.parametrize(("corpus", "kind"), PAIRS)
def test_some_of_each_kind(corpus: str, kind: str, record_property: Record) -> None:
    found = _run(corpus, kind, record_property, FEW.get(corpus, 1))
    assert found.offered
    assert found.right == found.offered, found.reasons


@pytest.mark.nightly
@pytest.mark.parametrize(("corpus", "kind"), PAIRS)
def test_all_of_each_kind(corpus: str, kind: str, record_property: Record) -> None:
    found = _run(corpus, kind, record_property)
    assert found.offered
    assert found.wrong == 0, found.reasons
    assert found.right >= 0.95 * found.offered, found.reasons
    # What a suite offers may change with its package or with hypothesis, not dwindle.
    assert found.offered >= 0.9 * offered().get((corpus, kind), 0)


def test_the_document_covers_every_suite() -> None:
    counts: Counter[str] = Counter()
    for (corpus, _), count in offered().items():
        counts[corpus] += count
    assert counts["Opacus layers"] >= 700
    assert counts["PyTorch module_db"] >= 440
    assert counts["TensorFlow Privacy tables"] == 55
    assert {kind for corpus, kind in offered() if corpus == "Opacus layers"} == set(KINDS)
    assert written(recorded()) in DOCUMENT.read_text()


def test_every_shipped_test_file_is_driven() -> None:
    assert files() == set(KINDS) | {"embedding_norm_sample"}
    assert 0 < packed("dp_rnn") < len(handed("dp_rnn"))


def test_every_module_with_a_parameter_is_driven() -> None:
    assert [kind for kind in torch_modules.others() if torch_modules.cases(kind)] == []


def test_embedding_norms_judged_by_their_own_tests() -> None:
    theirs = importlib.import_module("opacus.tests.grad_samples.embedding_norm_sample_test")

    def norms(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[Any, Tensor]:
        batch = (activations[0], backprops)
        private = fxperex.transform(layer, batch, backend="eager",
                                    forward=lambda m, ids, g: (m(ids) * g).flatten(1).sum(1))
        return {layer.weight: private.norms(*batch).float()}

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(theirs.TestComputeEmbeddingNormSample)
    with mock.patch.object(theirs.embedding_norm_sample, "compute_embedding_norm_sample", norms):
        result = unittest.TextTestRunner().run(suite)
    assert result.testsRun == 3
    assert result.wasSuccessful(), result.failures + result.errors


def test_a_wrong_gradient_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fxperex.PerExampleModule.gradients

    def off(self: fxperex.PerExampleModule, *batch: Tensor) -> dict[str, Tensor]:
        return {n: g * (1 + 1e-8) for n, g in right(self, *batch).items()}

    monkeypatch.setattr(fxperex.PerExampleModule, "gradients", off)
    verdict = judge(Case("linear", nn.Linear(3, 2), (torch.randn(4, 3),)), torch.float64)
    assert verdict.state == WRONG
    assert "gradients of" in verdict.why


def _less_the_mean(module: nn.Module, x: Tensor) -> Tensor:
    y = module(x)
    return y - y.mean(0)


def test_what_mixes_examples_is_right_only_where_it_is_refused() -> None:
    x = (torch.randn(4, 3),)
    assert judge(Case("mixing", nn.Linear(3, 2), x, _less_the_mean), torch.float64).state == REFUSED
    assert judge(Case("mixing", nn.Linear(3, 2), x, _less_the_mean, mixes=True),
                 torch.float64).state == RIGHT
    assert judge(Case("linear", nn.Linear(3, 2), x, mixes=True), torch.float64).state == WRONG
