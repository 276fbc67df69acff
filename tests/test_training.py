"""The demonstration learns, spends what it says, and repeats under a seed."""

from __future__ import annotations

import pytest
import torch

from fxperex.demo.train import Job, Outcome, main, run
from fxperex.errors import ConfigError


def _one_thread(job: Job, **how: object) -> Outcome:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(job, **how)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)


def test_digits_at_epsilon_3() -> None:
    found = _one_thread(Job(epsilon=3.0, seed=0))
    assert found.accuracy >= 0.90
    assert found.plain is not None and found.plain >= 0.95
    assert 2.99 < found.epsilon <= 3.0 and found.steps == 225


def test_a_seed_repeats_and_another_does_not() -> None:
    runs = [
        _one_thread(Job(epochs=0.5, noise_multiplier=1.0, seed=seed), plain=False)
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_report_of_several_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = main(Job(epochs=0.5, noise_multiplier=2.0), seeds=2)
    told = capsys.readouterr().out
    assert len(outcomes) == 2 and "runner-up" in told and told.count("without privacy") == 2
    assert "mean of 2" in told and "delta 0.0001" in told


@pytest.mark.parametrize(
    "change", [{"batch": 0}, {"lr": 0.0}, {"clip": -1.0}, {"epsilon": 0.0}, {"delta": 1.0},
               {"epochs": 0}, {"strategy": "magic"}, {"backend": "magic"}, {"data": "magic"}])
def test_nonsense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        run(Job(**change))  # type: ignore[arg-type]
