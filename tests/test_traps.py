"""Silent wrongness found in other libraries, each by name: here it comes out right, or is refused.

Traps of the engine (sampling, noise, accounts, resume) are in `tests/privacy`. Each trap can fail:
what the peer released is computed too, and lies outside what the trap accepts.
"""

from __future__ import annotations

import copy

import pytest
import torch
from support import under
from torch import Tensor, nn
from traps_refused import REFUSED
from traps_right import CLIP, RIGHT, Batch, Grads, loss, norms_of, scaled

import fxperex
from fxperex.capture.forward import as_forward
from fxperex.errors import SemanticsWarning, StateError
from fxperex.testing import error, loop

BOUND = 1 + 2.0**-20
STRATEGIES = ("auto", "ghost", "naive")


def _case(name: str) -> tuple[nn.Module, Batch, Grads, float]:
    torch.manual_seed(11)
    model, batch = RIGHT[name].make()
    model = model.double()
    batch = tuple(x.double() if x.is_floating_point() else x for x in batch)
    truth = loop(model, loss, batch)
    return model, batch, truth, CLIP * float(norms_of(truth).min())


@pytest.mark.parametrize("name", RIGHT)
def test_comes_out_right_and_within_the_bound(name: str) -> None:
    """The sum is that of the truly clipped gradients; each example alone adds at most C (1 +
    2^-20), in float32 too.
    """
    model, batch, truth, clip = _case(name)
    wanted = scaled(truth, norms_of(truth), clip)
    single = copy.deepcopy(model).float()
    forward = (lambda m, *rows: loss(m, *rows).mean()) if RIGHT[name].mean else loss
    for strategy, private in under(model, batch, forward, clip, STRATEGIES):
        model.zero_grad()
        assert error(private.step(*batch).norms, norms_of(truth)) <= 1e-9, strategy
        for key, grads in wanted.items():
            assert error(model.get_parameter(key).grad, grads.sum(0),
                         clip * 1e-3) <= 1e-9, (strategy, key)
    rows = tuple(x.float() if x.is_floating_point() else x for x in batch)
    for strategy, private in under(single, rows, forward, clip, ("auto", "ghost")):
        for b in range(len(rows[0])):
            single.zero_grad()
            private.step(*(x[b:b + 1] for x in rows))
            length = torch.cat([
                p.grad.double().flatten() for p in single.parameters() if p.grad is not None
            ]).norm()
            assert float(length) <= clip * BOUND, (strategy, b)


@pytest.mark.parametrize("name", RIGHT)
def test_the_peers_mistake_would_be_seen(name: str) -> None:
    model, batch, truth, clip = _case(name)
    right = scaled(truth, norms_of(truth), clip)
    wrong = RIGHT[name].mistake(model, batch, truth, clip)
    assert max(error(wrong[n].sum(0), g.sum(0), clip * 1e-3) for n, g in right.items()) > 1e-2


def _squares(model: nn.Module, *batch: Tensor) -> Tensor:
    out = model(*batch)
    return out.flatten(1).square().sum(1) if out.dim() > 1 else out


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str) -> None:
    trap = REFUSED[name]
    model, batch = trap.make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(trap.kind, match=trap.words):
        fxperex.transform(model, batch, forward=_squares, backend="eager", **(trap.options or {}))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("what", "make"),
    [("class weights", lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]).double())),
     ("ignore_index", lambda: nn.CrossEntropyLoss(ignore_index=1))])
def test_a_normaliser_over_the_batch_becomes_the_examples_own(what: str,
                                                              make: type[nn.Module]) -> None:
    """Opacus: another example changes this one's gradient by 96 % (class weights) and 33 %
    (ignore_index).
    """
    model, lossy = nn.Linear(4, 3).double(), make()
    x, y = torch.randn(4, 4).double(), torch.tensor([0, 2, 2, 0])
    with pytest.warns(SemanticsWarning, match=what):
        private = fxperex.transform(model, (x, y), lossy, backend="eager")
        for other in (0, 1,
                      2):  # the last example's class changes the total, not the first's gradient
            y[3] = other
            alone = loop(model, as_forward(lossy), (x[:1], y[:1]))["weight"][0]
            assert error(private.gradients(x, y)["weight"][0], alone) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_cancel(dtype: torch.dtype) -> None:
    """A Gram norm in float32 let 1.21 C through; in bfloat16 it read 0 for a true norm of 5
    (Opacus, FastDP).
    """
    signs = torch.tensor([1.0, -1.0]).repeat(128)[:, None]
    x = (signs * torch.randn(1, 1, 16) + 1e-2 * torch.randn(1, 256, 16)).to(dtype)
    model, weights = nn.Linear(16, 8, bias=False).to(dtype), torch.randn(8).to(dtype)
    for _, private in under(model, (x, ), lambda m, v: 1e2 * (m(v) * weights).sum((1, 2)), 1.0,
                            ("ghost", "auto")):
        released = private.sums(x)[1][0]
        assert 0 < float(released.double().norm()) <= BOUND


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_squares_that_overflow(strategy: str) -> None:
    """Gradients of 1e25: their squares are infinite in float32, which is no reason for NaN or for
    more than C.
    """
    model, x = nn.Linear(5, 3), torch.randn(3, 5)
    x[1] *= 1e25
    private = fxperex.transform(model, (x, ), forward=lambda m, v: m(v).sin().sum(1),
                                strategy=strategy, backend="eager")
    private.step(x[1:2])
    grads = torch.cat([p.grad.double().flatten() for p in model.parameters()
                       ])  # type: ignore[union-attr]
    assert torch.isfinite(grads).all() and float(grads.norm()) <= BOUND
    model.zero_grad()
    private.step(x[[0, 2]])
    others = model.weight.grad.clone()  # type: ignore[union-attr]
    model.zero_grad()
    private.step(x)
    assert float((model.weight.grad - others).double().norm()) <= BOUND  # type: ignore[operator]


def test_norm_and_gradient_are_of_one_draw() -> None:
    """Two-pass designs draw dropout anew: clipped by one mask's norm, released with another's
    gradient.
    """
    model, x = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5),
                             nn.Linear(20, 3)).double(), torch.randn(1, 4, 6).double()
    for _, private in under(model, (x,), loss, 1e-3, STRATEGIES):
        for _ in range(3):
            model.zero_grad()
            private.step(x)
            length = torch.cat([p.grad.flatten() for p in model.parameters()
                                ]).norm()  # type: ignore[union-attr]
            assert abs(float(length) / 1e-3 - 1) <= 2.0**-20


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    """Opacus PR 707: accumulation over physical batches aliased p.grad."""
    model, x = nn.Linear(5, 3).double(), torch.randn(7, 5).double()
    private = fxperex.transform(model, (x[:3],), forward=loss, clip=0.3, backend="eager")
    private.step(x)
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for sizes in ((3, 4), (1, 6), (2, 2, 3), (0, 7)):
        model.zero_grad()
        for part in x.split(sizes):
            private.step(part)
        assert all(error(p.grad, whole[n]) <= 1e-12
                   for n, p in model.named_parameters())  # type: ignore[arg-type]


def test_a_bad_example_does_not_poison_the_sum() -> None:
    """Opacus: the whole parameter NaN for one bad row; here it adds nothing, and is counted."""
    model, x = nn.Linear(5, 3).double(), torch.randn(4, 5).double()
    private = fxperex.transform(model, (x,), forward=loss, backend="eager")
    private.step(x[1:])
    others: Tensor = model.weight.grad.clone()  # type: ignore[union-attr]
    for bad in (float("nan"), float("inf"), 1e200):
        model.zero_grad()
        x[0, 2] = bad
        assert private.step(x).dropped == 1
        assert error(model.weight.grad, others) <= 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["eval", "unfreeze", "freeze"])
def test_a_model_that_changed_its_state(change: str) -> None:
    """Opacus ghost: IndexError in the middle of a run; parameters added later are released without
    noise (#439).
    """
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), torch.randn(4, 5)
    model[0].bias.requires_grad_(False)
    private = fxperex.transform(model, (x,), forward=loss, backend="eager")
    {"eval": model.eval, "unfreeze": model.requires_grad_, "freeze": model[1].requires_grad_
     }[change](*(() if change == "eval" else (change == "unfreeze", )))
    with pytest.raises(StateError, match="changed since transform"):
        private.step(x)


def test_another_length_is_another_step() -> None:
    """FastDP: the choice of kernel frozen at the first T, and used for every other one."""
    model = nn.Linear(5, 3)
    private = fxperex.transform(model, (torch.randn(4, 2, 5),), forward=loss, backend="eager")
    with pytest.raises(fxperex.errors.ShapeError, match="made for"):
        private.step(torch.randn(4, 64, 5))
    for length in (1, 64):
        x = torch.randn(4, length, 5)
        found = fxperex.transform(model, (x,), forward=loss, backend="eager").norms(x)
        assert error(found, norms_of(loop(model, loss, (x,)))) <= 1e-5


def test_a_penalty_on_parameters_is_not_clipped_with_the_data() -> None:
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    with pytest.raises(fxperex.errors.CoverageError, match="weight_decay"):
        fxperex.transform(model, (x, ),
                          forward=lambda m, v: m(v).square().mean() + m.weight.square().sum(),
                          backend="eager")
