"""Buffers that forward writes: as the model would, once per step; refused where they would hold the
batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex.errors import BatchMixingError, FxperexError, MutationError
from fxperex.testing import error


class Counted(nn.Module):
    """Counts its calls; what it computes follows the count, as with a schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.count = nn.Linear(4, 3), nn.Buffer(torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.layer(x) / self.count.sqrt()


class Averaged(nn.Module):
    """Keeps a moving average of its weight, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("average", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.average.mul_(0.9).add_(self.layer.weight, alpha=0.1)
        return self.layer(x) + F.linear(x, self.average)


class Spectral(nn.Module):
    """Two layers under spectral normalisation: power iterations in training mode, of the weights
    alone.
    """

    def __init__(self, old: bool) -> None:
        super().__init__()
        wrap = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
        self.one, self.two = wrap(nn.Conv1d(1, 3, 2)), wrap(nn.Linear(9, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x[:, None]).tanh().flatten(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "counter": Counted, "average of weights": Averaged, "spectral norm": lambda: Spectral(False),
    "spectral norm, old": lambda: Spectral(True)}


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sin().square().sum(1)


def _made(name: str, training: bool = True) -> tuple[nn.Module, nn.Module]:
    """The model and its twin; `deepcopy` does not take the old spectral norm's plain tensor."""
    pair = []
    for _ in range(2):
        torch.manual_seed(4)
        pair.append(MODELS[name]().double().train(training))
    return pair[0], pair[1]


@pytest.mark.parametrize("strategy", ["auto", "naive"])
@pytest.mark.parametrize("name", MODELS)
def test_buffers_are_updated_as_by_one_forward(name: str, strategy: str) -> None:
    """For any number of rows, several physical batches included; gradients are those of that one
    forward.
    """
    model, twin = _made(name)
    x = torch.randn(7, 4, dtype=torch.float64)
    private = fxperex.transform(model, (x[:3], ), forward=_loss, strategy=strategy, clip=1e6,
                                backend="eager")
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    for rows in (3, 7, 1, 0):
        model.zero_grad()
        twin.zero_grad()
        private.step(x[:rows])
        _loss(twin, x[:rows]).sum().backward()
        for key, value in twin.named_buffers():
            assert torch.allclose(model.get_buffer(key), value, rtol=1e-12, atol=0), (key, rows)
        for key, p in twin.named_parameters():
            assert error(model.get_parameter(key).grad, p.grad,
                         1e-6) <= 1e-10, (key, rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_looking_at_gradients_writes_no_buffer(name: str) -> None:
    model, _ = _made(name)
    x = torch.randn(3, 4, dtype=torch.float64)
    before = copy.deepcopy(dict(model.named_buffers()))
    private = fxperex.transform(model, (x,), forward=_loss, backend="eager")
    private.gradients(x)
    private.norms(x)
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())


@pytest.mark.parametrize("name", ["spectral norm", "spectral norm, old"])
def test_spectral_norm_evaluating_writes_nothing(name: str) -> None:
    model, _ = _made(name, training=False)
    x = torch.randn(3, 4, dtype=torch.float64)
    before = copy.deepcopy(dict(model.named_buffers()))
    fxperex.transform(model, (x,), forward=_loss, backend="eager").step(x)
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())


class Writing(nn.Module):
    def __init__(self, write: Callable[[nn.Module, Tensor], object],
                 shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.layer, self.write = nn.Linear(4, 3), write
        self.register_buffer("kept", torch.zeros(shape, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        self.write(self, h.detach())
        return h


def _codebook(model: nn.Module, h: Tensor) -> None:
    nearest = F.one_hot((h[:, None] - model.kept).square().sum(2).argmin(1), 5).to(h.dtype)
    model.kept.mul_(0.9).add_(nearest.t() @ h, alpha=0.1)


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[FxperexError], str]] = {
    "mean of activations": (lambda: Writing(lambda m, h: m.kept.add_(h.mean(0)),
                                            (3, )), BatchMixingError, "mean"),
    "largest activation": (lambda: Writing(lambda m, h: m.kept.copy_(h.abs().max())),
                           BatchMixingError, "max"),
    "the activations "
    "themselves": (lambda: Writing(lambda m, h: m.kept.copy_(h),
                                   (6, 3)), FxperexError, "kept|batch"),
    "number of examples": (lambda: Writing(lambda m, h: m.kept.add_(len(h))), BatchMixingError,
                           "batch size"),
    "codebook of nearest "
    "centres": (lambda: Writing(_codebook, (5, 3)), BatchMixingError, "matmul|mm"),
    "batch norm, affine "
    "frozen": (lambda: nn.Sequential(nn.Linear(4, 3),
                                     nn.BatchNorm1d(3).requires_grad_(False)), BatchMixingError,
               "GroupNorm"),
    "observer of ranges": (
        lambda: Writing(lambda m, h: m.kept.copy_(torch.maximum(m.kept, h.amax())),
                        ()), BatchMixingError, "amax"),
    "its parameter": (lambda: Writing(lambda m, h: m.layer.weight.detach().mul_(0.5)),
                      MutationError, "layer.weight"),
    "its input": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)), MutationError,
                  "its input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_keep_data_is_refused(name: str) -> None:
    make, kind, words = REFUSED[name]
    model = make().double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=words):
        fxperex.transform(model, (torch.randn(6, 4, dtype=torch.float64), ), forward=_loss,
                          backend="eager")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
