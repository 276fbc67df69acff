"""`benchmarks/gpu_run.py`, rehearsed on a CPU with small shapes: what it writes, how it ends, and
what it says of trouble."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
STAGES = ("machine", "kernels", "steps", "graph", "engine", "calibrate", "table", "traces")


def _rehearsed(folder: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    """Returns (exit code, what was printed, the summary) of a run with small shapes on the CPU."""
    command = [
        sys.executable,
        str(FOLDER / "gpu_run.py"),
        "--device",
        "cpu",
        "--tiny",
        "--out",
        str(folder / "out"),
        "--cache",
        str(folder / "cache"),
        *options,
    ]
    ended = subprocess.run(
        command,
        text=True,
        capture_output=True,
        timeout=1500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return ended.returncode, ended.stdout, json.loads((folder / "out" / "summary.json").read_text())


def test_kernels_are_held_to_their_references_and_written_down(tmp_path: Path) -> None:
    code, text, summary = _rehearsed(tmp_path, "--only", "machine,kernels", "--seconds", "900")
    assert code == 0, text
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["kernels.json", "summary.json"]
    (machine,) = summary["machine"]["parts"].values()
    assert {"date", "device", "versions"} <= set(machine)
    assert machine["rows"]["copy"]["GB_per_s"] > 0
    (kernels,) = json.loads((tmp_path / "out" / "kernels.json").read_text())["parts"].values()
    cases = [row["cases"] for name, row in kernels["rows"].items() if name != "chacha"]
    assert len(cases) == 12 and min(cases) > 0
    assert all(len(line) <= 100 for line in text.splitlines()) and "kernels" in text


def test_a_stage_that_has_no_time_is_said_to_have_had_none(tmp_path: Path) -> None:
    code, text, summary = _rehearsed(tmp_path, "--only", "calibrate", "--seconds", "0.3")
    assert code == 2 and summary["stages"]["calibrate"]["unended"] == {"all": "out of time"}
    assert "out of time" in text and (tmp_path / "out" / "calibrate.json").exists()


def test_an_unknown_stage_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(FOLDER / "gpu_run.py"),
        "--only",
        "speed",
        "--out",
        str(tmp_path / "out"),
    ]
    ended = subprocess.run(command, text=True, capture_output=True)
    assert ended.returncode == 1 and all(name in ended.stderr for name in ("'speed'", *STAGES))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the run's stages."""
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name: importlib.import_module(f"gpu_stages.{name}")


def test_rows_say_what_was_wrong_absent_or_raised_and_are_not_run_again(
    stages: Any, tmp_path: Path
) -> None:
    rows = stages("rows").Rows(tmp_path / "rows.json", {"device": "none"})

    def raised(error: Exception) -> Any:
        raise error

    rows.run("right", lambda: {"size": 1})
    rows.run("wrong", lambda: {"wrong": ["off by 2"]})
    rows.run("absent", lambda: raised(stages("rows").AbsentError("opacus")))
    rows.run("raised", lambda: raised(ValueError("no")))
    with pytest.raises(SystemExit):
        rows.run(
            "broken",
            lambda: raised(RuntimeError("CUDA error: an illegal memory access was encountered")),
        )
    body = json.loads((tmp_path / "rows.json").read_text())
    states = {name: row["state"] for name, row in body["rows"].items()}
    assert states == {
        "right": "ended",
        "wrong": "wrong",
        "absent": "not there",
        "raised": "failed",
        "broken": "failed",
    }
    reopened = stages("rows").Rows(tmp_path / "rows.json", {"device": "none"})
    reopened.run("right", lambda: raised(AssertionError("a row that is there was run again")))
    assert reopened.rows["right"]["size"] == 1


@pytest.mark.parametrize(
    ("state", "part", "code"),
    [
        ("ended", "ended", 0),
        ("not there", "ended", 0),
        ("wrong", "ended", 1),
        ("failed", "ended", 2),
        ("begun", "exit code -11", 2),
        ("ended", "out of time", 2),
    ],
)
def test_the_exit_code_tells_wrong_values_from_failures(
    stages: Any, state: str, part: str, code: int
) -> None:
    row = {"state": state, "why": "it is absent"}
    stage = {"seconds": 1.0, "parts": {"all": {"state": part, "rows": {"a row": row}}}}
    report = stages("report")
    assert report.code({"steps": stage}) == code
    assert ("a row" in report.table({"steps": stage})) == (state != "ended")


def test_what_was_wrong_before_a_row_was_cut_off_is_wrong(stages: Any) -> None:
    row = {"state": "begun", "wrong": ["(1, 5, 3, 2): off by 1"]}
    stage = {"seconds": 1.0, "parts": {"linear": {"state": "out of time", "rows": {"seed 0": row}}}}
    report = stages("report")
    assert report.code({"kernels": stage}) == 1 and "off by 1" in report.table({"kernels": stage})


def test_the_parts_of_the_stages_are_those_that_their_modules_know(stages: Any) -> None:
    module = importlib.import_module("gpu_stages")
    assert tuple(stages("small_models").SMALL) == module.MODELS
    assert tuple(stages("architectures").workloads(False)) == module.WORKLOADS
    cases = stages("kernel_cases")
    every = tuple(f"{family}.{dtype}" for family in cases.FAMILIES for dtype in cases.DTYPES)
    assert every == module.KERNELS
    assert set(module.GRAPHS) == set(stages("graph").CHECKS)


def test_time_is_kept_for_the_stages_after_the_long_one(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("gpu_stages")
    chosen = list(module.STAGES)
    assert tuple(chosen) == STAGES
    assert module.seconds("table", chosen, 200.0, False) == 160.0
    assert module.seconds("traces", chosen, 40.0, False) == 40.0
    assert module.seconds("steps", chosen, 580.0, False) == module.STAGES["steps"].limit


@pytest.mark.nightly
def test_every_stage_runs_to_its_end(tmp_path: Path) -> None:
    code, text, summary = _rehearsed(tmp_path, "--seconds", "1400")
    assert code == 0, text
    assert list(summary["stages"]) == list(STAGES)
    assert len(list((tmp_path / "out").iterdir())) == 8
    (part,) = json.loads((tmp_path / "out" / "table.json").read_text())["parts"].values()
    for row in part["rows"].values():
        assert (
            row["candidates"]["auto"]["error"] <= 2e-2
            and row["candidates"]["auto"]["seconds"][1] > 0
        )
