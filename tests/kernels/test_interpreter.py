"""Every Triton kernel, and the strategies made of them, against float64 on the CPU: one process
under the interpreter.

Triton decides when a kernel is defined whether to interpret it, so the other tests' process cannot.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("cases", [
    "not nightly", pytest.param("nightly", marks=pytest.mark.nightly)])
def test_kernels_under_the_interpreter(cases: str) -> None:
    folder = Path(__file__).parent / "interpreted"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-m", cases,
               str(folder)]
    run = subprocess.run(command, text=True, capture_output=True, timeout=1200,
                         env={**os.environ, "TRITON_INTERPRET": "1"},
                         cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
