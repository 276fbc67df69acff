"""The audit has teeth (half of the claim is shown, seeded bugs are caught), raises no false alarm,
and an independent scorer agrees with its bounds."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import get_epsilon_gaussian
from torch import Tensor

from fxperex.cli import main
from fxperex.errors import ConfigError
from fxperex.layers.joined import Joined
from fxperex.privacy.audit import ATTACKS, TIGHT, Setting, audit, bounds, one_run
from fxperex.privacy.audit.attack import prepare, scores
from fxperex.privacy.audit.one_run import dirac
from fxperex.privacy.audit.ways import WAYS
from fxperex.privacy.logical_step import LogicalStep
from fxperex.privacy.noise.gaussian import Noise
from fxperex.privacy.noise.mechanism import Mechanism

QUICK = Setting(runs=60, seed=3)
CLAIMED = bounds.epsilon_of_mu(2.0, 1e-5)  # of a setting of one full batch and noise 1/2


@pytest.fixture(scope="module")
def judge() -> ModuleType:
    """The scorer of jax-privacy: one file, which needs no jax; its package would."""
    path = next(f.locate() for f in metadata.files("jax-privacy") or [] if f.name == "auditing.py")
    spec = importlib.util.spec_from_file_location("auditing", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["auditing"] = module
    spec.loader.exec_module(module)
    return module


def test_bounds_are_what_the_judge_finds(judge: ModuleType) -> None:
    draw = np.random.default_rng(0)
    for mu, runs, delta in ((2.0, 300, 1e-5), (0.5, 1000, 1e-3), (4.0, 50, 0.0)):
        present, absent = draw.normal(mu, 1, runs), draw.normal(0, 1, runs)
        theirs = judge.CanaryScoreAuditor(present, absent)
        at = judge.Explicit(1.3)
        assert bounds.pair(present, absent, 1.3, delta) == pytest.approx(
            theirs.epsilon_clopper_pearson(0.05, delta, threshold_strategy=at), rel=1e-9)
        right, wrong = int((present >= 1.3).sum()), int((absent >= 1.3).sum())
        assert bounds.guesses(right, right + wrong, 2 * runs, max(delta, 1e-9)) == pytest.approx(
            theirs.epsilon_one_run(0.05, max(delta, 1e-9), threshold_strategy=at), abs=1e-5)


def test_bounds_in_closed_form() -> None:
    assert bounds.upper(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert bounds.upper(7, 7, 0.05) == 1.0
    for mu in (0.3, 1.0, 2.0, 5.0):
        assert bounds.epsilon_of_mu(mu, 1e-5) == pytest.approx(get_epsilon_gaussian(1 / mu, 1e-5),
                                                               rel=1e-6)
    assert bounds.epsilon_of_mu(-1.0, 1e-5) == bounds.epsilon_of_mu(
        1e-9, 1e-5) == 0 and bounds.epsilon_of_mu(99, 1e-5) == 100
    # All right: p = (1 + e^-epsilon)^-r at delta 0.
    for guessed in (100, 1000, 5000):
        assert bounds.guesses(guessed, guessed, guessed, 1e-300) == pytest.approx(
            -math.log(0.05 ** (-1 / guessed) - 1), rel=1e-6)
    assert bounds.guesses(50, 100, 100, 1e-5) == bounds.guesses(0, 0, 9, 1e-5) == 0
    assert bounds.guesses(90, 100, 1000, 1e-3) < bounds.guesses(
        90, 100, 100, 1e-5) < bounds.guesses(95, 100, 100, 1e-5)


def test_the_tight_attack_shows_half_of_the_claim(judge: ModuleType) -> None:
    setting = Setting(runs=300, seed=1)
    present, absent, engine = scores(ATTACKS[TIGHT], setting)
    claimed = engine.epsilon()
    assert claimed == pytest.approx(CLAIMED, rel=1e-4)
    lower = bounds.gaussian(present, absent, 0.5, setting.delta)
    assert claimed / 2 <= lower <= claimed
    assert claimed / 2 <= judge.CanaryScoreAuditor(present, absent).epsilon_from_gdp(
        0.05, setting.delta) <= claimed
    # The scores are what the mechanism's formula says: N(0 or C, C sigma).
    assert present.mean() == pytest.approx(1.0, abs=0.1) and absent.mean() == pytest.approx(
        0.0, abs=0.1)
    assert np.r_[present - 1, absent].std() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in (TIGHT, "resumed")])
def test_no_honest_run_passes_its_claim(name: str) -> None:
    known = None if name == "sampled" else CLAIMED
    found = audit(name, QUICK, claimed=known if ATTACKS[name].canary.adds else None)
    assert found.holds and found.runs == 60
    # What is to be seen is seen (sampled, hundreds of runs see little), what is not there is not.
    assert found.lower == 0 if name == "not a number" else found.lower > (
        0 if name == "sampled" else 2)


def test_a_row_without_a_gradient_is_as_if_absent() -> None:
    canary = ATTACKS["not a number"].canary
    private = prepare(canary)
    both = tuple(torch.cat([x, r]) for x, r in zip(canary.public(), canary.row(), strict=True))
    for with_it, without in zip(
            private.sums(*both)[1],
            private.sums(*canary.public())[1], strict=True):
        assert torch.equal(with_it, without)


def _no_noise_on_the_last(patch: pytest.MonkeyPatch) -> None:
    drawer = Noise._drawer

    def leaky(self: Noise, *stream: Any) -> Callable[[int, int, int], Tensor]:
        draw = drawer(self, *stream)
        return lambda item, a, b: draw(item, a, b) * (item != 1)

    patch.setattr(Noise, "_drawer", leaky)


def _half_the_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mechanism, "std", property(lambda self: self.noise_multiplier * self.bound / 2))


def _tie_missed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Joined, "gram",
        lambda self, uses: self.pairs(uses)[0][0][:, :, :1].double().square().sum(3, keepdim=True))
    patch.setattr(
        Joined, "out_gram",
        lambda self, uses: self.pairs(uses)[0][1][:, :, :1].double().square().sum(3, keepdim=True))


def _sum_left_over(patch: pytest.MonkeyPatch) -> None:
    left, enter, leave = [], LogicalStep.__enter__, LogicalStep.__exit__

    def entered(self: LogicalStep) -> LogicalStep:
        enter(self)
        self.sums = left.pop() if left else None
        return self

    def exited(self: LogicalStep, kind: Any, *rest: Any) -> None:
        if kind is not None:
            left.append(self.sums)
        leave(self, kind, *rest)

    patch.setattr(LogicalStep, "__enter__", entered)
    patch.setattr(LogicalStep, "__exit__", exited)


@pytest.mark.parametrize(
    ("attack", "bug"), [("dirac bias", _no_noise_on_the_last), (TIGHT, _half_the_noise),
                        ("tied", _tie_missed), ("interrupted", _sum_left_over)],
    ids=["no noise on one leaf", "sigma / 2", "tie missed", "accumulation leak"])
def test_seeded_bugs_are_caught(attack: str, bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    found = audit(attack, replace(QUICK, runs=200), claimed=CLAIMED)
    assert not found.holds and found.lower > 1.1 * CLAIMED


def test_noise_reused_on_resume_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = audit("resumed", replace(QUICK, runs=10))
    monkeypatch.setattr(Noise, "_streams",
                        lambda self, what, step, generation: self.secret.streams("noise", 0))
    found = audit("resumed", replace(QUICK, runs=40), claimed=honest.claimed)
    assert honest.lower == 0 and 0.1 < honest.claimed < 0.5 < found.lower and not found.holds


def test_one_run_with_many_canaries(judge: ModuleType) -> None:
    private, public, canaries = dirac(200)
    optimizer = torch.optim.SGD(private.parameters.values(), lr=1.0)
    found = one_run(private, optimizer, public, canaries, noise_multiplier=0.5, guessed=60, seed=2,
                    account="rdp")
    assert CLAIMED < found.claimed < 1.2 * CLAIMED and found.guessed == 60 and found.correct > 55
    assert 2 < found.lower < found.claimed and found.holds
    assert judge.CanaryScoreAuditor(found.present,
                                    found.absent).epsilon_one_run(0.05, 1e-5) <= found.claimed
    # What the coins were, the scores show: N(1, sigma) where in.
    assert found.present.mean() == pytest.approx(
        1, abs=0.2) and len(found.present) + len(found.absent) == 200
    with pytest.raises(ConfigError, match="201 guesses for 200"):
        one_run(private, optimizer, public, canaries, noise_multiplier=0.5, guessed=201)


def test_the_command_prints_claim_and_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.json"
    given = [
        "audit", "--runs", "20", "--canaries", "50", "--seed", "1", "--only", "not a number",
        "one run"
    ]
    assert main([*given, "--json", str(path)]) == 0
    told, facts = capsys.readouterr().out, json.loads(path.read_text())
    assert "claimed epsilon" in told and "one run, 50 canaries" in told and "REFUTED" not in told
    assert facts["attacks"][0]["lower"] <= facts["attacks"][0]["claimed"] and facts["one run"][
        "holds"]
    _half_the_noise(monkeypatch)
    assert main(["audit", "--runs", "100", "--seed", "1", "--only", TIGHT]) == 2
    assert "refuted by: dirac weight" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "words"), [(["--only", "magic"], "unknown attack"),
                                              (["--runs", "2"], "at least 10"),
                                              (["--steps", "0"], "at least 1"),
                                              (["--noise", "-1"], "above 0"),
                                              (["--delta", "2"], "between 0 and 1"),
                                              (["--confidence", "1"], "between 0 and 1"),
                                              (["--repeat", "0"], "--repeat"),
                                              (["--json", "/no/such/folder/a.json"], "no folder")])
def test_nonsense_is_refused(given: list[str], words: str,
                             capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *given]) == 2
    assert words in capsys.readouterr().err


def test_rates_and_attacks_that_are_not() -> None:
    with pytest.raises(ConfigError, match="rate must be one of"):
        Setting(rate=0.3)
    with pytest.raises(ConfigError, match="attack must be one of"):
        audit("magic", QUICK)
    assert {a.way for a in ATTACKS.values()} == set(WAYS)


@pytest.mark.nightly
def test_twenty_honest_audits_raise_no_alarm() -> None:
    found = [audit(TIGHT, Setting(runs=2000, seed=100 + i), claimed=CLAIMED) for i in range(20)]
    assert all(f.holds and f.lower >= CLAIMED / 2 for f in found)
    assert all(audit(name, Setting(runs=1000, seed=7)).holds for name in ATTACKS)
