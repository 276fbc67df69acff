"""A private run split over ranks is the run of one process: rows, dropout, noise, account."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from gloo import Pool
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from training import (
    MODELS,
    ROWS,
    SIZE,
    Chosen,
    data,
    engine_of,
    mlp,
    outcome,
    private_of,
    tied,
    trained,
)

import fxperex
from fxperex.clipping import Adaptive
from fxperex.errors import FxperexError
from fxperex.privacy import PrivacyEngine
from fxperex.ranks import totals

NEAR = 1e-12
CLIP = {"clip": Adaptive(0.5, quantile=0.5)}


def _runs(rank: int, folder: Path) -> dict[str, Any]:
    """What four ranks, and each half of them, make of several runs."""
    totals.GRAIN = 8  # so that every rank has a part of so small a model
    halves = init_device_mesh("cpu", (2, 2), mesh_dim_names=("half", "rank"))
    half, place = halves["rank"], rank // 2
    single = {"dtype": torch.float32}
    return {
        "mlp 4": trained(mlp(), folder=folder / "mlp"),
        "tied 4": trained(tied(), noise="discrete"),
        "adaptive 2": trained(tied(), {"mesh": half, **CLIP}, folder=folder / f"adaptive{place}"),
        "single 4": trained(mlp(**single), folder=folder / "single"),
        "single 2": trained(mlp(**single), {"mesh": half}, folder=folder / f"single{place}"),
        "poisson": _poisson(half), "step": _stepped(rank), "failing": _failing(rank),
        "refused": _refusals(rank, folder)}


def _poisson(mesh: Any) -> list[dict[str, Any]]:
    """Four runs of 16 steps of 16 rows of 256, in physical batches of 4: most of them uneven."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(256, 16, generator=g), torch.arange(256) % 4
    private = fxperex.transform(model, (x[:4], y[:4]), nn.functional.cross_entropy, mesh=mesh,
                                backend="eager")
    results = []
    for seed in range(4):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with PrivacyEngine(private, optimizer, (x, y), expected_batch=16, epochs=1, delta=1e-5,
                           noise_multiplier=1.0, seed=seed) as engine:
            rows = [len(result.norms) for result in engine]
            results.append(outcome(engine) | {"rows": rows})
    return results


def _stepped(rank: int) -> list[Tensor]:
    model, (x, y) = mlp().eval(), data()
    private = private_of(model)
    mine = slice(0, 7) if rank == 1 else slice(7, 8) if rank == 3 else slice(0, 0)
    result = private.step(x[mine], y[mine])
    assert len(result.norms) == mine.stop - mine.start
    return [p.grad for p in model.parameters()]


class Failing(torch.utils.data.Dataset[Any]):
    """Rows of which one cannot be read."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        if row == 11:
            raise OSError("the disk is gone")
        x, y = data()
        return x[row], y[row]


def _failing(rank: int) -> dict[str, Any]:
    """The errors of a step with a row that one rank cannot read, and the step without the row."""
    private = private_of(tied())
    optimizer = torch.optim.SGD(private.parameters.values(), lr=0.5)
    sampling = Chosen(SIZE, 10, 5, seed=5)
    with PrivacyEngine(private, optimizer, Failing(), expected_batch=10, epochs=1.25, delta=1e-3,
                       noise_multiplier=1.3, seed=5, sampling=sampling) as engine:
        failures = [_raised(engine.step), _raised(engine.step)]
        units, before = engine.books.units, private.model.head.bias.detach().clone()
        engine.leave_out()
        engine.step()
        return {"errors": failures, "units": units, "shortened": engine.books.shortened,
                "moved": not torch.equal(before, private.model.head.bias), "rank": rank,
                "parameters": [p.detach().clone() for p in private.parameters.values()]}


class Unsteady(Chosen):
    """Draws rows that do not depend on key and step alone."""

    rank = 0

    def draw(self, step: int, generation: int = 0) -> Tensor:
        return torch.tensor([1, 2, 3 + self.rank])


def _refusals(rank: int, folder: Path) -> dict[str, str]:
    """What each rank raises if rank 1 alone is asked for something else."""
    odd = rank == 1
    private, x = private_of(tied()), data()[0]
    drawn, shuffled = Unsteady(SIZE, 10, 5, seed=5), torch.optim.SGD(tied().parameters(), lr=0.5)
    drawn.rank = int(odd)
    narrow = torch.optim.SGD([private.model.head.bias], lr=0.5)
    other = tied()
    with torch.no_grad():
        other.head.bias += int(odd)
    named = mock.patch("fxperex.runtime.on_ranks.torch.__version__", "2.0") if odd else \
        mock.patch("fxperex.runtime.on_ranks.CHECKED", True, create=True)
    refusals = {
        "model": _raised(lambda: private_of(MODELS["mlp" if odd else "tied"]())),
        "values": _raised(lambda: private_of(other)),
        "physical batch": _raised(lambda: private_of(tied(), physical_batch=2 if odd else ROWS)),
        "strategy": _raised(lambda: private_of(tied(), strategy="vmap" if odd else "auto")),
        "clip": _raised(lambda: private_of(tied(), clip=-1 if odd else 1)),
        "mesh": _raised(lambda: private_of(tied(), mesh="all" if odd else None)),
        "mixing": _raised(lambda: private_of(Mixing(odd))),
        "delta": _raised(lambda: engine_of(private, delta=2 if odd else 1e-3)),
        "seed": _raised(lambda: engine_of(private, seed=6 if odd else 5)),
        "folder": _raised(lambda: engine_of(private, folder=folder / "a" if odd else None)),
        "sampler": _raised(lambda: engine_of(private, sampling=drawn)),
        "optimizer": _raised(lambda: engine_of(private, optimizer=narrow if odd else None)),
        "foreign": _raised(lambda: engine_of(private, optimizer=shuffled)),
        "batch": _raised(lambda: private.step(x[:3], x[:3]) if odd else private.step(
            x[:0], data()[1][:0])),
        "alone": _raised(lambda: engine_of(private_of(tied(), mesh=False)))}
    with named:
        refusals["version"] = _raised(lambda: private_of(tied()))
    return refusals


class Mixing(nn.Linear):
    """Lets examples mix, if asked to."""

    def __init__(self, mixes: bool) -> None:
        torch.manual_seed(0)
        super().__init__(6, 3, dtype=torch.float64)
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0) if self.mixes else x)


def _raised(call: Any) -> str:
    try:
        held = call()
    except FxperexError as e:
        return f"{type(e).__name__}: {e}"
    if isinstance(held, PrivacyEngine):
        held.close()
    return "nothing"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    results: list[dict[str, Any]] = Pool(folder).run(_runs, 4, folder)
    return results


def _near(ours: dict[str, Tensor], theirs: dict[str, Tensor], most: float) -> bool:
    return all(float((ours[n] - theirs[n]).abs().max()) <= most for n in ours)


def test_parameters_after_uneven_steps_are_those_of_one_process(runs: Any, tmp_path: Path) -> None:
    alone = {"mlp 4": trained(mlp(), folder=tmp_path / "mlp"),
             "tied 4": trained(tied(), noise="discrete"),
             "adaptive 2": trained(tied(), CLIP, folder=tmp_path / "adaptive")}
    for name, expected in alone.items():
        for rank in runs:
            found = rank[name]
            assert _near(found["parameters"], expected["parameters"], NEAR), name
            for fact in ("steps", "units", "extra", "epsilon"):
                assert found[fact] == expected[fact]
            assert found["bound"] == pytest.approx(expected["bound"], rel=1e-14)
            assert len(found["hashes"]) == len(expected["hashes"])


def test_float32_is_bit_equal_and_so_is_the_recorded_hash(runs: Any, tmp_path: Path) -> None:
    with mock.patch.object(totals, "GRAIN", 8):
        expected = trained(mlp(torch.float32), folder=tmp_path / "single")
    for rank in runs:
        for name in ("single 2", "single 4"):
            assert _near(rank[name]["parameters"], expected["parameters"], 0.0)
            assert rank[name]["hashes"] == expected["hashes"] and len(set(expected["hashes"])) == 5


def test_poisson_steps_stay_together_whatever_each_rank_draws(runs: Any) -> None:
    for seed, expected in enumerate(_poisson(None)):
        ours, theirs = (runs[rank]["poisson"][seed] for rank in (0, 1))
        assert [a + b for a, b in zip(ours["rows"], theirs["rows"], strict=True)] \
            == expected["rows"]
        assert any(a != b for a, b in zip(ours["rows"], theirs["rows"], strict=True))
        for rank in runs:
            found = rank["poisson"][seed]
            assert (found["steps"], found["units"]) == (16, 16)
            assert _near(found["parameters"], expected["parameters"], 0.0)


def test_a_step_adds_up_the_rows_of_all_ranks(runs: Any) -> None:
    model, (x, y) = mlp().eval(), data()
    private_of(model).step(x[:8], y[:8])
    for rank in runs:
        for p, grad in zip(model.parameters(), rank["step"], strict=True):
            assert torch.allclose(p.grad, grad, rtol=0, atol=NEAR)


def test_every_rank_raises_for_a_row_of_one_and_leaves_it_out(runs: Any) -> None:
    failing = [rank["failing"] for rank in runs]
    own = [f for f in failing if f["errors"][0].startswith("PrivacyError: the data could not be")]
    assert len(own) == 1
    who = own[0]["rank"]
    for rank in failing:
        assert all("row 11: OSError: the disk is gone" in error for error in rank["errors"])
        assert rank is own[0] or f"rank {who} raised PrivacyError" in rank["errors"][0]
        assert (rank["units"], rank["shortened"], rank["moved"]) == (1, 1, True)
        assert all(map(torch.equal, rank["parameters"], failing[0]["parameters"]))


def test_ranks_that_differ_are_refused_on_every_rank_at_once(runs: Any) -> None:
    words = {
        "model": "trained is ['head.bias'", "values": "the values of 'head.bias' is",
        "physical batch": "physical_batch is 4 on rank 0 and 2 on rank 1",
        "strategy": "strategy is auto on rank 0 and vmap on rank 1",
        "clip": "clip", "mesh": "mesh must be a torch DeviceMesh",
        "mixing": "averages over dimension 0",
        "delta": "delta must be", "seed": "seed is 5 on rank 0 and 6 on rank 1",
        "folder": "folder is None on rank 0", "sampler": "the rows of step 0 is",
        "optimizer": "the optimizer must hold exactly", "foreign": "must hold exactly",
        "batch": "batch", "version": "torch is", "alone": "this step is for one process"}
    kinds = {"mixing": "BatchMixingError", "optimizer": "CoverageError",
             "foreign": "CoverageError", "batch": "ShapeError"}
    for rank, results in enumerate(runs):
        for name, text in results["refused"].items():
            assert text.startswith(kinds.get(name, "ConfigError")), (rank, name, text)
            assert words[name] in text, (rank, name, text)
    assert set(words) == set(runs[0]["refused"])


def test_a_mesh_without_processes_is_refused() -> None:
    with pytest.raises(fxperex.errors.ConfigError, match=r"mesh needs torch\.distributed"):
        private_of(tied(), mesh="cpu")
