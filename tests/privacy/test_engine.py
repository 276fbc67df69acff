"""One logical step is: a debit, the clipped sum, noise once, a constant divisor. And what must be
refused is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxperex
from fxperex.clipping import Adaptive, PerLayer
from fxperex.config import SLACK
from fxperex.errors import BudgetError, CoverageError, DivergedError, LedgerError, PrivacyError
from fxperex.privacy import (
    Mechanism,
    Noise,
    PoissonSampler,
    PrivacyEngine,
    Secret,
    ShuffledSampler,
    TruncatedPoissonSampler,
)
from fxperex.runtime.module import PerExampleModule

Make = Callable[..., PrivacyEngine]
X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3


def test_a_run_is_the_formula(engine: Make, private: Callable[..., PerExampleModule]) -> None:
    run, other = engine(), private()
    noise = Noise(Mechanism(other.clip, 1.3, "add-or-remove", 10.0, 21), Secret(4))
    for number, rows in enumerate(PoissonSampler(40, 10, 4, seed=4)):
        sums = other.sums(X[rows], Y[rows])[1]
        with torch.no_grad():
            for p, value in zip(other.parameters.values(), noise.release(sums, number),
                                strict=True):
                p -= value.float()
    assert len(list(run)) == len(run) == run.steps_done == run.books.units == 4
    for name, p in run.private.parameters.items():
        torch.testing.assert_close(p, other.parameters[name])


def test_noise_is_in_units_of_what_one_example_can_add(engine: Make) -> None:
    assert engine(clip=0.25).mechanism.std == pytest.approx(1.3 * 0.25 * (1 + SLACK), rel=1e-12)
    assert engine(clip=PerLayer((0.3, ))).mechanism.std == pytest.approx(
        1.3 * 0.3 * (1 + SLACK), rel=1e-12)
    twice = engine(relation="replace").mechanism
    assert twice.sensitivity == 2 * twice.bound and twice.std == 1.3 * twice.bound
    assert engine(relation="replace").epsilon() == 0


def test_virtual_steps_are_the_whole_step(engine: Make) -> None:
    whole, parts = engine(), engine()
    whole.step()
    with parts.logical_step() as step:
        for part in step.parts(1):
            assert len(part[0]) <= 1
            step.add(*part)
    assert parts.steps_done == parts.books.units == 1
    torch.testing.assert_close(whole.private.parameters["weight"],
                               parts.private.parameters["weight"])
    assert len(step.result.norms) == len(PoissonSampler(40, 10, 4, seed=4).draw(0))


def test_empty_batches_are_steps_with_noise(engine: Make) -> None:
    run = engine(expected_batch=1e-6, epochs=1e-7)
    before = run.private.parameters["weight"].detach().clone()
    assert [len(r.norms) for r in run] == [0] * len(run) and len(run) == 4 == run.books.units
    assert not torch.equal(before, run.private.parameters["weight"])


def test_datasets_by_item(engine: Make) -> None:
    rows = torch.utils.data.TensorDataset(X, Y)
    for x, y in zip(engine(), engine(dataset=rows), strict=True):
        assert torch.equal(x.norms, y.norms)
    assert [len(r.norms) for r in engine(dataset=rows, expected_batch=1e-6, epochs=5e-8)] == [0, 0]


def test_epsilon_is_spent_step_by_step_within_the_target(engine: Make) -> None:
    run = engine(noise_multiplier=None, epsilon=2.0)
    spent = [run.epsilon()] + [run.epsilon() for _ in run]
    assert spent[0] == 0 and spent == sorted(spent) and 1.99 < spent[-1] <= 2.0
    assert run.epsilon(1e-5) > run.epsilon() and run.epsilon(method="rdp") > run.epsilon()
    with pytest.raises(BudgetError, match="all 4 steps"):
        run.step()


def test_a_budget_stops_before_data_is_read(engine: Make) -> None:
    class Watched(torch.utils.data.TensorDataset):
        read = 0

        def __getitem__(self, i: int) -> Any:
            Watched.read += 1
            return super().__getitem__(i)

    run = engine(dataset=Watched(X, Y), budget=1.2)
    done = len(list(run))
    assert 0 < done < 4 and run.epsilon() <= 1.2
    before = Watched.read
    with pytest.raises(BudgetError, match="no data was read"):
        run.step()
    assert Watched.read == before and run.books.units == done


def test_a_failure_before_the_noise_is_the_same_step_again(engine: Make,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    run, smooth = engine(), engine()
    with monkeypatch.context() as patch:
        patch.setattr(run.private, "sums", _fail)
        with pytest.raises(KeyboardInterrupt):
            run.step()
    assert (run.steps_done,
            run.books.units) == (0, 1) and run.private.parameters["weight"].grad is None
    run.step(), smooth.step()
    assert (run.steps_done, run.books.units) == (1, 1)
    assert torch.equal(run.private.parameters["weight"], smooth.private.parameters["weight"])


def test_a_failure_after_the_noise_is_a_step_spent(engine: Make,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine()
    monkeypatch.setattr(run._gate.optimizer, "step", _fail)
    with pytest.raises(KeyboardInterrupt):
        next(iter(run))
    assert (run.steps_done, run.books.units) == (1, 1
                                                 )  # its noise was drawn and is never used again


def test_leaving_a_step_early_clears_its_sum(engine: Make) -> None:
    run, smooth = engine(), engine()
    with pytest.raises(LedgerError, match=r"of \d+ sampled rows added"), run.logical_step() as step:
        for part in step.parts(2):
            step.add(*part)
            break
    assert step.sums is None and all(p.grad is None for p in run.private.parameters.values())
    run.step(), smooth.step()
    assert torch.equal(run.private.parameters["weight"], smooth.private.parameters["weight"])


def test_a_step_is_used_in_order(engine: Make) -> None:
    run = engine()
    step = run.logical_step()
    with pytest.raises(LedgerError, match="outside its logical step"):
        step.add(X[:1], Y[:1])
    with step:
        batch = next(iter(step.parts(100)))
        with pytest.raises(LedgerError, match="another logical step"), run.logical_step():
            pass
        with pytest.raises(LedgerError, match="gone through once"):
            next(step.parts())
        with pytest.raises(LedgerError, match="without a folder"):
            run.checkpoint()
        step.add(*batch)
        with pytest.raises(LedgerError, match="may be added, once"):
            step.add(*batch)
    with pytest.raises(LedgerError, match="entered once"), step:
        pass
    assert run.steps_done == 1


def test_the_optimizer_takes_only_what_was_released(engine: Make) -> None:
    run = engine()
    run.step()
    with pytest.raises(LedgerError, match="no noise"):
        run._gate.optimizer.step()
    run.private.step(X[:4], Y[:4])
    with pytest.raises(LedgerError, match="no noise"):
        run._gate.optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.raises(LedgerError, match="GradScaler"):
        scaler.step(run._gate.optimizer)
    run.close()
    run._gate.optimizer.step()


def test_leftover_gradients_do_not_join(engine: Make) -> None:
    run, other = engine(), engine()
    for p in run.private.parameters.values():
        p.grad = torch.full_like(p, 1e6)
    run.step(), other.step()
    assert torch.equal(run.private.parameters["weight"], other.private.parameters["weight"])


def test_wrong_optimizers_are_refused(engine: Make, private: Callable[...,
                                                                      PerExampleModule]) -> None:
    step = private()
    wrong = [torch.optim.SGD([step.parameters["weight"]], lr=1.0),
             torch.optim.SGD([*step.parameters.values(), nn.Parameter(torch.ones(1))], lr=1.0),
             torch.optim.SGD(private().parameters.values(), lr=1.0)]
    for optimizer in wrong:
        with pytest.raises(CoverageError):
            engine(step, optimizer=optimizer)
    run = engine(step)
    run._gate.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(CoverageError):
        run.step()
    assert run.books.units == 0


def test_a_changed_bound_is_refused(engine: Make) -> None:
    run = engine(clip=0.7)
    object.__setattr__(run.private.clip, "bound", 5.0)
    with pytest.raises(PrivacyError, match="sensitivity changed"):
        run.step()
    assert run.books.units == 0


def test_divergence_is_said_after_the_noise(engine: Make) -> None:
    run = engine()
    run._gate.optimizer.param_groups[0]["lr"] = float("inf")
    with pytest.raises(DivergedError, match="not finite"):
        run.step()
    assert run.steps_done == run.books.units == 1


def test_rows_without_a_finite_gradient_add_nothing(engine: Make) -> None:
    bad = X.clone()
    bad[::2] = float("nan")
    run = engine(dataset=(bad, Y))
    assert sum(r.dropped for r in run) > 0 and all(
        torch.isfinite(p).all() for p in run.private.parameters.values())


def test_low_precision_parameters_get_noise_before_rounding() -> None:
    model = nn.Linear(6, 3).bfloat16()
    step = fxperex.transform(model, (X[:4].bfloat16(), Y[:4]), nn.functional.cross_entropy,
                             clip=0.5, backend="eager")
    with PrivacyEngine(step, torch.optim.SGD(model.parameters(), lr=1.0), (X.bfloat16(), Y),
                       expected_batch=10, epochs=1, delta=1e-3, noise_multiplier=1.0) as run:
        sums = step.sums(X[:4].bfloat16(), Y[:4])[1]
        assert all(s.dtype == torch.float32 for s in sums)
        assert run.step().norms.dtype == torch.float64


def test_samplers_by_name_and_by_object(engine: Make) -> None:
    shuffled = engine(sampling="shuffled", relation="zero-out")
    assert [len(r.norms) for r in shuffled] == [10] * 4 and shuffled.books.units == 1
    truncated = engine(sampling=TruncatedPoissonSampler(40, 10, 6, 10, seed=1))
    assert max(len(r.norms) for r in truncated) <= 10 and truncated.books.units == 6
    assert truncated.epsilon() > engine(epochs=1.5).epsilon()
    assert isinstance(shuffled.sampler, ShuffledSampler)


def test_adaptive_clipping_follows_its_quantile_and_is_accounted_for(engine: Make) -> None:
    rule = Adaptive(start=20.0, quantile=0.5, rate=0.5, count_noise=2.0)
    run = engine(clip=rule, epochs=10, noise_multiplier=1.0)
    assert run.mechanism.gradient_multiplier == pytest.approx((1 - 1 / 16) ** -0.5)
    norms = torch.cat([r.norms for r in run][-10:])
    assert 0.3 < float((norms <= rule.bound).double().mean()) < 0.7 and rule.bound < 10
    plain = engine(epochs=10, noise_multiplier=1.0)
    assert run.epsilon() == pytest.approx(plain.epsilon() if list(plain) else 0.0)


def test_guarantee_says_everything(engine: Make) -> None:
    run = engine()
    run.step()
    told, facts = str(run.guarantee()), json.loads(run.guarantee().to_json())
    for words in ("add-or-remove", "poisson", "Flat(bound=0.5)", "1 of 4 taken", "constant 10",
                  "for science only", "floating-point attacks", "hyper-parameters", "not covered"):
        assert words in told
    assert facts["epsilon"] == run.epsilon() and facts["strategies"]
    assert facts["mechanism"]["standard deviation"] == run.mechanism.std
    assert "ChaCha20" in str(engine(seed=None).guarantee())
    assert "Philox" in str(engine(seed=None, secure=False).guarantee())
    assert "2^-41" in str(engine(noise="discrete").guarantee())


def test_the_account_that_a_guarantee_is_by_is_named(engine: Make) -> None:
    run = engine(delta=1e-30)
    list(run)
    facts = run.guarantee().facts
    assert facts["account"]["method"] == "rdp" and facts["account"]["asked"] == "smaller"
    assert facts["epsilon"] == run.epsilon() == run.epsilon(method="rdp") < 1000
    assert "by rdp from" in str(run.guarantee()) and "what several spend adds up" in str(
        run.guarantee())
    assert run.epsilon(method="pld") == float("inf")


def _fail(*_: Any) -> None:
    raise KeyboardInterrupt
