"""Digits on several processes: the same parameters, bit for bit, and the same epsilon as on one.

    python examples/several_processes.py
    torchrun --standalone --nproc-per-node 2 examples/several_processes.py
"""

from __future__ import annotations

import hashlib
import os

import torch
from torch import distributed, nn

import fxperex
from fxperex.demo.data import load, standardise
from fxperex.privacy import PrivacyEngine

torch.set_num_threads(1)
if "RANK" in os.environ:  # set by torchrun
    distributed.init_process_group("gloo")  # "nccl" on GPUs

torch.manual_seed(0)  # every process starts from the same parameters, and says so if it does not
digits = load("digits")
images, labels = standardise(digits.train[0]), digits.train[1]
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

# 32 rows are one physical batch. A step of about 128 rows is cut into so large pieces, and the
# pieces are dealt to the processes; their sums meet once a step, and noise is added once.
private = fxperex.transform(model, (images[:32], labels[:32]), nn.CrossEntropyLoss(),
                            clip=1.0, backend="eager")
with PrivacyEngine(private, optimizer, (images, labels), expected_batch=128, epochs=1,
                   noise_multiplier=1.0, delta=1e-4, seed=3) as engine:
    rows = sum(len(result.losses) for result in engine)
    rank, size = private.ranks.rank, private.ranks.size
    print(f"process {rank} of {size} ran {rows} rows in {engine.steps_done} steps", flush=True)
    if rank == 0:
        weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        print(f"epsilon {engine.epsilon():.2f}, "
              f"parameters {hashlib.sha256(weights).hexdigest()[:16]}", flush=True)

if distributed.is_initialized():
    distributed.destroy_process_group()
