"""Print the plan of a small CNN, ask it for its reasons, and see the nodes that one site put into
the step graph.
"""

from __future__ import annotations

import torch
from torch import nn

import fxperex
from fxperex.planner import Plan

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
                      nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 8 * 8, 10))
batch = torch.randn(16, 3, 16, 16), torch.randint(0, 10, (16,))

private = fxperex.transform(model, batch, nn.CrossEntropyLoss(), clip=1.0, backend="eager")
private.explain()  # a row for each site: shapes, strategy, milliseconds, runner-up

# The same as values: why no other strategy was chosen at the first convolution.
choice = private.plan.choices[0]
print(f"\n{choice.site.name} is {choice.strategy}, {1e3 * choice.seconds:.3f} ms")
for strategy, seconds in sorted(choice.times.items(), key=lambda item: item[1]):
    print(f"  {strategy:12} {1e3 * seconds:.3f} ms")
for strategy, reason in choice.refused.items():
    print(f"  {strategy:12} refused: {reason}")

# Nodes of the step graph stand together by the site that they serve.
text = private.step_graph.print_readable(print_output=False)
print("\n".join(block for block in text.split("\n\n") if block.startswith("# 0.weight")))

# A plan is a value: it goes through JSON, and serves the same model in another process.
again = fxperex.transform(model, batch, nn.CrossEntropyLoss(), clip=1.0, backend="eager",
                          strategy=Plan.from_json(private.plan.to_json()))
norms, repeated = private.norms(*batch), again.norms(*batch)
print("norms", norms[:3].tolist(), "- the same by the plan from JSON:", norms.equal(repeated))
