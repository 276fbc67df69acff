"""A saved step: runs as the one it came from, and is refused where it does not belong."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxperex
from fxperex.clipping import Flat
from fxperex.errors import ConfigError, MemoryLimitError, PackageError, ShapeError, StateError
from fxperex.testing import clipped, error, loop


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    # A constant made in the forward pass goes into the file.
    return (model(x) * torch.tensor([1.0, 2.0, 3.0])).square().sum(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, made once: compiling takes its time."""
    path = tmp_path_factory.mktemp("package") / "deep" / "step.pt2"
    private = fxperex.transform(_net(), (torch.randn(4, 2, 6, 6),), forward=_loss, clip=0.5, backend="eager")
    assert private.save(path) == path
    return path


def test_a_loaded_step_equals_the_loop(saved: Path) -> None:
    model = _net()
    private = fxperex.load(saved, model)
    assert private.backend == "package" and "0.weight" in private.explain()
    for rows in (4, 0, 1, 6):
        x = torch.randn(rows, 2, 6, 6)
        total, norms = clipped(loop(model, lambda m, v: (m(v) * torch.tensor([1.0, 2.0, 3.0])).square().sum(1), (x,)), 0.5)
        model.zero_grad()
        result = private.step(x)
        assert error(result.norms, norms) <= 1e-5
        for name, p in model.named_parameters():
            assert p.grad is not None and error(p.grad, total[name], 1e-3) <= 1e-5
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    assert not torch.allclose(private.step(x).norms, norms), "the model's own parameters are read"
    with pytest.raises(ShapeError):
        private.step(torch.randn(4, 2, 6, 5))
    for use in (private.norms, private.gradients):
        with pytest.raises(StateError, match="compiled code only"):
            use(x)
    assert not hasattr(private, "step_graph")


def _change(path: Path, **changes: Any) -> None:
    """Writes the file anew with another manifest, every sum right."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["manifest.json"] = json.dumps(json.loads(parts["manifest.json"]) | changes).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (_cut, "damaged"), (_flip, "damaged"), (lambda p: p.write_bytes(b""), "damaged"), (lambda p: p.unlink(), "no saved step at"),
    (lambda p: _change(p, torch="2.0.0"), "torch 2.0.0; here"),
    (lambda p: _change(p, device="cuda"), "device cuda; here it is cpu"),
    (lambda p: _change(p, machine="sparc"), "machine sparc"), (lambda p: _change(p, gpu="H300"), "gpu H300"),
    (lambda p: _change(p, format=99), "format 99")]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[w for _, w in DAMAGE])
def test_a_file_that_does_not_fit_here(saved: Path, tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "step.pt2"
    shutil.copy(saved, path)
    damage(path)
    with pytest.raises(PackageError, match=words):
        fxperex.load(path, _net())


def _frozen() -> nn.Module:
    model = _net()
    model[0].bias.requires_grad_(False)
    return model


MODELS: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: _net().double(), "parameter '0.weight' was .*float32.*float64"),
    (lambda: _net()[:-1], "parameter '4.weight' was .*None"),
    (lambda: nn.Sequential(*_net(), nn.Linear(3, 3)), "parameter '5.weight' was None"),
    (lambda: nn.Sequential(*_net()[:-1], nn.Linear(64, 4)), "parameter '4.weight'"),
    (_frozen, "trains parameter '0.bias'"), (lambda: _net().eval(), "training mode")]


@pytest.mark.parametrize(("make", "words"), MODELS, ids=[w for _, w in MODELS])
def test_another_model(saved: Path, make: Callable[[], nn.Module], words: str) -> None:
    model = make()
    with pytest.raises(PackageError, match=words):
        fxperex.load(saved, model)
    assert all(p.grad is None for p in model.parameters())


def test_a_loaded_step_without_memory_names_its_peak(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda _: ends)
    x = torch.randn(4, 2, 6, 6)
    peak = fxperex.transform(_net(), (x,), forward=_loss, clip=0.5, backend="eager").peak
    model = _net()
    with pytest.raises(MemoryLimitError, match=f"plan for 4 rows expected a peak of {peak / 2**20:.2f}MiB"):
        fxperex.load(saved, model).step(x)
    assert all(p.grad is None for p in model.parameters())


class Odd(Flat):
    """A rule the library does not know."""


def test_what_cannot_be_saved_leaves_the_old_file(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step.pt2"
    path.write_text("old")
    x = torch.randn(4, 2, 6, 6)
    with pytest.raises(ConfigError, match="cannot be written down"):
        fxperex.transform(_net(), (x,), forward=_loss, clip=Odd(1.0), backend="eager").save(path)
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", _no_compiler)
    with pytest.raises(PackageError, match="no C\\+\\+ compiler"):
        fxperex.transform(_net(), (x,), forward=_loss, backend="eager").save(path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["step.pt2"]


def _no_compiler(*_: Any, **__: Any) -> None:
    raise OSError("no C++ compiler")
