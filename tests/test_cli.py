"""The command line: what it prints, and refusals without a traceback."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from torch import nn

from fxperex import registry
from fxperex.cli import main


def small(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))


def test_strategies_lists_every_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies"]) == 0
    told = capsys.readouterr().out
    for name in [*registry.kinds(), *registry.strategies()]:
        assert f"  {name} " in told
    assert "ghost.py" in told and "Gram" in told


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{__name__}:small", "--input", "3x2x2", "--batch", "5", "--strategy", "ghost"]) == 0
    told = capsys.readouterr().out
    assert "1.weight" in told and "ghost" in told and "5,1,1,12,10" in told


@pytest.mark.parametrize("arguments", [
    ["explain", "nothing"], ["explain", "no.such.module:x"], ["explain", f"{__name__}:nothing"],
    ["explain", f"{__name__}:small", "--input", "3x"], ["explain", f"{__name__}:small", "--batch", "0"],
    ["explain", f"{__name__}:small", "--input", "3x2x2", "--strategy", "magic"], ["explain", "os:getcwd"],
    ["train", "--data", "mnist:/nowhere"], ["train", "--epsilon", "-1"], ["train", "--seeds", "0"]])
def test_refusals_exit_2_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("fxperex: ") and "Traceback" not in told.err


def test_train_reports_both_accuracies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--epochs", "0.5", "--epsilon", "8", "--batch", "128"]) == 0
    told = capsys.readouterr().out
    assert "held-out accuracy" in told and "without privacy" in told
    # The noise is found to 1e-4, so what is spent ends a little below what was asked.
    spent = re.search(r"epsilon ([0-9.]+)", told)
    assert spent is not None and 7.9 < float(spent[1]) <= 8.0


def test_module_entry() -> None:
    done = subprocess.run([sys.executable, "-m", "fxperex", "explain", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "fxperex: MODEL must be" in done.stderr
