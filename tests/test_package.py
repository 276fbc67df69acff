"""A saved step: runs as the one it came from, and is refused where it does not belong."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxperex
from fxperex.clipping import Adaptive, Automatic, Clip, Flat, PerLayer
from fxperex.errors import ConfigError, MemoryLimitError, PackageError, ShapeError, StateError
from fxperex.runtime.batches import same_device
from fxperex.runtime.saved_rule import rule_from_json, rule_to_json
from fxperex.testing import clipped, error, loop


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(),
                         nn.Linear(64, 3))


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    # A constant made in the forward pass goes into the file.
    return (model(x) * torch.tensor([1.0, 2.0, 3.0])).square().sum(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, made once: compiling takes its time."""
    path = tmp_path_factory.mktemp("package") / "deep" / "step.pt2"
    private = fxperex.transform(_net(), (torch.randn(4, 2, 6, 6), ), forward=_loss, clip=0.5,
                                backend="eager")
    assert private.save(path) == path
    return path


def test_a_loaded_step_equals_the_loop(saved: Path) -> None:
    model = _net()
    private = fxperex.load(saved, model)
    assert private.backend == "package" and "0.weight" in private.explain()
    for rows in (4, 0, 1, 6):
        x = torch.randn(rows, 2, 6, 6)
        total, norms = clipped(
            loop(model, lambda m, v: (m(v) * torch.tensor([1.0, 2.0, 3.0])).square().sum(1), (x, )),
            0.5)
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
    assert not hasattr(private, "step_graph") and not private.proved


def _change(path: Path, **changes: Any) -> None:
    """Writes the file anew with another manifest, every sum right."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["manifest.json"] = json.dumps(json.loads(parts["manifest.json"]) | changes).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def _parts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _put(path: Path, **parts: bytes) -> None:
    """Writes the file anew with other parts (manifest, constants, recorded, step), every sum
    right.
    """
    names = {
        "manifest": "manifest.json", "constants": "constants.pt", "recorded": "recorded.pt",
        "step": "step.pt2"
    }
    changed = _parts(path) | {names[n]: data for n, data in parts.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in changed.items():
            archive.writestr(name, part)


def _all(path: Path, **changes: Any) -> None:
    """What someone does who knows the format: manifest changed, and the recorded part made to
    belong to it.
    """
    _change(path, **changes)
    parts = _parts(path)
    recorded = torch.load(io.BytesIO(parts["recorded.pt"]), weights_only=True)
    manifest = json.loads(parts["manifest.json"])
    recorded["manifest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    buffer = io.BytesIO()
    torch.save(recorded, buffer)
    _put(path, recorded=buffer.getvalue())


def _drop(path: Path, name: str) -> None:
    manifest = json.loads(_parts(path)["manifest.json"])
    del manifest[name]
    _put(path, manifest=json.dumps(manifest).encode())


def _flat(bound: float) -> dict[str, Any]:
    return {"rule": "Flat", "settings": {"bound": bound}}


class _Code:
    """What `torch.load` without `weights_only` would run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("nowhere",)


ORDER = ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (_cut, "damaged"),
    (_flip, "damaged"),
    (lambda p: p.write_bytes(b""), "damaged"),
    (lambda p: p.unlink(), "no saved step at"),
    (lambda p: _change(p, torch="2.0.0"), "torch 2.0.0; here"),
    (lambda p: _change(p, device="cuda"), "device cuda; here it is cpu"),
    (lambda p: _change(p, machine="sparc"), "machine sparc"),
    (lambda p: _change(p, gpu="H300"), "gpu H300"),
    (lambda p: _change(p, format=99), "format 99"),
    # One part changed apart from the others: what the account rests on must be what the code does.
    (lambda p: _change(p, clip=_flat(0.001)), "manifest is not the one"),
    (lambda p: _change(p, peak=1.0), "its manifest is not the one that"),
    # All parts changed: the code itself is asked.
    (lambda p: _all(p, clip=_flat(0.001)), r"Flat\(bound=0.001\), and its code clips otherwise"),
    (lambda p: _all(p, clip=_flat(2.0)), r"Flat\(bound=2.0\), and its code"),
    (lambda p: _all(p, clip={"rule": "Automatic", "settings": {"bound": 0.5, "gamma": 0.01}}),
     "Automatic.* clips otherwise"),
    (lambda p: _all(p, order=ORDER[::-1]), "sum of another shape than parameter '4.bias'"),
    (lambda p: _all(p, rows=2), "recorded with 4 rows, its manifest says 2"),
    # Everything that is not as it must be is one kind of error.
    (lambda p: _change(p, rows=0), "entry 'rows'"),
    (lambda p: _change(p, rows="4"), "no legal entry 'rows'"),
    (lambda p: _change(p, clip={"rule": "torch", "settings": {}}), "manifest"),
    (lambda p: _all(p, clip={"rule": "torch", "settings": {}}), "damaged or no saved step "
     ".KeyError: 'torch'"),
    (lambda p: _all(p, clip={"rule": "Flat", "settings": {"limit": 1}}), "damaged or no saved "
     "step .TypeError"),
    (lambda p: _drop(p, "inputs"), "no legal entry "
     "'inputs'"),
    (lambda p: _drop(p, "format"), "damaged.*KeyError"),
    (lambda p: _change(p, order=["5.weight"]), "names parameters, buffers or inputs that there "
     "are not"),
    (lambda p: _put(p, manifest=b"[1, 2]"), "damaged.*TypeError"),
    (lambda p: _put(p, manifest=b"{"), "damaged.*JSON"),
    (lambda p: _put(p, step=b"junk"), "damaged.*RuntimeError"),
    (lambda p: _put(p, constants=pickle.dumps(_Code(), protocol=2)), "damaged.*Unpickling"),
    (lambda p: _put(p, recorded=b""), "damaged.*EOFError")
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[w for _, w in DAMAGE])
def test_a_file_that_does_not_fit_here(saved: Path, tmp_path: Path, damage: Callable[[Path], None],
                                       words: str) -> None:
    path = tmp_path / "step.pt2"
    shutil.copy(saved, path)
    damage(path)
    model = _net()
    with pytest.raises(PackageError, match=words):
        fxperex.load(path, model)
    assert not Path("nowhere").exists() and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("path", [None, 5])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match="takes a path"):
        fxperex.load(path, _net())


FAULTS: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "a lost sum": lambda o: [*o[:-1], torch.zeros_like(o[-1])],
    "a transposed sum": lambda o: [*o[:7], o[7].reshape(64, 3).t().contiguous(), o[8]],
    "a scale": lambda o: [*o[:3], *(x * (1 + 2.0**-10) for x in o[3:])],
    "norms of other rows": lambda o: [o[0], o[1].roll(1), *o[2:]],
    "an output too few": lambda o: o[:-1],
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_saved_step_that_is_miscompiled_does_not_load(saved: Path,
                                                        monkeypatch: pytest.MonkeyPatch,
                                                        name: str) -> None:
    from torch._inductor import aoti_load_package

    def wrong(path: str) -> Callable[..., list[Tensor]]:
        run = aoti_load_package(path)
        return lambda *inputs: FAULTS[name](list(run(*inputs)))

    monkeypatch.setattr("torch._inductor.aoti_load_package", wrong)
    with pytest.raises(PackageError, match=r"does not give what was recorded|8 outputs"):
        fxperex.load(saved, _net())


def test_no_row_of_the_data_is_in_the_file(saved: Path) -> None:
    """What is recorded is drawn from a seed; of the rows that transform was shown the file knows
    the range alone.
    """
    recorded = torch.load(io.BytesIO(_parts(saved)["recorded.pt"]), weights_only=True)
    assert len(recorded["batch"]) == 1 and len(recorded["batch"][0]) == 2
    assert not any(x.shape[1:] == (2, 6, 6) for kind in recorded["outputs"] for x in kind)


def test_a_step_on_a_gpu_takes_tensors_of_that_gpu() -> None:
    """A device without a number means the one GPU there is: a loaded step refused every batch on
    it.
    """
    one, two = torch.device("cuda", 0), torch.device("cuda", 1)
    assert same_device(torch.device("cuda"), one) and same_device(one, one)
    assert not same_device(one, two) and not same_device(torch.device("cuda"), torch.device("cpu"))


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


def test_a_loaded_step_without_memory_names_its_peak(saved: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda _: ends)
    x = torch.randn(4, 2, 6, 6)
    peak = fxperex.transform(_net(), (x,), forward=_loss, clip=0.5, backend="eager").peak
    model = _net()
    with pytest.raises(MemoryLimitError, match="plan for 4 rows expected a peak of "
                                               f"{peak / 2**20:.2f}MiB"):
        fxperex.load(saved, model).step(x)
    assert all(p.grad is None for p in model.parameters())


@dataclass(frozen=True)
class Halved(Clip):
    """A user's rule: it clips to half of its bound."""

    bound: float
    names: tuple[str, ...] = ("a", "b")

    @property
    def sensitivity(self) -> float:
        return self.bound / 2

    def factors(self, norms: Tensor, *inputs: Tensor) -> Tensor:
        return (self.sensitivity / norms).clamp(max=1.0)


@dataclass(frozen=True)
class Counting(Halved):
    """A rule whose field is no JSON."""

    counts: Any = dataclasses.field(default_factory=dict)


class Undeclared(Flat):
    """A rule with a setting that is no field."""

    def __init__(self, factor: float) -> None:
        super().__init__(2.0 * factor)


@pytest.mark.parametrize("rule", [Halved(3.0), Flat(0.5), PerLayer((0.3, 0.4)), Automatic(2.0)])
def test_a_rule_comes_back_equal(rule: Clip) -> None:
    assert rule_from_json(json.loads(json.dumps(rule_to_json(rule)))) == rule


def _in_one_process() -> Clip:
    class Local(Flat):
        pass

    return Local(1.0)


REFUSED: list[tuple[Clip, str]] = [
    (_in_one_process(), "cannot be made again"),
    (Counting(1.0), "its field 'counts' is no JSON .dict"),
    (Undeclared(1.0), "cannot be made again .TypeError"),
    (Adaptive(), "Adaptive is no dataclass"),
]


@pytest.mark.parametrize(("rule", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_a_rule_that_would_not_come_back_is_refused_with_the_reason(rule: Clip, words: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be written down: .*{words}"):
        rule_to_json(rule)


def test_a_users_rule_is_loaded_if_the_code_clips_by_it(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "step.pt2"
    shutil.copy(saved, path)
    _all(path, clip=rule_to_json(Halved(1.0)))
    loaded = fxperex.load(path, _net())
    assert loaded.clip == Halved(1.0) and loaded.clip.sensitivity == 0.5
    _all(path, clip=rule_to_json(Halved(0.5)))
    with pytest.raises(PackageError, match="clips otherwise"):
        fxperex.load(path, _net())
    for name in ("no_such_module:Halved", f"{__name__}:NoSuchRule", "json:JSONDecoder"):
        _all(path, clip={"rule": name, "settings": {"bound": 1.0}})
        with pytest.raises(PackageError, match=f"clips by {name}, which cannot be imported"):
            fxperex.load(path, _net())


def test_what_cannot_be_saved_leaves_the_old_file(saved: Path, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step.pt2"
    path.write_text("old")
    x = torch.randn(4, 2, 6, 6)
    with pytest.raises(ConfigError, match="cannot be written down"):
        fxperex.transform(_net(), (x,), forward=_loss, clip=_in_one_process(),
                          backend="eager").save(path)
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", _no_compiler)
    with pytest.raises(PackageError, match="no C\\+\\+ compiler"):
        fxperex.transform(_net(), (x,), forward=_loss, backend="eager").save(path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["step.pt2"]


def _no_compiler(*_: Any, **__: Any) -> None:
    raise OSError("no C++ compiler")
