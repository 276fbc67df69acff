"""Bad input: a clear error of the family, and nothing lost; a bad example: nothing of it, all of
the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex import clipping, errors
from fxperex.errors import (
    CaptureError,
    ConfigError,
    CoverageError,
    FxperexError,
    ShapeError,
    StateError,
)
from fxperex.testing import clipped, error, loop

B = 4


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def _batch(rows: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 5), torch.randint(3, (rows,))


class _Branch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line to be named
            return super().forward(x)
        return super().forward(-x)


class _Fixed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(4, 5))  # the line to be named


class _Held(nn.Linear):
    def __init__(self, held: nn.Parameter) -> None:
        super().__init__(5, 3)
        self.held = held


def _complex() -> nn.Module:
    return _Held(nn.Parameter(torch.ones(2, dtype=torch.complex64)))


def _elsewhere() -> nn.Module:
    return _Held(nn.Parameter(torch.ones(2, device="meta")))


def _go(model: nn.Module, batch: Any = None, loss: Any = F.cross_entropy,
        **options: Any) -> fxperex.PerExampleModule:
    return fxperex.transform(model,
                             _batch() if batch is None else batch, loss, backend="eager", **options)


Row = tuple[Callable[[], nn.Module], Callable[[nn.Module], object], type[FxperexError], str]
ROWS: dict[str, Row] = {
    "sizes differ": (_model, lambda m: _go(m, (torch.randn(4, 5), torch.zeros(3).long())),
                     ShapeError, "numbers of examples"),
    "a list": (_model, lambda m: _go(m, list(_batch())), ShapeError, "tuple of tensors"),
    "no tensor": (_model, lambda m: _go(m,
                                        (torch.randn(4, 5), [1])), ShapeError, "tuple of tensors"),
    "frozen": (lambda: _model().requires_grad_(False), _go, CoverageError,
               "no trainable parameter"),
    "loss without model": (_model, lambda m: _go(m, None, lambda p, y: y.float()), CoverageError,
                           "does not depend"),
    "nan clip": (_model, lambda m: _go(m, clip=float("nan")), ConfigError, "clip must be"),
    "infinite clip": (_model, lambda m: _go(m, clip=float("inf")), ConfigError, "clip must be"),
    "zero clip": (_model, lambda m: _go(m, clip=0), ConfigError, "clip must be"),
    "negative clip": (_model, lambda m: _go(m, clip=-1.0), ConfigError, "clip must be"),
    "unknown strategy": (_model, lambda m: _go(m, strategy="fast"), ConfigError,
                         "unknown strategy 'fast'.*ghost"),
    "illegal strategy": (_model, lambda m: _go(m, strategy={"0.weight": "naive"}), ConfigError,
                         "naive"),
    "glob": (_model, lambda m: _go(m, strategy={"conv*": "ghost"}), ConfigError, "conv"),
    "backend": (_model, lambda m: fxperex.transform(m, _batch(), F.cross_entropy, backend="x"),
                ConfigError, "backend"),
    "devices": (_elsewhere, _go, ConfigError, "meta"),
    "complex": (_complex, _go, CoverageError, "complex64"),
    "control flow": (lambda: _Branch(5, 3), _go, CaptureError,
                     r"test_bad_inputs.py:\d+.*x.sum\(\) > 0"),
    "batch size": (lambda: _Fixed(5, 3), lambda m: _go(m, _batch(6)), CaptureError,
                   r"test_bad_inputs.py:\d+"),
    "step shape": (_model, lambda m: _go(m).step(torch.randn(4, 6),
                                                 torch.zeros(4).long()), ShapeError, "made for"),
    "step dtype": (_model, lambda m: _go(m).step(torch.randn(4, 5).double(),
                                                 torch.zeros(4).long()), ShapeError, "float64"),
    "step sizes": (_model, lambda m: _go(m).step(torch.randn(4, 5),
                                                 torch.zeros(3).long()), ShapeError, "numbers of"),
    "step count": (_model, lambda m: _go(m).step(torch.randn(4, 5)), ShapeError, "takes 2 tensors"),
}


@pytest.mark.parametrize("name", ROWS)
def test_is_refused_and_nothing_is_lost(name: str) -> None:
    make, call, kind, words = ROWS[name]
    model = make().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = {k: list(vars(m)) for k, m in model.named_modules()}
    random = torch.get_rng_state()
    with pytest.raises(kind, match=words):
        call(model)
    # The inputs themselves were drawn from the generator: replay that draw alone.
    after = torch.get_rng_state()
    torch.set_rng_state(random)
    if name not in {"sizes differ", "no tensor", "batch size"} and not name.startswith("step"):
        _batch()
        assert torch.equal(torch.get_rng_state(), after)
    assert all(v.is_meta or torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert kept == {k: list(vars(m)) for k, m in model.named_modules()}


def _replace(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(torch.zeros(4, 5))  # type: ignore[index]


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "replaced": _replace,
    "cast": lambda m: m.double(),
    "frozen": lambda m: m[0].requires_grad_(False),  # type: ignore[index]
    "evaluating": lambda m: m.eval(),
    "added": lambda m: m.append(nn.Linear(3, 3)),  # type: ignore[operator]
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_changed_after_transform(name: str) -> None:
    model, batch = _model(), _batch()
    private = _go(model, batch)
    CHANGES[name](model)
    with pytest.raises(StateError, match="changed since transform"):
        private.step(*batch)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("strategy", ["auto", "naive", "multi", "crb", "unfold", "ghost", "vmap"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_example_adds_exactly_nothing(strategy: str, bad: float) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(),
                          nn.Linear(9, 3))
    x, y = torch.randn(B, 2, 5), torch.randint(3, (B,))
    private = _go(model, (x, y), strategy=strategy, clip=0.5)
    x[1, 0, 2] = bad
    result = private.step(x, y)
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert result.dropped == 1 and float(result.factors[1]) == 0.0
    keep = torch.tensor([0, 2, 3])
    total, _ = clipped(loop(model, lambda m, a, b: F.cross_entropy(m(a), b), (x[keep], y[keep])),
                       0.5)
    assert all(torch.isfinite(g).all() for g in found.values())
    for name, g in found.items():
        assert error(g, total[name], 1e-2) <= 1e-5, name
    model.zero_grad()
    x[1] = 0.3  # what the bad row held must not matter: weight zero in either case
    x[1, 0, 2] = -bad
    private.step(x, y)
    assert all(
        torch.equal(found[n], p.grad) for n, p in model.named_parameters() if p.grad is not None)


def test_no_grad_blocks_keep_their_meaning() -> None:
    def forward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            z = model(x)
        return F.cross_entropy(model(x) * z, y, reduction="none")

    model = _model().double()
    batch = (torch.randn(B, 5).double(), torch.randint(3, (B,)))
    total, norms = clipped(loop(copy.deepcopy(model), forward, batch), 1.0)
    result = fxperex.transform(model, batch, forward=forward, backend="eager").step(*batch)
    assert error(result.norms, norms) <= 1e-10
    for name, p in model.named_parameters():
        assert p.grad is not None and error(p.grad, total[name]) <= 1e-10


class _Lengthless:
    """Neither a number nor a name nor a function: nothing has a use for it."""


ODD: list[Any] = [
    None, 3, -1, 2.5,
    float("nan"), "", "x", b"x", [], [1], {}, {1: "ghost"}, {"*": 3}, (), (1, ),
    _Lengthless(), object, torch.float32,
    torch.device("cpu"),
    torch.randn(3),
    torch.randn(4, 5).to_sparse(),
    nn.ReLU()
]
PUBLIC: dict[str, Callable[[Any], object]] = {
    "model": lambda v: fxperex.transform(v, _batch(), F.cross_entropy, backend="eager"),
    "batch": lambda v: _go(_model(), v),
    "batch[0]": lambda v: _go(_model(), (v, torch.zeros(4).long())),
    "batch[1]": lambda v: _go(_model(), (torch.randn(4, 5), v)),
    "loss": lambda v: _go(_model(), loss=v),
    "forward": lambda v: fxperex.transform(_model(), _batch(), forward=v, backend="eager"),
    "clip": lambda v: _go(_model(), clip=v),
    "strategy": lambda v: _go(_model(), strategy=v),
    "memory": lambda v: _go(_model(), memory=v),
    "physical_batch": lambda v: _go(_model(), physical_batch=v),
    "autocast": lambda v: _go(_model(), autocast=v),
    "backend": lambda v: fxperex.transform(_model(), _batch(), F.cross_entropy, backend=v),
    "fix": fxperex.fix,
    "load": lambda v: fxperex.load(v, _model()),
    "load for": lambda v: fxperex.load("no/such/file", v),
    "Automatic": lambda v: clipping.Automatic(v),
    "Normalised": lambda v: clipping.Normalised(1.0, v),
    "PerLayer": lambda v: clipping.PerLayer(v),
    "PerGroup": lambda v: clipping.PerGroup(v),
    "Function": lambda v: clipping.Function(v, 1.0),
    "Adaptive": lambda v: clipping.Adaptive(1.0, v),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PUBLIC)
def test_odd_arguments_are_refused_or_taken_and_nothing_else(name: str) -> None:
    for value in ODD:
        try:
            PUBLIC[name](value)
        except FxperexError as refusal:
            assert len(str(refusal)) > 20


def test_odd_arguments_of_a_step_and_what_stands_beside_it() -> None:
    private = _go(_model())
    nested = torch.nested.nested_tensor([torch.randn(5)] * 4, layout=torch.jagged)
    for value in [*ODD, nested]:
        for call in (private.step, private.norms, private.gradients, private.sums):
            for rows in ((value,), (value, torch.zeros(4).long()), (torch.randn(4, 5), value)):
                with pytest.raises(FxperexError):
                    call(*rows)
    for value in (None, 3, _Lengthless()):
        with pytest.raises(ConfigError, match="takes a path"):
            private.save(value)
    assert all(p.grad is None for p in private.model.parameters())


def test_odd_arguments_of_an_engine() -> None:
    pytest.importorskip("dp_accounting")
    from fxperex.privacy import PrivacyEngine

    private = _go(_model())
    usual = {"expected_batch": 2, "epochs": 1, "delta": 1e-5, "noise_multiplier": 1.0}
    names = [
        *usual, "epsilon", "budget", "relation", "sampling", "noise", "account", "secure", "seed",
        "folder", "checkpoint_every", "workers", "counter"
    ]
    odd = [v for v in ODD if v is not None and not isinstance(v, int | str)] + ["no such", -3]
    for name in names:
        for value in odd:
            if name == "folder" and isinstance(value, str):
                continue
            optimizer = torch.optim.SGD(private.model.parameters(), 0.1)
            try:
                PrivacyEngine(private, optimizer, _batch(8), **{**usual, name: value}).close()
            except FxperexError as refusal:
                assert len(str(refusal)) > 20, name
    for args in ((None, optimizer, _batch()), (private, None, _batch()), (private, optimizer, None),
                 (private, optimizer, (1, 2)), (private, optimizer, 3), (_model(), optimizer,
                                                                         _batch())):
        with pytest.raises(FxperexError):
            PrivacyEngine(*args, **usual)  # type: ignore[arg-type]


def test_a_batch_of_another_dtype_than_the_model() -> None:
    with pytest.raises(ShapeError, match=r"aten\.linear.*torch.float64 and "
                                         r"torch.float32.*batch\[0\] is torch.float64"):
        _go(_model(), (torch.randn(4, 5).double(), torch.zeros(4).long()))


def test_every_error_is_reached_from_the_package() -> None:
    named = {
        n
        for n, e in vars(errors).items()
        if isinstance(e, type) and issubclass(e, FxperexError | Warning)
    }
    assert named <= set(fxperex.__all__) and all(
        getattr(fxperex, n) is vars(errors)[n] for n in named)


class _Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise LookupError("the user's own words")  # the line to be named


def test_a_users_own_error_is_told_by_class_words_and_line_and_chained() -> None:
    with pytest.raises(CaptureError, match=r'test_bad_inputs.py:\d+ "raise '
                                           r'LookupError.*LookupError: the user.s own') as caught:
        _go(_Own(5, 3))
    assert isinstance(caught.value.__cause__, LookupError) and "batch size" not in str(caught.value)


def test_trainable_tensors_outside_the_model_are_refused() -> None:
    class Warm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heat = nn.Parameter(torch.ones(3))

        def forward(self, scores: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(scores * self.heat, y)

    class Derived(nn.Linear):
        def __init__(self, leaf: bool) -> None:
            super().__init__(5, 3)
            self.factor = nn.Parameter(torch.ones(3))
            double = self.factor * 2
            self.double_ = double.detach().requires_grad_() if leaf else double

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.double_

    warm, free = Warm(), torch.ones(3, requires_grad=True)
    for model, loss in ((_model(), warm), (_model(), lambda s, y: F.cross_entropy(s * free, y)),
                        (Derived(False), F.cross_entropy), (Derived(True), F.cross_entropy)):
        with pytest.raises(CoverageError, match=r"test_bad_inputs.py:\d+ and is no parameter of "
                                                r"the model"):
            _go(model, None, loss)
    _go(_model(), None, lambda s, y: F.cross_entropy(s * free.detach(), y))
    whole = nn.ModuleDict({"model": _model(), "loss": warm})
    private = fxperex.transform(whole, _batch(), forward=lambda m, x, y: m["loss"]
                                (m["model"](x), y), backend="eager")
    assert "loss.heat" in private.parameters and not private.analysis.unused
