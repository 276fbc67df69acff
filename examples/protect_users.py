"""Protect users rather than rows: all rows of a user are clipped, drawn and accounted for as one.
"""

from __future__ import annotations

import torch
from torch import nn

import fxperex
from fxperex.privacy import PrivacyEngine, Units, per_unit

torch.manual_seed(0)
rows, users = 600, 150
x = torch.randn(rows, 20)
y = (x[:, :3].sum(1) > 0).long()
user_ids = torch.randint(0, users, (rows,))  # a user has 4 rows on average, at most 8 take part

units = Units((x, y), user_ids, most=8)
print(f"{len(units)} users; {units.left_out} of {rows} rows are over the limit and left out")

model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

# One loss a row: the step adds up a user's gradients and clips the sum.
row_loss = nn.CrossEntropyLoss(reduction="none")
private = fxperex.transform(model, units.batch(32), forward=per_unit(row_loss), clip=1.0,
                            backend="eager")
engine = PrivacyEngine(private, optimizer, units, expected_batch=32, epochs=8, delta=1e-3,
                       noise_multiplier=1.0)
drawn = [len(result.norms) for result in engine]
print(f"{len(drawn)} steps, of {min(drawn)} to {max(drawn)} users")
print(f"epsilon {engine.epsilon():.2f} for a whole user, with all rows of that user")
print(f"accuracy {(model(x).argmax(1) == y).double().mean().item():.1%} on the rows trained on")
