"""Models that DDP, fully_shard or DTensor hold: named before anything touches them, and left
whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_module, init_device_mesh

import fxperex
from fxperex.errors import ConfigError
from fxperex.privacy import PrivacyEngine

X, Y = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3


@pytest.fixture
def world(tmp_path: Path) -> Iterator[None]:
    """torch.distributed with this process alone in it."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    distributed.destroy_process_group()


def _refused(model: nn.Module, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fxperex.transform(model, (X, Y), nn.functional.cross_entropy, backend="eager")


def _trains(model: nn.Module) -> None:
    """The model still does what it did: forward, backward and an update that moves it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]


@pytest.mark.usefixtures("world")
def test_ddp_is_named_and_its_module_is_the_way_out() -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(6, 3))
    _refused(model, "wrapped in DistributedDataParallel.*Transform its .module")
    _trains(model)
    private = fxperex.transform(model.module, (X, Y), nn.functional.cross_entropy, backend="eager")
    assert len(private.step(X, Y).norms) == 4


@pytest.mark.usefixtures("world")
def test_a_sharded_model_is_served_once_its_parameters_are_dtensors() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(X)  # from now on the root holds whole and plain parameters
    _refused(model, r"shard all parameters or none.*call model\.reshard\(\)")
    model.reshard()
    private = fxperex.transform(model, (X, Y), nn.functional.cross_entropy, backend="eager")
    private.step(X, Y)
    assert all(type(p.grad) is type(p) is DTensor for p in model.parameters())
    model.zero_grad()
    _trains(model)


@pytest.mark.usefixtures("world")
def test_a_dtensor_is_named() -> None:
    mesh = init_device_mesh("cpu", (1,))
    model = distribute_module(nn.Linear(6, 3), mesh)
    assert model.weight.placements == (Replicate(),)
    _refused(model, "'weight' is a DTensor placed as .*give it plain tensors")


def test_one_process_of_several_trains_alone_only_if_it_says_so() -> None:
    model = nn.Linear(6, 3)
    private = fxperex.transform(model, (X, Y), nn.functional.cross_entropy, backend="eager")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(ConfigError, match=r"step is for one process.*init_process_group"):
            PrivacyEngine(private, torch.optim.SGD(model.parameters(), lr=1.0), (X, Y),
                          expected_batch=2, epochs=1, delta=1e-3, noise_multiplier=1.0)
        alone = fxperex.transform(model, (X, Y), nn.functional.cross_entropy, backend="eager",
                                  mesh=False)
        assert alone.ranks.size == 1 and len(alone.step(X, Y).norms) == 4
        sums = private.sums(X, Y)[1]
        for total in sums:
            distributed.all_reduce(total)
        assert len(sums) == 2
    finally:
        distributed.destroy_process_group()
