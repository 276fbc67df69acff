"""The data sets: shapes, ranges, a fixed stratified split; refusals that say what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torchvision import datasets

from fxperex.demo.data import load, standardise
from fxperex.errors import ConfigError


def test_digits() -> None:
    data = load("digits")
    (x, y), (held_x, held_y) = data.train, data.test
    assert (x.shape, held_x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (data.shape, data.classes, x.dtype, y.dtype) == ((1, 8, 8), 10, torch.float32,
                                                            torch.int64)
    assert x.min() == 0 and x.max() == 1 and standardise(x).aminmax() == (-1, 1)
    assert held_y.bincount().min() >= 34 and held_y.bincount().max() <= 38
    again = load("digits")
    assert torch.equal(x, again.train[0]) and torch.equal(held_y, again.test[1])


@pytest.mark.parametrize("name", ["svhn", "", "digits:/tmp", "mnist", "cifar10:", 3])
def test_unknown_names_are_refused(name: object) -> None:
    with pytest.raises(ConfigError):
        load(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mnist", "cifar10"])
def test_nothing_is_downloaded(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no {kind} under"):
        load(f"{kind}:{tmp_path}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "made", "pixels", "shape"),
                         [("mnist", "MNIST", torch.full(
                             (4, 28, 28), 255, dtype=torch.uint8), (1, 28, 28)),
                          ("cifar10", "CIFAR10", torch.full(
                              (4, 32, 32, 3), 255, dtype=torch.uint8).numpy(), (3, 32, 32))])
def test_vision_layout(kind: str, made: str, pixels: object, shape: tuple[int, ...],
                       monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(data=pixels, targets=[0, 1, 2, 3])
    monkeypatch.setattr(datasets, made, lambda path, train, download: found)
    data = load(f"{kind}:/data")
    assert data.shape == shape and data.train[0].shape == (4, *shape)
    assert data.train[0].max() == 1 and data.test[1].tolist() == [0, 1, 2, 3]
