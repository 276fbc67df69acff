"""The command line: what it prints, and refusals without a traceback."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fxperex import registry
from fxperex.cli import commands, main
from fxperex.devices import Profile, profile
from fxperex.planner import Plan


def small(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10))


def broken() -> nn.Module:
    raise RuntimeError("no weights today")


def test_strategies_lists_every_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies"]) == 0
    told = capsys.readouterr().out
    for name in [*registry.kinds(), *registry.strategies()]:
        assert f"  {name} " in told
    assert "ghost.py" in told and "Gram" in told


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(
        ["explain", f"{__name__}:small", "--input", "3x2x2", "--batch", "5", "--strategy",
         "ghost"]) == 0
    told = capsys.readouterr().out
    assert "1.weight" in told and "ghost" in told and "5,1,1,12,10" in told
    assert "If one strategy served" in told and "trained" in told and "peak memory" in told


def test_explain_as_json_is_a_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    assert main([
        "explain", f"{__name__}:small", "--input", "3x2x2", "--json", "--draw",
        str(picture), "--device", "cuda"
    ]) == 0
    plan = Plan.from_json(capsys.readouterr().out)
    assert [c.site.name for c in plan.choices] == ["1.weight", "1.bias"] and plan.rows == 16
    assert picture.read_text().startswith("<svg")


def test_explain_with_a_budget_chooses_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([
        "explain", f"{__name__}:wide", "--input", "64", "--batch", "64", "--memory", "300KiB",
        "--physical-batch", "auto"
    ]) == 0
    assert "budget 300.0 KiB" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["svg", "html", "png"])
def test_draw(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"plan.{suffix}"
    assert main(["draw", f"{__name__}:small", "--input", "3x2x2", "--output", str(path)]) == 0
    assert path.stat().st_size > 1000


def test_compare_puts_predicted_beside_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(
        ["compare", f"{__name__}:small", "--input", "3x2x2", "--only", "auto", "multi",
         "naive"]) == 0
    told = capsys.readouterr().out
    assert "measured ms" in told and all(name in told for name in ("auto", "multi", "naive"))


def test_calibrate_writes_a_profile_that_reads(tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    assert main(["calibrate", "--seconds", "0.01", "--output", str(path)]) == 0
    assert Profile.from_json(path.read_text()).source == "measured"
    assert "conv_weight" in capsys.readouterr().out


def test_every_file_is_a_command() -> None:
    assert {"calibrate", "compare", "draw", "explain", "strategies", "train"} <= set(commands())


SMALL = (f"{__name__}:small", "--input", "3x2x2")
REFUSED: dict[tuple[str, ...], str] = {
    ("explain", "nothing"): "MODEL must be",
    ("explain", "no.such.module:x"): "ModuleNotFoundError",
    ("explain", f"{__name__}:nothing"): "no attribute 'nothing'",
    ("explain", "os:getcwd"): "made a str, not a torch.nn.Module",
    ("explain", f"{__name__}:broken"): "no weights today",
    ("explain", f"{__name__}:small", "--input", "3x"): "--input must be",
    ("explain", f"{__name__}:small", "--batch", "0"): "--batch",
    ("explain", *SMALL, "--strategy", "magic"): "unknown strategy 'magic'.*ghost",
    ("explain", *SMALL, "--memory", "0"): "memory must be .* got '0'",
    ("explain", *SMALL, "--memory", "plenty"): "memory must be .* got 'plenty'",
    ("explain", *SMALL, "--memory", "1KiB"): "smallest budget that does is .*KiB, set by the site "
    "1.weight",
    ("explain", *SMALL, "--device", "abacus"): "device 'abacus'.*cpu, cuda",
    ("explain", *SMALL, "--physical-batch", "0"): "physical_batch must be",
    ("draw", *SMALL, "--output", "plan.gif"): "a picture ends in",
    ("draw", *SMALL, "--output", "/no/such/folder/plan.svg"): "cannot be written",
    ("compare", *SMALL, "--only", "magic"): "unknown strategy "
    "'magic'",
    ("calibrate", "--device", "abacus"): "device 'abacus'",
    ("calibrate", "--seconds", "0"): "--seconds must be",
    ("calibrate", "--seconds", "0.01", "--output", "/no/such/folder/p.json"): "there is no folder",
    ("train", "--data", "mnist:/nowhere"): "nowhere",
    ("train", "--epsilon", "-1"): "epsilon",
    ("train", "--seeds", "0"): "seeds",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_refusals_say_why_and_exit_2(arguments: tuple[str, ...],
                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("fxperex: ") and "Traceback" not in told.err
    assert re.search(REFUSED[arguments], told.err), told.err


class _Mixed(nn.Module):
    """Parameters of every status: trained, tied under two names, frozen, unused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 12), nn.Linear(12, 12,
                                                                           bias=False), nn.Linear(
                                                                               12, 4)
        self.second.weight = self.first.weight
        self.third.bias.requires_grad_(False)
        self.idle = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x.flatten(1)).tanh()))


def mixed() -> nn.Module:
    return _Mixed()


def test_explain_lists_every_parameter_before_any_training(
        capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{__name__}:mixed", "--input", "3x2x2"]) == 0
    lines = capsys.readouterr().out.partition("Parameters:\n")[2].splitlines()[2:]
    found = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}
    assert set(found) == {n for n, _ in mixed().named_parameters()}
    assert {n: status
            for n, (status, _) in found.items()} == {
                "first.weight": "trained", "first.bias": "trained", "third.weight": "trained",
                "third.bias": "frozen", "idle": "unused"
            }
    uses = found["first.weight"][1].split("; ")
    assert len(uses) == 2 and all(re.fullmatch(r"linear\w* \(linear: \w+\)", use) for use in uses)


def test_train_reports_both_accuracies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--epochs", "0.5", "--epsilon", "8", "--batch", "128"]) == 0
    told = capsys.readouterr().out
    assert "held-out accuracy" in told and "without privacy" in told
    # The noise is found to 1e-4, so what is spent ends a little below what was asked.
    spent = re.search(r"epsilon ([0-9.]+)", told)
    assert spent is not None and 7.9 < float(spent[1]) <= 8.0


def test_module_entry() -> None:
    done = subprocess.run([sys.executable, "-m", "fxperex", "explain", "nothing"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "fxperex: MODEL must be" in done.stderr


@pytest.mark.parametrize("disturbed", [False, True])
def test_a_calibration_that_was_disturbed_says_so(disturbed: bool, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    found, chance = profile(torch.device("cpu")), random.Random(0)
    if disturbed:
        found = replace(
            found, samples={
                k: {
                    d: tuple((s, r * 10**chance.uniform(-1, 1))
                             for s, r in rows)
                    for d, rows in by.items()
                }
                for k, by in found.samples.items()
            })
    monkeypatch.setattr("fxperex.cli.calibrate.calibrate", lambda *_: found)
    assert main(["calibrate", "--output", str(tmp_path / "profile.json")]) == 0
    assert ("run calibrate again" in capsys.readouterr().out) == disturbed
