"""A user sees no warning that is not about their own code."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import torch, fxperex
model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
batch = torch.randn(4, 2, 4, 4), torch.randint(0, 2, (4,))
loss = torch.nn.CrossEntropyLoss()
fxperex.transform(model, batch, loss, strategy="multi", backend="eager").step(*batch)
"""


def test_a_transform_and_a_step_warn_of_nothing() -> None:
    command = [sys.executable, "-W", "error", "-c", CODE]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stderr == ""
