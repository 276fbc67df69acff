"""Data sets without a download: scikit-learn's digits, and MNIST or CIFAR-10 already on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxperex.errors import ConfigError

# Mean and spread of pixels in [0, 1], assumed and not measured: so they reveal no example.
CENTRE, SCALE = 0.5, 0.5
HELD_OUT = 360

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """`train` and `test`: (images `[N, *shape]` float32 in [0, 1], labels `[N]` int64)."""

    train: Pair
    test: Pair
    classes: int
    shape: tuple[int, ...]


def load(name: str) -> Data:
    """Returns the data set "digits", "mnist:PATH" or "cifar10:PATH". Raises ConfigError."""
    if not isinstance(name, str):
        raise ConfigError(f"the name of a data set must be a string; got {name!r}")
    kind, _, path = name.partition(":")
    if kind == "digits" and not path:
        return _digits()
    if kind in ("mnist", "cifar10"):
        if not path:
            raise ConfigError(f"{kind} needs the folder where it lies: {kind}:PATH")
        return _vision(kind, path)
    raise ConfigError(f"unknown data set {name!r}; valid: digits, mnist:PATH, cifar10:PATH")


def standardise(images: Tensor) -> Tensor:
    """Returns `images` scaled from [0, 1] to [-1, 1], by constants."""
    return (images - CENTRE) / SCALE


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as e:
        raise ConfigError('digits need scikit-learn: pip install "fxperex[demo]"') from e
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=HELD_OUT, random_state=0, stratify=labels)
    x, held_x, y, held_y = (torch.as_tensor(p) for p in parts)
    shape = (1, 8, 8)

    def pair(values: Tensor, targets: Tensor) -> Pair:
        return (values / 16).float().reshape(-1, *shape), targets.long()

    return Data(pair(x, y), pair(held_x, held_y), 10, shape)


def _vision(kind: str, path: str) -> Data:
    try:
        from torchvision import datasets
    except ImportError as e:
        raise ConfigError(f'{kind} needs torchvision: pip install "fxperex[models]"') from e
    dataset = datasets.MNIST if kind == "mnist" else datasets.CIFAR10
    try:
        train, test = (_tensors(dataset(path, train=part, download=False))
                       for part in (True, False))
    except (RuntimeError, OSError) as e:
        raise ConfigError(f"no {kind} under {path!r} (as torchvision.datasets lays it "
                          f"out): {e}") from e
    return Data(train, test, 10, tuple(train[0].shape[1:]))


def _tensors(dataset: Any) -> Pair:
    x = torch.as_tensor(dataset.data).float() / 255
    # MNIST is [N, H, W], CIFAR-10 [N, H, W, C]; models want [N, C, H, W].
    x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2)
    return x.contiguous(), torch.as_tensor(dataset.targets).long()
