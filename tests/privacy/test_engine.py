"""One logical step is: the clipped sum, noise once, a constant divisor. And what must be refused is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxperex
from fxperex.errors import ConfigError, FxperexError, PrivacyError, ShapeError
from fxperex.privacy import GaussianNoise, PoissonSampler, PrivacyEngine

X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3


def _private(clip: float = 0.5) -> fxperex.PerExampleModule:
    torch.manual_seed(0)
    return fxperex.transform(nn.Linear(6, 3), (X[:4], Y[:4]), nn.functional.cross_entropy, clip=clip, backend="eager")


def _engine(private: fxperex.PerExampleModule, **change: Any) -> PrivacyEngine:
    settings = {"expected_batch": 10, "epochs": 1, "delta": 1e-3, "noise_multiplier": 1.3, "seed": 4} | change
    optimizer = settings.pop("optimizer", None) or torch.optim.SGD(private.parameters.values(), lr=1.0)
    return PrivacyEngine(private, optimizer, settings.pop("dataset", (X, Y)), **settings)


def test_a_run_is_the_formula() -> None:
    engine, other, noise = _engine(_private()), _private(), GaussianNoise(1.3, seed=4)
    for number, rows in enumerate(PoissonSampler(40, 10, 4, seed=4)):
        for p in other.parameters.values():
            p.grad = None
        other.step(X[rows], Y[rows])
        with torch.no_grad():
            sums = [p.grad for p in other.parameters.values() if p.grad is not None]
            for p, value in zip(other.parameters.values(), noise.release(sums, 0.5, number, 10.0), strict=True):
                p -= value
    assert len(list(engine)) == len(engine) == engine.steps_done == 4
    for name, p in engine.private.parameters.items():
        torch.testing.assert_close(p, other.parameters[name])


def test_empty_batches_are_steps_with_noise() -> None:
    private = _private()
    before = private.parameters["weight"].detach().clone()
    engine = _engine(private, expected_batch=1e-6, epochs=1e-7)
    assert [len(r.norms) for r in engine] == [0] * len(engine) and len(engine) == 4
    assert not torch.equal(before, private.parameters["weight"])


def test_datasets_by_item() -> None:
    rows = torch.utils.data.TensorDataset(X, Y)
    a, b = _engine(_private()), _engine(_private(), dataset=rows)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.norms, y.norms)
    assert [len(r.norms) for r in _engine(_private(), dataset=rows, expected_batch=1e-6, epochs=5e-8)] == [0, 0]


def test_epsilon_is_spent_step_by_step_within_the_target() -> None:
    engine = _engine(_private(), noise_multiplier=None, epsilon=2.0)
    spent = [engine.epsilon()] + [engine.epsilon() for _ in engine]
    assert spent[0] == 0 and spent == sorted(spent) and 1.99 < spent[-1] <= 2.0
    with pytest.raises(PrivacyError, match="all 4 steps"):
        engine.step()


def test_a_failed_step_leaves_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(_private())

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.optimizer, "step", fail)
    with pytest.raises(KeyboardInterrupt):
        next(iter(engine))
    assert all(p.grad is None for p in engine.private.parameters.values())
    assert engine.steps_done == 1  # its noise was drawn and is never used again
    monkeypatch.setattr(engine._noise, "release", fail)
    with pytest.raises(KeyboardInterrupt):
        next(iter(engine))
    assert all(p.grad is None for p in engine.private.parameters.values())


def test_leftover_gradients_do_not_join() -> None:
    engine, other = _engine(_private()), _engine(_private())
    for p in engine.private.parameters.values():
        p.grad = torch.full_like(p, 1e6)
    engine.step(), other.step()
    assert torch.equal(engine.private.parameters["weight"], other.private.parameters["weight"])


def test_wrong_optimizers_are_refused() -> None:
    private = _private()
    wrong = [torch.optim.SGD([private.parameters["weight"]], lr=1.0),
             torch.optim.SGD([*private.parameters.values(), nn.Parameter(torch.ones(1))], lr=1.0),
             torch.optim.SGD(_private().parameters.values(), lr=1.0),
             torch.optim.LBFGS(private.parameters.values())]
    for optimizer in wrong:
        with pytest.raises(PrivacyError):
            _engine(private, optimizer=optimizer)


@pytest.mark.parametrize(("change", "error"), [
    ({"epsilon": 1.0}, ConfigError), ({"noise_multiplier": None}, ConfigError), ({"delta": 0.0}, ConfigError),
    ({"noise_multiplier": 0.0}, ConfigError), ({"epochs": 0}, ConfigError), ({"expected_batch": 41}, ConfigError),
    ({"dataset": (X, Y[:3])}, ShapeError), ({"dataset": ()}, ShapeError), ({"dataset": 3}, ShapeError)])
def test_nonsense_is_refused(change: dict[str, Any], error: type[FxperexError]) -> None:
    with pytest.raises(error):
        _engine(_private(), **change)
