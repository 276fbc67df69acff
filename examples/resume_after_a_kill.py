"""Kill a run with SIGKILL, start it again from its folder, and see what the ledger says."""

from __future__ import annotations

import os
import signal
import tempfile

import torch
from torch import nn

import fxperex
from fxperex.privacy import PrivacyEngine

torch.set_num_threads(1)  # os.fork below wants no other threads


def train(folder: str, killed_after: int | None = None) -> None:
    """Trains in `folder` to the end; or dies, as if the machine had, after so many steps."""
    torch.manual_seed(0)
    x = torch.randn(400, 10)
    y = (x[:, 0] > 0).long()
    model = nn.Linear(10, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    private = fxperex.transform(model, (x[:40], y[:40]), nn.CrossEntropyLoss(), backend="eager")
    # A folder that has a run goes on with it: parameters, optimizer, secret key, steps taken.
    with PrivacyEngine(private, optimizer, (x, y), expected_batch=40, epochs=2, delta=1e-3,
                       noise_multiplier=1.0, folder=folder, checkpoint_every=5) as engine:
        print(f"process {os.getpid()} starts at step {engine.steps_done} of {len(engine)}, "
              f"{engine.books.units} debited", flush=True)
        for _ in engine:
            if engine.steps_done == killed_after:
                print(f"killed after step {killed_after}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        print(f"finished: {engine.steps_done} steps taken, {engine.books.units} debited, "
              f"epsilon {engine.epsilon():.2f}")


with tempfile.TemporaryDirectory() as parent:
    folder = os.path.join(parent, "run")
    child = os.fork()
    if child == 0:
        train(folder, killed_after=7)
    os.waitpid(child, 0)
    # The last checkpoint is of step 5. Steps 6 and 7 are taken again with the same rows and the
    # same noise, so what they release is the same and costs nothing more.
    train(folder)
