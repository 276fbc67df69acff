"""Opacus' loop on the digits, by Opacus and with its import changed: epsilon, accuracy, step time.

Both run in turns in one process: three seeds, the same rate, noise and clipping. Times are CPU
seconds of whole training epochs after the first, which holds compilation.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxperex.demo.data import load

EPOCHS, BATCH, SIGMA, DELTA = 10, 64, 1.0, 1e-5


def main() -> None:
    """Prints one line for each library and the ratio of their times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    import opacus

    from fxperex.integrations import opacus as ours

    figures: dict[str, list[tuple[float, float, float]]] = {"opacus": [], "fxperex": []}
    for seed in range(asked.seeds):
        figures["opacus"].append(train(opacus.PrivacyEngine(), seed, asked.epochs))
        figures["fxperex"].append(train(ours.PrivacyEngine(), seed, asked.epochs))
    for name, runs in figures.items():
        accuracy, epsilon, seconds = zip(*runs, strict=True)
        print(f"{name}: epsilon {epsilon[0]:.4f}, accuracy "
              f"{', '.join(f'{100 * a:.1f}%' for a in accuracy)}, CPU ms of a step "
              f"{1000 * statistics.median(seconds):.2f}")
    ratio = statistics.median(o[2] / f[2] for o, f in zip(*figures.values(), strict=True))
    print(f"Opacus' step takes {ratio:.2f} times as long")


def train(engine: Any, seed: int, epochs: int) -> tuple[float, float, float]:
    """Returns (accuracy on held-out digits, epsilon, CPU seconds of a step)."""
    torch.manual_seed(seed)
    data = load("digits")
    (x, y), (test_x, test_y) = data.train, data.test
    model: Any = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(512, 10))
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    criterion = nn.CrossEntropyLoss()
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, max_grad_norm=1.0, noise_multiplier=SIGMA,
        data_loader=DataLoader(TensorDataset(x, y), batch_size=BATCH))
    steps, started = 0, 0.0
    for epoch in range(epochs):
        if epoch == 1:
            steps, started = 0, time.process_time()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            steps += 1
    seconds = (time.process_time() - started) / steps
    model.eval()
    with torch.no_grad():
        accuracy = float((model(test_x).argmax(1) == test_y).float().mean())
    return accuracy, engine.get_epsilon(DELTA), seconds


if __name__ == "__main__":
    main()
