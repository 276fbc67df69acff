"""A loss as people write it is, per example, the loss of a batch of one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex.capture.forward import as_forward
from fxperex.errors import CaptureError, CoverageError, FxperexError, SemanticsWarning, ShapeError
from fxperex.testing import clipped, error, loop

B = 5
Loss = Callable[[Any, Tensor], Tensor]


def _net(*shape: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, shape[0] if len(shape) == 1 else int(torch.Size(shape).numel())), nn.Tanh(),
        nn.Unflatten(1, shape)) if len(shape) > 1 else nn.Sequential(nn.Linear(6, *shape),
                                                                     nn.Tanh())


def _ids(*shape: int, high: int = 4) -> Tensor:
    return torch.randint(high, (B, *shape))


def _real(*shape: int) -> Tensor:
    return torch.rand(B, *shape, dtype=torch.float64) * 0.8 + 0.1


WEIGHTS = torch.tensor([0.3, 1.0, 2.0, 0.7], dtype=torch.float64)

# name: (model, target, loss)
Case = tuple[nn.Module, Tensor, Loss]
CASES: dict[str, Callable[[], Case]] = {
    "ce mean": lambda: (_net(4), _ids(), nn.CrossEntropyLoss()),
    "ce sum": lambda: (_net(4), _ids(), nn.CrossEntropyLoss(reduction="sum")),
    "ce none": lambda: (_net(4), _ids(), nn.CrossEntropyLoss(reduction="none")),
    "ce smoothing": lambda: (_net(4), _ids(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "ce none mean": lambda:
    (_net(4), _ids(), lambda p, y: F.cross_entropy(p, y, reduction="none").mean()),
    "ce weights sum": lambda:
    (_net(4), _ids(), lambda p, y: F.cross_entropy(p, y, weight=WEIGHTS, reduction="sum")),
    "ce positions": lambda:
    (_net(3, 4), _ids(3), lambda p, y: F.cross_entropy(p.view(-1, 4), y.view(-1))),
    "ce positions sum": lambda:
    (_net(3, 4), _ids(3), lambda p, y: F.cross_entropy(p.view(-1, 4), y.view(-1), reduction="sum")),
    "ce segmentation": lambda: (_net(4, 2, 3), _ids(2, 3), nn.CrossEntropyLoss()),
    "ce probabilities": lambda: (_net(4), _real(4), nn.CrossEntropyLoss()),
    "ce probabilities "
    "segmentation": lambda: (_net(4, 2, 3), _real(4, 2, 3), nn.CrossEntropyLoss(reduction="sum")),
    "nll": lambda: (_net(4), _ids(), lambda p, y: F.nll_loss(p.log_softmax(1), y)),
    "nll sum": lambda:
    (_net(4, 3), _ids(3), lambda p, y: F.nll_loss(p.log_softmax(1), y, reduction="sum")),
    "mse": lambda: (_net(3), _real(3), nn.MSELoss()),
    "mse sum": lambda: (_net(2, 3), _real(2, 3), nn.MSELoss(reduction="sum")),
    "mse squeezed": lambda: (_net(1), _real(), lambda p, y: F.mse_loss(p.squeeze(1), y)),
    "l1": lambda: (_net(3), _real(3), F.l1_loss),
    "smooth l1": lambda: (_net(3), _real(3), F.smooth_l1_loss),
    "huber": lambda: (_net(3), _real(3), lambda p, y: F.huber_loss(p, y, delta=0.3)),
    "bce": lambda: (_net(3), _real(3), lambda p, y: F.binary_cross_entropy(p.sigmoid(), y)),
    "bce logits": lambda:
    (_net(4), _real(4), lambda p, y: F.binary_cross_entropy_with_logits(p, y, pos_weight=WEIGHTS)),
    "bce element weights": lambda:
    (_net(4), _real(4), lambda p, y: F.binary_cross_entropy(p.sigmoid(), y, y.round())),
    "kl batchmean": lambda:
    (_net(4), _real(4), lambda p, y: F.kl_div(p.log_softmax(1), y, reduction="batchmean")),
    "kl sum": lambda: (_net(4), _real(4), nn.KLDivLoss(reduction="sum")),
    "squares mean": lambda: (_net(3), _real(3), lambda p, y: ((p - y)**2).mean()),
    "squares over len": lambda: (_net(3), _real(3), lambda p, y: ((p - y)**2).sum() / len(p)),
    "squares over size": lambda: (_net(3), _real(3), lambda p, y:
                                  (p - y).square().sum() / p.numel()),
    "two losses": lambda: (_net(3), _real(3), lambda p, y: F.mse_loss(p, y) + 0.1 * (p**4).mean()),
    "times a number": lambda: (_net(3), _real(3), lambda p, y: 3.0 * F.mse_loss(p, y) + 1.0),
    "per example": lambda: (_net(3), _real(3), lambda p, y: (p - y).abs().mean(1)),
    "per example then "
    "mean": lambda: (_net(2, 3), _real(2, 3), lambda p, y: (p * y).sum(2).logsumexp(1).mean()),
    "soft margin": lambda: (_net(3), _real(3), F.soft_margin_loss),
    "poisson": lambda: (_net(3), _real(3), F.poisson_nll_loss),
}
COUPLED: dict[str, Callable[[], Case]] = {
    "class weights": lambda: (_net(4), _ids(), nn.CrossEntropyLoss(weight=WEIGHTS)),
    "class weights nll": lambda:
    (_net(4), _ids(), lambda p, y: F.nll_loss(p.log_softmax(1), y, weight=WEIGHTS)),
    "ignored positions": lambda:
    (_net(3, 4), torch.tensor([[0, 1, 2], [3, 1, 1], [2, 1, 3], [0, 1, 0], [0, 0, 2]]), lambda p, y:
     F.cross_entropy(p.flatten(0, 1), y.flatten(), ignore_index=1)),
    "weights and positions": lambda: (_net(4, 3), _ids(3), nn.CrossEntropyLoss(weight=WEIGHTS)),
}


def _compare(case: Case, warns: bool) -> None:
    model, target, loss = case
    model.double()
    batch = (torch.randn(B, 6, dtype=torch.float64), target)
    truth = loop(model, as_forward(loss), batch)
    total, norms = clipped(truth, float(clipped(truth, 1.0)[1].median()))
    with pytest.warns(SemanticsWarning) if warns else contextlib.nullcontext():
        private = fxperex.transform(model, batch, loss, clip=float(norms.median()), backend="eager")
    result = private.step(*batch)
    assert error(result.norms, norms) <= 1e-9
    for name, p in model.named_parameters():
        assert p.grad is not None and error(p.grad, total[name]) <= 1e-9, name
    alone = [loss(model(x[None]), y[None]).sum() for x, y in zip(*batch, strict=True)]
    assert error(result.losses, torch.stack(alone).detach()) <= 1e-9


@pytest.mark.parametrize("name", CASES)
def test_is_the_loss_of_a_batch_of_one(name: str) -> None:
    _compare(CASES[name](), warns=False)


@pytest.mark.parametrize("name", COUPLED)
def test_a_coupling_normaliser_becomes_the_examples_own(name: str) -> None:
    _compare(COUPLED[name](), warns=True)


def _penalty(p: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(
        p, y) + 0.1 * PENALISED[0].weight.square().sum()  # type: ignore[operator,union-attr]


PENALISED = _net(3).double()
REFUSED: dict[str, tuple[Loss, type[FxperexError]]] = {
    "[B, T]": (lambda p, y: (p - y)**2, ShapeError),
    "std": (lambda p, y: (p - y).std(), FxperexError),
    "root of the mean": (lambda p, y: ((p - y)**2).mean().sqrt(), FxperexError),
    "product of two": (lambda p, y: (p - y).abs().mean() * p.abs().mean(), FxperexError),
    "one over the mean": (lambda p, y: 1 / (p - y).square().mean(), FxperexError),
    "masked mean": (lambda p, y: ((p - y) * (y > 0.5)).sum() / (y > 0.5).sum(), FxperexError),
    "mean plus sum": (lambda p, y: (p - y).square().mean() + p.square().sum(), FxperexError),
    "table of pairs": (lambda p, y: F.mse_loss(p.sum(1, keepdim=True), y.sum(1)), FxperexError),
    "batch size added": (lambda p, y: (p - y).square().sum() + len(p), CaptureError),
    "two outputs": (lambda p, y:
                    (p.mean(), y.mean()), CaptureError),  # type: ignore[return-value,dict-item]
    "integer": (lambda p, y: (p > 0).sum(), ShapeError),
    "no batch": (lambda p, y: PENALISED[0].weight.sum(),
                 FxperexError),  # type: ignore[index,union-attr]
    "penalty": (_penalty, CoverageError),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_refused(name: str) -> None:
    loss, kind = REFUSED[name]
    batch = (torch.randn(B, 6, dtype=torch.float64), _real(3))
    with pytest.raises(kind):
        fxperex.transform(PENALISED, batch, loss, backend="eager")
