"""Train a small network on handwritten digits with epsilon 3, and say what is guaranteed."""

from __future__ import annotations

import torch
from torch import nn

import fxperex
from fxperex.demo.data import load, standardise
from fxperex.privacy import PrivacyEngine

torch.manual_seed(0)
digits = load("digits")  # scikit-learn's own copy: 1,437 images to train on, 360 held out
images, labels = standardise(digits.train[0]), digits.train[1]
model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
                      nn.Flatten(), nn.Linear(16 * 4 * 4, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

# The batch shows shapes and dtypes. Draws of any size then run through the same compiled step.
private = fxperex.transform(model, (images[:128], labels[:128]), nn.CrossEntropyLoss(),
                            clip=1.0, backend="eager")
engine = PrivacyEngine(private, optimizer, (images, labels), expected_batch=128, epochs=5,
                       epsilon=3.0, delta=1e-4)
for step, result in enumerate(engine):
    if step % 10 == 0:
        # Losses are for debugging only: they are not private.
        print(f"step {step}: {len(result.losses)} rows, mean loss {result.losses.mean():.3f}")

with torch.no_grad():
    held_out = model(standardise(digits.test[0])).argmax(1)
accuracy = (held_out == digits.test[1]).double().mean().item()
print(f"accuracy {accuracy:.1%} on held-out digits, epsilon {engine.epsilon():.2f}")
print(engine.guarantee())
