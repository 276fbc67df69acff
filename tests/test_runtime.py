"""The running step: any number of rows, tied and re-parametrised weights, and nothing touched but
`.grad`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex.clipping import Automatic
from fxperex.errors import DataError, FxperexError, ShapeError, StateError
from fxperex.testing import clipped, error, loop


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).flatten(1).square().sum(1)


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def _check(model: nn.Module, x: Tensor, strategy: str = "auto", clip: float = 1.0) -> None:
    total, norms = clipped(loop(model, _loss, (x,)), clip)
    private = fxperex.transform(model, (x, ), forward=_loss, clip=clip, strategy=strategy,
                                backend="eager")
    assert error(private.step(x).norms, norms) <= 1e-9
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and error(p.grad, total[name], 1e-3) <= 1e-9, name


@pytest.mark.parametrize("strategy", ["auto", "naive"])
def test_any_number_of_rows(strategy: str) -> None:
    model = _net()
    private = fxperex.transform(model, (torch.randn(4, 5).double(), ), forward=_loss,
                                strategy=strategy, backend="eager")
    for rows in (3, 0, 1, 9, 4):
        x = torch.randn(rows, 5).double()
        total, norms = clipped(loop(model, _loss, (x,)), 1.0)
        model.zero_grad()
        result = private.step(x)
        assert result.norms.shape == result.losses.shape == result.factors.shape == (rows,)
        assert error(result.norms, norms) <= 1e-10
        for name, p in model.named_parameters():
            assert p.grad is not None and error(p.grad, total[name]) <= 1e-10
        assert private.gradients(x)["0.weight"].shape == (rows, 4, 5)


def test_the_model_is_untouched_but_for_grad() -> None:
    model, x = _net(), torch.randn(4, 5).double()
    state = copy.deepcopy(model.state_dict())
    kept = [(dict(vars(m)), m.training) for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    random = torch.get_rng_state()
    fxperex.transform(model, (x,), forward=_loss, backend="eager").step(x)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for m, (attributes, training) in zip(model.modules(), kept, strict=True):
        assert vars(m).keys() == attributes.keys() and m.training == training
    assert hooks == [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]


def test_grad_accumulates_and_dropout_repeats() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    x = torch.randn(4, 5).double()
    private = fxperex.transform(model, (x,), forward=_loss, backend="eager")
    results: list[fxperex.StepResult] = []
    first: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(private.step(x))
        first = first or [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert torch.equal(results[0].norms, results[1].norms)
    assert all(
        torch.equal(p.grad, 2 * g)
        for p, g in zip(model.parameters(), first, strict=True)
        if p.grad is not None)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x.abs().long().clamp(max=6)).tanh())


class _Functional(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh() + x @ self.weight.t()


class _Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x.tanh(), x.sin(), need_weights=False)[0]


def _twice() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer)




SHARED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "embedding and head": (_Tied, (3,)),
    "same layer twice": (_twice, (5,)),
    "used functionally": (lambda: _Functional(5, 3), (6, 5)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), (6, 5)),
    "attention, one projection in pieces": (lambda: _Attention(4, 2, batch_first=True), (3, 4)),
}


@pytest.mark.parametrize("strategy", ["auto", "ghost", "multi"])
@pytest.mark.parametrize("name", SHARED)
def test_shared_and_derived_weights(name: str, strategy: str) -> None:
    make, shape = SHARED[name]
    _check(make().double(), 3 * torch.randn(4, *shape).double(), strategy)


def test_frozen_and_unused_parameters() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
            self.net[0].weight.requires_grad_(False)
            self.spare = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = Plain().double()
    _check(model, torch.randn(4, 5).double())
    assert model.net[
        0].weight.grad is None and model.spare.grad is not None and not model.spare.grad.any()


def test_automatic_clipping() -> None:
    model, x = _net(), torch.randn(4, 5).double()
    truth = loop(model, _loss, (x,))
    _, norms = clipped(truth, 1.0)
    result = fxperex.transform(model, (x, ), forward=_loss, clip=Automatic(0.5, 0.1),
                               backend="eager").step(x)
    factors = 0.5 / (norms + 0.1)
    assert error(result.factors, factors) <= 1e-10
    for name, p in model.named_parameters():
        assert p.grad is not None and error(p.grad, torch.einsum("b,b...->...", factors,
                                                                 truth[name])) <= 1e-10


def test_the_norm_of_forty_million_entries() -> None:
    model = nn.Linear(8000, 5000, bias=False)
    x = torch.randn(1, 8000)
    private = fxperex.transform(model, (x, ), forward=lambda m, v: F.gelu(m(v)).sum(1),
                                backend="eager")
    result = private.step(x)
    y = (x.double() @ model.weight.detach().double().t()).requires_grad_()
    g = torch.autograd.grad(F.gelu(y).sum(), y)[0]
    share = float(result.norms / (g.norm(dim=1) * x.double().norm(dim=1))) - 1
    # Not low, and high by no more than the squares in blocks of 64 may have lost in any order.
    assert 0 <= share <= 70 * 2.0**-24


@pytest.mark.parametrize("seed", range(4))
def test_cancelling_tokens_stay_within_the_bound(seed: int) -> None:
    torch.manual_seed(seed)
    signs = torch.tensor([1.0, -1.0]).repeat(32)[:, None]
    x = (signs * torch.randn(1, 1, 32) + 1e-3 * torch.randn(1, 64, 32))
    model, weights = nn.Linear(32, 16, bias=False), torch.randn(16)
    private = fxperex.transform(model, (x, ), forward=lambda m, v: 1e3 * (m(v) * weights).sum(
        (1, 2)), clip=1.0, strategy="ghost", backend="eager")
    private.step(x)
    assert model.weight.grad is not None and float(
        model.weight.grad.double().norm()) <= 1 + 2.0**-20


def test_norms_write_nothing() -> None:
    model: nn.Module = _net()
    x = torch.randn(4, 5).double()
    private = fxperex.transform(model, (x,), forward=_loss, backend="eager")
    assert error(private.norms(x), private.step(x).norms) <= 1e-12


def _counted(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Ids and labels that count from 1, as many data sets have them: zero is no legal value of
    either.
    """
    return F.cross_entropy(model(ids - 1).flatten(1), labels - 1)


@pytest.mark.parametrize("strategy", ["auto", "naive"])
def test_an_empty_batch_is_filled_with_a_row_that_was_shown(strategy: str) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    ids, labels = torch.randint(1, 6, (4, 3)), torch.randint(1, 4, (4,))
    private = fxperex.transform(model, (ids, labels), forward=_counted, strategy=strategy,
                                backend="eager")
    shown = [x.clone() for x in (ids, labels)]
    ids.zero_()  # the row is the module's own
    result = private.step(ids[:0], labels[:0])
    assert result.norms.shape == (0, ) and all(p.grad is not None and not p.grad.any()
                                               for p in model.parameters())
    assert private.norms(ids[:0], labels[:0]).shape == (0,)
    for rows in (3, 1):
        assert torch.isfinite(private.step(shown[0][:rows], shown[1][:rows]).norms).all()


def test_shown_no_row_an_empty_batch_is_filled_with_zeros() -> None:
    model, x = _net(), torch.empty(0, 5).double()
    private = fxperex.transform(model, (x,), forward=_loss, backend="eager")
    assert private.step(x).norms.shape == (0,)


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        self.count.add_(1)
        return self.out(self.embed(ids))


def _refused(act: Callable[[], object], model: nn.Module, kind: type[FxperexError],
             words: str) -> None:
    """`act` raises, and parameters, buffers and `.grad` are as they were, bit for bit."""
    before = [v.clone() for v in model.state_dict().values()]
    grads = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    with pytest.raises(kind, match=words):
        act()
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    for p, (grad, value) in zip(model.parameters(), grads, strict=True):
        assert p.grad is grad and (grad is None or torch.equal(grad, value))


def test_what_raises_inside_a_step_leaves_everything_as_it_was() -> None:
    model, ids = _Counting(), torch.randint(0, 7, (6, 2))
    private = fxperex.transform(model, (ids[:2],), forward=_loss, backend="eager")
    private.step(ids)
    assert float(model.count) == 1
    bad = ids.clone()
    bad[5] = 9  # in the third physical batch
    _refused(lambda: private.step(bad), model, DataError, r"\[2, 2\] int64 in "
             r"aten.embedding.*test_runtime.py:\d+.*embed")
    _refused(lambda: private.sums(bad), model, DataError, "Nothing was written")
    _refused(lambda: private.gradients(bad), model, DataError, "ids")
    model.out.bias.grad = torch.zeros(1).expand(3)  # not to be added to
    _refused(lambda: private.step(ids), model, StateError, "'out.bias'.*Nothing was written")


BATCHES: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], str]] = {
    "sparse": (lambda x, y: (x.to_sparse(), y), "sparse_coo tensor.*to_dense"),
    "compressed": (lambda x, y: (x.to_sparse_csr(), y), "sparse_csr tensor.*to_dense"),
    "nested": (lambda x, y: (torch.nested.nested_tensor(list(x), layout=torch.jagged), y),
               "nested tensor.*to_padded_tensor"),
    "labels": (lambda x, y: (x, y + 3), r"cross_entropy_loss.*test_runtime.py:\d+.*out of "
               r"bounds.*labels"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_a_step_cannot_take_is_refused(name: str) -> None:
    change, words = BATCHES[name]
    model, x, y = nn.Linear(5, 3), torch.randn(4, 5), torch.randint(0, 3, (4,))
    private = fxperex.transform(model, (x, y), forward=lambda m, v, t: F.cross_entropy(m(v), t),
                                backend="eager")
    _refused(lambda: private.step(*change(x, y)), model,
             DataError if name == "labels" else ShapeError, words)


def test_a_batch_of_another_dtype_than_the_models_is_refused() -> None:
    model, x = nn.Linear(5, 3), torch.randn(4, 5).double()
    with pytest.raises(ShapeError, match=r"test_runtime.py.*float64 and torch.float32; batch\[0\] "
                                         r"is torch.float64"):
        fxperex.transform(model, (x,), forward=_loss, backend="eager")


def test_a_step_says_that_its_graph_was_proved() -> None:
    assert fxperex.transform(_net(), (torch.randn(4, 5).double(), ), forward=_loss,
                             backend="eager").proved
