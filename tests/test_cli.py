"""The command line: what it prints, and refusals without a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from fxperex import registry
from fxperex.cli import commands, main
from fxperex.devices import Profile
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
    assert main(["explain", f"{__name__}:small", "--input", "3x2x2", "--batch", "5", "--strategy", "ghost"]) == 0
    told = capsys.readouterr().out
    assert "1.weight" in told and "ghost" in told and "5,1,1,12,10" in told
    assert "If one strategy served" in told and "trained" in told and "peak memory" in told


def test_explain_as_json_is_a_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    assert main(["explain", f"{__name__}:small", "--input", "3x2x2", "--json", "--draw", str(picture), "--device", "cuda"]) == 0
    plan = Plan.from_json(capsys.readouterr().out)
    assert [c.site.name for c in plan.choices] == ["1.weight", "1.bias"] and plan.rows == 16
    assert picture.read_text().startswith("<svg")


def test_explain_with_a_budget_chooses_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{__name__}:wide", "--input", "64", "--batch", "64", "--memory", "300KiB",
                 "--physical-batch", "auto"]) == 0
    assert "budget 300.0 KiB" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["svg", "html", "png"])
def test_draw(suffix: str, tmp_path: Path) -> None:
    if suffix == "png":
        pytest.importorskip("matplotlib")
    path = tmp_path / f"plan.{suffix}"
    assert main(["draw", f"{__name__}:small", "--input", "3x2x2", "--output", str(path)]) == 0
    assert path.stat().st_size > 1000


def test_compare_puts_predicted_beside_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", f"{__name__}:small", "--input", "3x2x2", "--only", "auto", "multi", "naive"]) == 0
    told = capsys.readouterr().out
    assert "measured ms" in told and all(name in told for name in ("auto", "multi", "naive"))


def test_calibrate_writes_a_profile_that_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    assert main(["calibrate", "--seconds", "0.01", "--output", str(path)]) == 0
    assert Profile.from_json(path.read_text()).source == "measured"
    assert "conv_weight" in capsys.readouterr().out


def test_every_file_is_a_command() -> None:
    assert {"calibrate", "compare", "draw", "explain", "strategies", "train"} <= set(commands())


@pytest.mark.parametrize("arguments", [
    ["explain", "nothing"], ["explain", "no.such.module:x"], ["explain", f"{__name__}:nothing"],
    ["explain", f"{__name__}:small", "--input", "3x"], ["explain", f"{__name__}:small", "--batch", "0"],
    ["explain", f"{__name__}:small", "--input", "3x2x2", "--strategy", "magic"], ["explain", "os:getcwd"],
    ["explain", f"{__name__}:broken"], ["explain", f"{__name__}:small", "--input", "3x2x2", "--memory", "0"],
    ["explain", f"{__name__}:small", "--input", "3x2x2", "--memory", "plenty"],
    ["explain", f"{__name__}:small", "--input", "3x2x2", "--memory", "1KiB"],
    ["explain", f"{__name__}:small", "--input", "3x2x2", "--device", "abacus"],
    ["explain", f"{__name__}:small", "--input", "3x2x2", "--physical-batch", "0"],
    ["draw", f"{__name__}:small", "--input", "3x2x2", "--output", "plan.gif"],
    ["draw", f"{__name__}:small", "--input", "3x2x2", "--output", "/no/such/folder/plan.svg"],
    ["compare", f"{__name__}:small", "--input", "3x2x2", "--only", "magic"], ["calibrate", "--device", "abacus"],
    ["calibrate", "--seconds", "0"], ["calibrate", "--seconds", "0.01", "--output", "/no/such/folder/p.json"],
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
