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


def test_kernels_under_the_interpreter() -> None:
    folder = Path(__file__).parent / "interpreted"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0",
         str(folder)], text=True, capture_output=True, env={**os.environ, "TRITON_INTERPRET": "1"},
        timeout=600, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
