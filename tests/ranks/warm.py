"""Imported by the server before it forks: loads what a first transform and a first account load.

Nothing here runs autograd, whose threads no fork may inherit.
"""

from __future__ import annotations

import torch
import torch.distributed.tensor
import torch.fx.experimental.proxy_tensor
from torch import nn

import fxperex  # noqa: F401  (what a first transform imports)
from fxperex.privacy import PoissonSampler, epsilon

torch.set_num_threads(1)
with torch.no_grad():
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Dropout()), torch.zeros(3, 2)
    rows = torch.export.Dim("rows")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: rows},), strict=False)
    program.run_decompositions({})
epsilon(PoissonSampler(40, 10, 5), 1.3, 1e-3)
