"""Models whose parameters lie in parts on several processes: the step of one process, with the
collectives of ordinary training.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from gloo import Pool, raised
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training import MODELS, UNEVEN, data, private_of

from fxperex.privacy import PrivacyEngine

NEAR = 1e-12


def _wrapped(model: nn.Module, mesh: DeviceMesh, **settings: Any) -> nn.Module:
    """Each child with parameters is a unit of fully_shard, and the model is their root."""
    for child in model.children():
        if any(True for _ in child.parameters()):
            fully_shard(child, mesh=mesh, **settings)
    return fully_shard(model, mesh=mesh, **settings)


def _bare(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Parameters are DTensors, and nothing wraps the model."""
    places = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = nn.Parameter(distribute_tensor(p.detach(), mesh, places))
    return model


def _steps(model: nn.Module, rank: int, world: int) -> dict[str, Tensor]:
    """The whole parameters after uneven steps, of which this rank runs every `world`th row."""
    private, (x, y) = private_of(model.eval()), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for count in UNEVEN:
        private.step(x[:count][rank::world], y[:count][rank::world])
        optimizer.step()
        optimizer.zero_grad()
    return {n: _full(p) for n, p in model.named_parameters()}


def _full(p: Tensor) -> Tensor:
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()


class Collectives(TorchDispatchMode):
    """Counts the collectives that start."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        name = function._schema.name
        if "c10d" in name and "wait" not in name:
            self.counts["gather" if "gather" in name else "scatter" if "scatter" in name
                        else name] += 1
        return function(*args, **kwargs or {})


def _counted(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """Collectives of a private step and of an ordinary one, and peaks of the step graph."""
    torch.manual_seed(0)

    def fresh() -> nn.Module:
        layers = [nn.Sequential(nn.Linear(48, 48), nn.Tanh()) for _ in range(8)]
        return nn.Sequential(nn.Linear(6, 48), *layers, nn.Linear(48, 3)).double()

    x, y = data()
    ordinary = _wrapped(fresh(), mesh)
    with Collectives() as counted:
        nn.functional.cross_entropy(ordinary(x[:4]), y[:4]).backward()
    private = private_of(_wrapped(fresh(), mesh))
    with Collectives() as ours:
        private.step(x[:4], y[:4])
    whole = private_of(fresh(), mesh=False)
    return {"ordinary": counted.counts, "private": ours.counts,
            "parameters": len(private.parameters), "peak": private.peak, "whole": whole.peak}


def _refusals(mesh: DeviceMesh) -> dict[str, str]:
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    columns = nn.Linear(6, 3).double()
    columns.weight = nn.Parameter(distribute_tensor(columns.weight.detach(), mesh, [Shard(1)]))
    columns.bias = nn.Parameter(distribute_tensor(columns.bias.detach(), mesh, [Replicate()]))
    mixed = nn.Linear(6, 3).double()
    mixed.weight = nn.Parameter(distribute_tensor(mixed.weight.detach(), mesh, [Shard(0)]))
    model = _wrapped(MODELS["mlp"](), mesh)
    private = private_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return {"columns": raised(lambda: private_of(columns)),
            "mixed": raised(lambda: private_of(mixed)),
            "precision": raised(lambda: private_of(_wrapped(MODELS["mlp"](), mesh,
                                                             mp_policy=half))),
            "backend": raised(lambda: private_of(model, backend="inductor")),
            "save": raised(lambda: private.save("step.pt2")),
            "engine": raised(lambda: PrivacyEngine(
                private, optimizer, data(), expected_batch=10, epochs=1, delta=1e-3,
                noise_multiplier=1.0))}


def _forward(mesh: DeviceMesh) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """The wrapped model's own forward before and after a transform, and what is asked by row."""
    model, (x, y) = _wrapped(MODELS["tied"](), mesh), data()
    private = private_of(model)
    norms, gradients = private.norms(x[:3], y[:3]), private.gradients(x[:3], y[:3])
    after = model(x[:5]).detach()
    model.reshard()
    return after, MODELS["tied"]()(x[:5]).detach(), gradients, norms


def _runs(rank: int) -> dict[str, Any]:
    flat = init_device_mesh("cpu", (4, ))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
    trained = {f"{how} {name}": _steps(shard(MODELS[name](), mesh), rank, 4)
               for how, name, shard, mesh in cases(flat, square)}
    return trained | {"counted": _counted(rank, flat), "refused": _refusals(flat),
                      "forward": _forward(flat)}


def cases(flat: DeviceMesh | None, square: DeviceMesh | None) -> list[tuple[str, str, Any, Any]]:
    return [("fully_shard", "mlp", _wrapped, flat), ("fully_shard", "tied", _wrapped, flat),
            ("fully_shard", "conv", _wrapped, flat), ("Shard(0)", "transformer", _bare, flat),
            ("HSDP", "tied", _wrapped, square), ("HSDP bare", "mlp", _bare, square)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = Pool(tmp_path_factory.mktemp("sharded")).run(_runs, 4)
    return results


@pytest.mark.parametrize(("how", "name"), [case[:2] for case in cases(None, None)])
def test_a_sharded_step_is_that_of_one_process(how: str, name: str, runs: Any) -> None:
    expected = _steps(MODELS[name](), 0, 1)
    for rank in runs:
        found = rank[f"{how} {name}"]
        assert set(found) == set(expected)
        for n, value in expected.items():
            assert float((found[n] - value).abs().max()) <= NEAR, n


def test_collectives_are_those_of_ordinary_training_and_the_peak_is_lower(runs: Any) -> None:
    for rank in runs:
        counted = rank["counted"]
        count = counted["parameters"]
        # fully_shard puts the two parameters of a layer into one collective.
        assert counted["ordinary"]["gather"] <= count == 2 * counted["ordinary"]["scatter"]
        assert counted["private"]["gather"] <= 2 * count
        assert counted["private"]["scatter"] == count
        assert counted["peak"] < 0.6 * counted["whole"]


def test_the_wrapped_model_runs_as_before(runs: Any) -> None:
    x, y = data()
    alone = private_of(MODELS["tied"]())
    for rank in runs:
        after, before, gradients, norms = rank["forward"]
        assert torch.allclose(after, before, rtol=0, atol=NEAR)
        assert torch.allclose(norms, alone.norms(x[:3], y[:3]), rtol=1e-12)
        for n, value in alone.gradients(x[:3], y[:3]).items():
            assert torch.allclose(gradients[n], value, rtol=0, atol=NEAR)


def test_what_is_not_served_is_named(runs: Any) -> None:
    words = {"columns": "a step gathers Shard(0)", "mixed": "shard all parameters or none",
             "precision": "mp_policy", "backend": "runs eagerly", "save": "cannot be saved",
             "engine": "sharded"}
    for rank in runs:
        for name, text in rank["refused"].items():
            assert text.startswith("ConfigError") and words[name] in text, (name, text)
