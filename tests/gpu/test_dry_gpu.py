"""The whole step for a GPU, without one: programs written and compiled to machine code, in a
process that believes in it.

Inductor remembers what it learns of the machine, so the other tests' process may not be told that
there is a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not there"),
    pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")]
SECONDS = 3000  # for all of them, on a machine that does other things too


def _run(sm: int, chosen: str) -> str:
    """Returns what pytest printed of the tests in `pretended` that `chosen` marks, on a GPU of that
    capability."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-m", chosen,
               str(Path(__file__).parent / "pretended")]
    environment = {**os.environ, "FXPEREX_PRETENDED_SM": str(sm), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, text=True, capture_output=True, timeout=SECONDS,
                           cwd=Path(__file__).parents[2], env=environment)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    return ended.stdout


def test_steps_compile_for_a_gpu_that_is_not_there() -> None:
    assert "4 passed" in _run(90, "not nightly")


@pytest.mark.nightly
@pytest.mark.parametrize("sm", [80, 90])
def test_all_steps_compile_for_both_generations(sm: int) -> None:
    assert "19 passed" in _run(sm, "nightly or not nightly")
