"""What a data set may hold: mappings, numpy arrays, memory maps, numbers; and a collate_fn that
sees one row at a time.
"""

from __future__ import annotations

import multiprocessing
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex.errors import ConfigError, LedgerError, PrivacyError, ShapeError
from fxperex.privacy import PrivacyEngine, Units

X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3
Build = Callable[..., PrivacyEngine]


class Named(nn.Linear):
    """Takes its batch by name and returns a mapping with its loss."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(super().forward(x), y)}


class Items:
    """A map-style data set of what `make` gives for a row."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> Any:
        return self.make(row)


@pytest.fixture(scope="module")
def step() -> fxperex.PerExampleModule:
    torch.manual_seed(0)
    return fxperex.transform(Named(6, 3), {"x": X[:4], "y": Y[:4]}, clip=0.5, backend="eager")


@pytest.fixture
def named(step: fxperex.PerExampleModule) -> Iterator[Build]:
    """Builds engines over the one step, all from the same weights."""
    opened: list[PrivacyEngine] = []
    weights = [p.detach().clone() for p in step.parameters.values()]

    def build(dataset: Any, **change: Any) -> PrivacyEngine:
        for p, value in zip(step.parameters.values(), weights, strict=True):
            p.data.copy_(value)
        settings = {"expected_batch": 10, "epochs": 1, "delta": 1e-3, "noise_multiplier": 1.3,
                    "seed": 4} | change
        optimizer = torch.optim.SGD(step.parameters.values(), lr=1.0)
        opened.append(PrivacyEngine(step, optimizer, dataset, **settings))
        return opened[-1]

    yield build
    for run in opened:
        run.close()
    for p, value in zip(step.parameters.values(), weights, strict=True):
        p.data.copy_(value)


def trained(run: PrivacyEngine) -> list[Tensor]:
    for _ in run:
        pass
    return [p.detach().clone() for p in run.private.parameters.values()]


def mapped(path: Path) -> np.ndarray:
    """X as a memory map that cannot be written to."""
    np.save(path, X.numpy())
    return np.load(path, mmap_mode="r")


def test_every_kind_of_data_set_trains_to_the_same_bits(
        named: Build, engine: Build, tmp_path: Path) -> None:
    table = mapped(tmp_path / "x.npy")
    expected = trained(engine())  # a tuple of tensors, for a step that takes a tuple
    numbers = [int(v) for v in Y]
    datasets = {
        "a mapping of tensors": {"x": X, "y": Y},
        "a mapping of arrays": {"x": X.numpy(), "y": Y.numpy()},
        "a memory map": {"x": table, "y": Y},
        "items with an int": Items(lambda i: {"x": X[i], "y": numbers[i]}),
        "rows of a memory map": Items(lambda i: {"x": table[i], "y": np.int64(numbers[i])}),
        "lists of numbers": Items(lambda i: {"x": X[i].tolist(), "y": numbers[i]}),
        "another mapping": Items(lambda i: UserDict(x=X[i], y=Y[i])),
    }
    for name, dataset in datasets.items():
        run = named(dataset)
        assert list(run.rows.nothing) == ["x", "y"], name
        assert all(map(torch.equal, trained(run), expected)), name
    made = engine(dataset=(table, Y.numpy()))
    assert all(map(torch.equal, trained(made), expected))
    made = engine(dataset=Items(lambda i: (X[i].numpy(), numbers[i])))
    assert all(map(torch.equal, trained(made), expected))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_collate_fn_sees_one_item_at_a_time(named: Build, workers: int) -> None:
    def together(items: list[Any]) -> Any:
        assert len(items) == 1
        x, y = zip(*items, strict=True)
        return UserDict(x=torch.stack(x), y=torch.tensor(y))

    expected = trained(named({"x": X, "y": Y}))
    items = Items(lambda i: (X[i], int(Y[i])))
    run = named(items, collate_fn=together, workers=workers)
    assert all(map(torch.equal, trained(run), expected))


def test_an_augmentation_gets_and_returns_one_row_by_name(named: Build) -> None:
    shapes = set()

    def each(row: dict[str, Tensor]) -> dict[str, Tensor]:
        shapes.add((tuple(row["x"].shape), tuple(row["y"].shape)))
        return {"x": row["x"] + 0.0, "y": row["y"]}

    run = named({"x": X, "y": Y})
    with run.logical_step() as step:
        for part in step.parts(each=each):
            step.add(part)
    plain = [p.detach().clone() for p in run.private.parameters.values()]
    other = named({"x": X, "y": Y})
    other.step()
    assert shapes == {((1, 6), (1,))}
    assert all(map(torch.equal, plain, other.private.parameters.values()))


def test_only_the_mapping_that_was_handed_out_is_added(named: Build) -> None:
    run = named({"x": X, "y": Y})
    with pytest.raises(LedgerError, match="no part"), run.logical_step() as step:
        for part in step.parts():
            step.add({"x": part["x"].clone(), "y": part["y"]})
    with pytest.raises(LedgerError, match="written"), run.logical_step() as step:
        for part in step.parts():
            part["x"].mul_(2)
            step.add(part)


def test_a_row_by_name_that_fails_is_left_out(named: Build, tmp_path: Path) -> None:
    bad = Items(lambda i: {"x": X[i], "y": 7 if i % 2 else int(Y[i])})
    run = named(bad)
    with pytest.raises(Exception, match="out of"):
        run.step()
    run.leave_out()
    run.step()
    assert run.steps_done == 1 and run.books.shortened == 1


def test_a_folder_is_bound_to_data_by_name(named: Build, tmp_path: Path) -> None:
    with named({"x": X, "y": Y}, folder=tmp_path, same_data=True) as run:
        run.step()
    with pytest.raises(LedgerError, match="data: values of four rows"):
        named({"x": X + 1, "y": Y}, folder=tmp_path, same_data=True)


Refusal = tuple[Any, dict[str, Any], type[Exception], str]
REFUSED: dict[str, Refusal] = {
    "a mapping without tensors": ({"x": "text"}, {}, ShapeError, "mapping of them"),
    "an empty mapping": ({}, {}, ShapeError, "mapping of them"),
    "columns of several lengths": ({"x": X, "y": Y[:3]}, {}, ShapeError, "numbers of examples"),
    "a text in an item": (Items(lambda i: {"x": X[i], "y": Y[i], "text": "a"}), {}, ShapeError,
                          "'text': 'str'.*collate_fn"),
    "an entry the step does not take": (Items(lambda i: {"x": X[i], "y": Y[i], "z": X[i]}), {},
                                        ShapeError, r"besides batch\['z'\]"),
    "an entry is missing": ({"x": X}, {}, ShapeError, r"lacks batch\['y'\]"),
    "a tuple for a mapping": ((X, Y), {}, ShapeError, "as a mapping"),
    "floats of Python": (Items(lambda i: {"x": X[i], "y": float(Y[i])}), {}, ShapeError,
                         r"batch\['y'\] is .*float64"),
    "no function": (Items(lambda i: {"x": X[i], "y": Y[i]}), {"collate_fn": 3}, ConfigError,
                    "collate_fn must be a function"),
    "a collate_fn for columns": ({"x": X, "y": Y}, {"collate_fn": dict}, ConfigError, "map-style"),
    "a collate_fn of no row": (Items(lambda i: X[i]), {"collate_fn": lambda items: items[0]},
                               ShapeError, "list of one item"),
    "a collate_fn of two rows": (Items(lambda i: X[i]),
                                 {"collate_fn": lambda items: {"x": X[:2], "y": Y[:2]}},
                                 ShapeError, r"of \[\[2, 6\], \[2\]\]"),
    "a collate_fn that fails": (Items(lambda i: X[i]), {"collate_fn": lambda items: 1 / 0},
                                PrivacyError, "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_is_refused_before_any_debit(name: str, named: Build,
                                                     tmp_path: Path) -> None:
    dataset, change, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        named(dataset, folder=tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_units_of_mappings_are_refused_with_a_way_out(named: Build) -> None:
    with pytest.raises(ShapeError, match=r"row\.values"):
        Units({"x": X, "y": Y}, Y)[0]


def test_workers_live_on_from_step_to_step(named: Build) -> None:
    items = Items(lambda i: {"x": X[i], "y": Y[i]})
    run = named(items, workers=2)
    run.step()
    before = set(processes())
    run.step()
    assert len(before) == 2 and set(processes()) == before
    run.close()
    assert not processes()


def processes() -> list[int]:
    return [p.pid for p in multiprocessing.active_children() if p.pid is not None]
