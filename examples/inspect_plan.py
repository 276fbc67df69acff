"""Transform a small CNN, print its plan and the part of the step graph that one site made."""

from __future__ import annotations

import torch
from torch import nn

import fxperex

model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
                      nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 16 * 16, 10))
x, y = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))

private = fxperex.transform(model, (x, y), nn.CrossEntropyLoss(), clip=1.0, backend="eager")
private.explain()

text = private.step_graph.print_readable(print_output=False)
print("\n".join(block for block in text.split("\n\n") if block.startswith("# 0.weight")))

result = private.step(x, y)
print("norms", result.norms[:4].tolist(), "clipped sum of", next(iter(private.parameters)),
      model[0].weight.grad.norm())
