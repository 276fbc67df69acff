"""What must be refused, as one table: input, error class, words of the message; nothing of it
spends budget or changes anything.

Numbers are those of the table of bad inputs in `fxperex/docs/privacy.md`; rows without one are this
interface's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fxperex
from fxperex.clipping import Adaptive, PerLayer
from fxperex.errors import (
    BatchMixingError,
    BudgetError,
    CaptureError,
    ConfigError,
    CoverageError,
    LedgerError,
    MutationError,
    SamplingError,
    SemanticsWarning,
    ShapeError,
    StateError,
)
from fxperex.privacy import (
    Mechanism,
    PoissonSampler,
    PrivacyEngine,
    Sampler,
    Secret,
    ShuffledSampler,
    TruncatedPoissonSampler,
)
from fxperex.runtime.module import PerExampleModule

X, Y = torch.linspace(-1, 1, 240).reshape(40, 6), torch.arange(40) % 3
IDS = torch.arange(20).reshape(4, 5) % 9
NAN, INF = float("nan"), float("inf")


class Setting:
    """A live engine that has taken no step, its private step, and the two calls that rows are made
    of.
    """

    def __init__(self, run: PrivacyEngine, engine: Callable[..., PrivacyEngine]) -> None:
        self.run, self.private, self._engine = run, run.private, engine
        self.model = run.private.model

    def engine(self, **change: Any) -> PrivacyEngine:
        return self._engine(self.private, **change)

    def transform(self, model: nn.Module, loss: Any = F.cross_entropy, batch: Any = None,
                  **options: Any) -> PerExampleModule:
        return fxperex.transform(model, batch or (X[:4], Y[:4]), loss, backend="eager", **options)

    def computes(self, forward: Callable[[Any, Tensor], Tensor],
                 **options: Any) -> PerExampleModule:
        """Transforms a model of one linear layer and this forward."""
        return self.transform(Computes(forward), **options)


class Computes(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.run, self.calls = nn.Linear(6, 3), run, 0
        self.register_buffer("kept", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].mean(0, keepdim=True).expand_as(
            grads[0])  # would mix examples where no graph shows it


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        raise AssertionError("not to be read")


class Complex(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 3)
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))


class Twice(PoissonSampler):
    def draw(self, step: int, generation: int = 0) -> Tensor:
        return torch.tensor([3, 3, 5])


def _branch(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if x.mean() > 0 else m.layer(-x)  # the line to be named


def _counts(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return m.layer(x) * m.calls


def _writes_parameter(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.layer.weight.mul_(0.9)
    return m.layer(x)


def _keeps(m: Any, x: Tensor) -> Tensor:
    m.kept.add_(x.sum())
    return m.layer(x)


def _embedding(**options: Any) -> Callable[[Setting], object]:
    return lambda s: fxperex.transform(nn.Embedding(9, 6, **options),
                                       (IDS, ), forward=lambda m, i: m(i).square().sum(
                                           (1, 2)), backend="eager")


def _held(s: Setting, change: Callable[[Any], object], undo: Callable[[Any], object]) -> None:
    change(s.model)
    try:
        s.run.step()
    finally:
        undo(s.model)


def _replaced(s: Setting) -> None:
    old = s.model.weight
    _held(s, lambda m: setattr(m, "weight", nn.Parameter(torch.zeros(3, 6))),
          lambda m: setattr(m, "weight", old))


def _unreachable() -> PoissonSampler:
    return PoissonSampler(40, 40, 10**6, seed=1)


Call = Callable[[Setting], object]
Row = tuple[Call, type[Exception], str]
ROWS: dict[str, Row] = {
    "1 C = 0": (lambda s: s.transform(nn.Linear(6, 3), clip=0), ConfigError, "clip must be"),
    "2 C = -1": (lambda s: s.transform(nn.Linear(6, 3), clip=-1), ConfigError, "clip must be"),
    "3 C = inf": (lambda s: s.transform(nn.Linear(6, 3), clip=INF), ConfigError, "clip must be"),
    "4 C = nan": (lambda s: s.transform(nn.Linear(6, 3), clip=NAN), ConfigError, "clip must be"),
    "5 C = '1.0'": (lambda s: s.transform(nn.Linear(6, 3), clip="1.0"), ConfigError,
                    "clip must be a number"),
    "6 sigma = 0": (lambda s: s.engine(noise_multiplier=0), ConfigError, "noise_multiplier"),
    "7 sigma = -1": (lambda s: s.engine(noise_multiplier=-1.0), ConfigError, "noise_multiplier"),
    "8 sigma = inf": (lambda s: s.engine(noise_multiplier=INF), ConfigError, "noise_multiplier"),
    "9 sigma = nan": (lambda s: s.engine(noise_multiplier=NAN), ConfigError, "noise_multiplier"),
    "10 sigma = None": (lambda s: s.engine(noise_multiplier=None), ConfigError,
                        "exactly one of.*neither"),
    "11 delta = 0": (lambda s: s.engine(delta=0), ConfigError, "delta must be"),
    "12 delta = 1": (lambda s: s.engine(delta=1), ConfigError, "delta must be"),
    "13 delta = 2": (lambda s: s.run.epsilon(delta=2), ConfigError, "delta must be"),
    "14 delta = -1e-5": (lambda s: s.run.epsilon(delta=-1e-5), ConfigError, "delta must be"),
    "15 q = 0": (lambda s: s.engine(expected_batch=0), ConfigError, "expected_batch"),
    "16 q = 1.5": (lambda s: s.engine(expected_batch=60), ConfigError, "at most 40; got 60"),
    "17 q = -0.1": (lambda s: s.engine(expected_batch=-4), ConfigError, "expected_batch"),
    "18 q = nan": (lambda s: s.engine(expected_batch=NAN), ConfigError, "expected_batch"),
    "19 steps = 0": (lambda s: PoissonSampler(40, 10, 0), ConfigError, "steps must be"),
    "20 steps = 2.5": (lambda s: PoissonSampler(40, 10, 2.5), ConfigError,
                       "steps must be"),  # type: ignore[arg-type]
    "21 epsilon = -1": (lambda s: s.engine(noise_multiplier=None, epsilon=-1.0), ConfigError,
                        "epsilon must be"),
    "21 epsilon out of "
    "reach": (lambda s: s.engine(noise_multiplier=None, epsilon=1e-9, delta=1e-12, account="rdp"),
              ConfigError, "no noise multiplier up to.*the least is"),
    "22 relation missing": (lambda s: s.engine(relation=None), ConfigError, "relation must be "
                            "one of"),
    "22 relation unknown": (lambda s: s.engine(relation="swap"), ConfigError, "add-or-remove"),
    "23 divisor = len": (
        lambda s: Mechanism(s.private.clip, 1.0, "replace", len, 21),
        ConfigError,  # type: ignore[arg-type]
        "not a function.*releases"),
    "24 bounds of another "
    "length": (lambda s: s.transform(nn.Linear(6, 3), clip=PerLayer(
        (1.0, 1.0))), ConfigError, "2 clip bounds for 1 layers"),
    "25 BatchNorm": (lambda s: s.transform(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))),
                     BatchMixingError, "GroupNorm"),
    "26 minus the mean": (lambda s: s.computes(lambda m, x: m.layer(x) - m.layer(x).mean(0)),
                          BatchMixingError, r"aten.mean at .*test_refusals.py:\d+.*the batch"),
    "27 softmax": (lambda s: s.computes(lambda m, x: m.layer(x).softmax(0)), BatchMixingError,
                   r"softmax at .*test_refusals"),
    "27 sort": (lambda s: s.computes(lambda m, x: m.layer(x).sort(0)[0]), BatchMixingError,
                r"sort at .*test_refusals"),
    "27 cumsum": (lambda s: s.computes(lambda m, x: m.layer(x).cumsum(0)), BatchMixingError,
                  r"cumsum at .*test_refusals"),
    "28 view": (
        lambda s: s.computes(lambda m, x: m.layer(x.reshape(2, -1).cumsum(1).reshape(-1, 6))),
        BatchMixingError, r"test_refusals.py:\d+"),
    "29 top-k": (lambda s: s.computes(lambda m, x: m.layer(x) + m.layer(x).topk(2, 0)[0].sum()),
                 BatchMixingError, r"topk at .*test_refusals"),
    "30 class weights": (lambda s: s.transform(nn.Linear(6, 3), nn.CrossEntropyLoss(torch.ones(3))),
                         SemanticsWarning, "class weights.*couples examples"),
    "31 ignore_index": (lambda s: s.transform(nn.Linear(6, 3), nn.CrossEntropyLoss(ignore_index=1)),
                        SemanticsWarning, "ignore_index=1.*couples examples"),
    "32 loss [B, T]": (lambda s: s.transform(nn.Linear(6, 3), lambda o, y: o.square()), ShapeError,
                       "one number per example"),
    "33 integer loss": (lambda s: s.transform(nn.Linear(6, 3), lambda o, y: o.argmax(1)),
                        ShapeError, "floating point"),
    "33 loss without "
    "gradient": (lambda s: s.transform(nn.Linear(6, 3), lambda o, y: y.float()), CoverageError,
                 "does not depend"),
    "34 branch": (lambda s: s.computes(_branch), CaptureError, r"test_refusals.py:\d+ "
                  r".*x.mean\(\) > 0"),
    "35 item": (lambda s: s.computes(lambda m, x: m.layer(x) * x.mean().item()), CaptureError,
                "read out of a tensor"),
    "35 tolist": (lambda s: s.computes(lambda m, x: m.layer(x) * torch.tensor(x.tolist()).mean()),
                  CaptureError, "read out"),
    "35 numpy": (lambda s: s.computes(lambda m, x: m.layer(x) * float(x.detach().numpy().mean())),
                 CaptureError, r"test_refusals.py:\d+"),
    "36 Python state": (lambda s: s.computes(_counts), CaptureError, "forward changes calls"),
    "37 running statistics": (lambda s: s.computes(_keeps), MutationError, "buffer 'kept'"),
    "38 max_norm": (_embedding(max_norm=1.0), MutationError, "parameter 'weight'.*max_norm"),
    "39 writes its "
    "parameter": (lambda s: s.computes(_writes_parameter), MutationError,
                  "parameter 'layer.weight' in place"),
    "39 writes its "
    "input": (lambda s: s.computes(lambda m, x: m.layer(x.mul_(2))), MutationError,
              "input .* in place"),
    "40 scale_grad_by_freq": (_embedding(scale_grad_by_freq=True), BatchMixingError,
                              "scale_grad_by_freq"),
    "41 autograd.Function": (lambda s: s.computes(lambda m, x: Own.apply(m.layer(x))),
                             CoverageError, r"test_refusals.Own, whose backward"),
    "42 ghost forced": (lambda s: s.computes(lambda m, x: m.layer(x) * m.layer.weight.exp().sum(
    ), strategy={"layer.weight": "ghost"}), ConfigError, "several uses"),
    "43 sparse": (_embedding(sparse=True), CoverageError, "sparse=False"),
    "44 complex": (lambda s: s.transform(Complex()), CoverageError, "'phase' has dtype "
                   "torch.complex64"),
    "45 optimizer lacks": (lambda s: s.engine(optimizer=torch.optim.SGD([s.model.weight], 1.0)),
                           CoverageError, "lacks.*bias"),
    "45 optimizer exceeds": (lambda s: s.engine(optimizer=torch.optim.SGD(
        [*s.model.parameters(), nn.Parameter(X)], 1.0)), CoverageError, "holds 1 others"),
    "46 LBFGS": (lambda s: s.engine(optimizer=torch.optim.LBFGS(s.model.parameters())), ConfigError,
                 "several times per step"),
    "47 optimizer by "
    "itself": (lambda s: s.run._gate.optimizer.step(), LedgerError, "GradScaler.*no noise"),
    "47 autocast": (lambda s: s.transform(nn.Linear(6, 3), autocast=torch.float64), ConfigError,
                    "autocast must be"),
    "48 sizes": (lambda s: s.engine(dataset=(X, Y[:39])), ShapeError, "numbers of examples"),
    "48 no axis": (lambda s: s.transform(nn.Linear(6, 3), batch=(X[:4], torch.tensor(1))),
                   ShapeError, "no dimensions"),
    "49 DataLoader": (lambda s: s.engine(dataset=DataLoader(TensorDataset(X, Y), 10, shuffle=True)),
                      SamplingError, "draws its own"),
    "50 IterableDataset": (lambda s: s.engine(dataset=Endless()), SamplingError, "IterableDataset"),
    "50 duplicates": (lambda s: s.engine(sampling=Twice(40, 10, 4, seed=1)), SamplingError,
                      "more than once"),
    "51 add outside": (lambda s: s.run.logical_step().add(X[:1], Y[:1]), LedgerError,
                       "outside its logical step"),
    "55 eval": (lambda s: _held(s, lambda m: m.eval(), lambda m: m.train()), StateError,
                "training mode.*changed"),
    "55 frozen": (lambda s: _held(s, lambda m: m.bias.requires_grad_(False), lambda m: m.bias.
                                  requires_grad_()), StateError, "'bias' changed"),
    "55 dtype": (lambda s: _held(s, lambda m: m.double(), lambda m: m.float()), StateError,
                 "float64"),
    "55 replaced": (_replaced, StateError, "'weight' changed"),
    "epochs": (lambda s: s.engine(epochs=NAN), ConfigError, "epochs"),
    "both targets": (lambda s: s.engine(epsilon=1.0), ConfigError, "got both"),
    "budget with epsilon": (lambda s: s.engine(noise_multiplier=None, epsilon=1.0, budget=1.0),
                            ConfigError, "budget"),
    "unknown sampling": (lambda s: s.engine(sampling="uniform"), ConfigError, "poisson, shuffled"),
    "shuffled, amplified": (lambda s: s.engine(sampling="shuffled"), ConfigError,
                            "zero-out or replace"),
    "shuffled batch": (lambda s: ShuffledSampler(40, 50, 4), ConfigError, "above the 40"),
    "cut too low": (lambda s: TruncatedPoissonSampler(40, 10, 4, 5), ConfigError,
                    "below the expected batch"),
    "another sampler's "
    "data": (lambda s: s.engine(sampling=PoissonSampler(30, 10, 4)), ConfigError, "30 examples"),
    "unknown account": (lambda s: s.run.epsilon(method="gdp"), ConfigError, "pld, rdp"),
    "rdp of replace": (
        lambda s: s.engine(relation="replace", account="rdp", noise_multiplier=None, epsilon=1.0),
        ConfigError, "rdp.*replace"),
    "unknown noise": (lambda s: s.engine(noise="laplace"), ConfigError, "gaussian, discrete"),
    "count too loud": (lambda s: Mechanism(Adaptive(count_noise=0.5), 1.3, "replace", 10.0, 21),
                       ConfigError, "count_noise"),
    "seed": (lambda s: Secret("four"), ConfigError, "seed"),  # type: ignore[arg-type]
    "workers": (lambda s: s.engine(workers=-1), ConfigError, "workers"),
    "checkpoint_every": (lambda s: s.engine(checkpoint_every=0), ConfigError, "checkpoint_every"),
    "no rows": (lambda s: s.engine(dataset=(X[:0], Y[:0])), ShapeError, "no examples"),
    "rows of another shape": (lambda s: s.engine(dataset=(X[:, :5], Y)), ShapeError, "made for"),
    "rows of another dtype": (lambda s: s.engine(dataset=(X.double(), Y)), ShapeError, "float64"),
    "too few tensors": (lambda s: s.engine(dataset=(X, )), ShapeError, "takes 2 tensors"),
    "items that are no "
    "tuple": (lambda s: s.engine(dataset=[{"x": X[0]}] * 40), ShapeError, "tuple of tensors"),
    "no optimizer": (lambda s: s.engine(optimizer="sgd"), ConfigError, "optimizer must be"),
    "checkpoint without a folder": (lambda s: s.run.checkpoint(), LedgerError, "without a folder"),
    "several processes": (lambda s: _several(s), ConfigError, "one process"),
    "no private step": (
        lambda s: PrivacyEngine(
            None,
            s.run.optimizer,
            (X, Y),
            expected_batch=4,  # type: ignore[arg-type]
            epochs=1,
            delta=1e-5,
            noise_multiplier=1.0),
        ConfigError,
        "what fxperex.transform returned; got NoneType"),
    "a loaded step": (lambda s: _loaded(s), ConfigError, "no proof.*fxperex.transform"),
    "folder": (lambda s: s.engine(folder=5), ConfigError, "folder must be a path; got int"),
    "secure": (lambda s: s.engine(secure="yes"), ConfigError, "secure must be True, False or None"),
    "counter alone": (lambda s: s.engine(counter=5), ConfigError, "give folder too"),
    "counter": (lambda s: s.engine(counter=5, folder="never made"), ConfigError,
                r"counter must have read\(\) and write"),
    "same_data alone": (lambda s: s.engine(same_data=True), ConfigError, "give folder too"),
    "same_data": (lambda s: s.engine(same_data=1), ConfigError, "same_data must be True or False"),
    "a second engine": (lambda s: s.engine(optimizer=s.run.optimizer), LedgerError,
                        r"close\(\) of the older engine"),
}


def _loaded(s: Setting) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerExampleModule, "proved", False)
        s.engine()


def _several(s: Setting) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        s.engine()


def test_every_number_is_here() -> None:
    """51 to 54 in part and 56 wholly are elsewhere: they need an open step, a folder or several
    processes.
    """
    assert {int(name.split()[0])
            for name in ROWS
            if name[0].isdigit()} == {*range(1, 56)} - {52, 53, 54}


@pytest.mark.parametrize("name", ROWS)
def test_is_refused_before_anything_is_spent(name: str, engine: Callable[...,
                                                                         PrivacyEngine]) -> None:
    call, kind, words = ROWS[name]
    run = engine()
    parameters = {n: p.detach().clone() for n, p in run.private.parameters.items()}
    before = (run.books.units, run.epsilon(), len(run.books.ledger.records), run.steps_done)
    setting = Setting(run, engine)
    with pytest.warns(kind, match=words) if kind is SemanticsWarning else pytest.raises(
            kind, match=words):
        call(setting)
    assert (run.books.units, run.epsilon(), len(
        run.books.ledger.records), run.steps_done) == before and before[:2] == (0, 0)
    for n, p in run.private.model.named_parameters():
        assert p is run.private.parameters[n] and p.grad is None and torch.equal(p, parameters[n])
    assert run.private.model.training


def test_a_step_left_early_or_used_twice_is_cleared(engine: Callable[..., PrivacyEngine]) -> None:
    """51: what was begun is debited, once, and nothing of its sum is left."""
    run = engine()
    with pytest.raises(LedgerError, match="sum is cleared"), run.logical_step() as step:
        next(step.parts(1))
    with pytest.raises(LedgerError, match="entered once"), step:
        pass
    assert step.sums is None and run.books.units == 1 and run.steps_done == 0
    assert all(p.grad is None for p in run.private.parameters.values())


def test_an_exhausted_budget_reads_no_data(engine: Callable[..., PrivacyEngine]) -> None:
    """52, and 54: a step that was taken is not taken again."""
    run = engine(epochs=0.5)
    stale = run.logical_step()
    assert len(list(run)) == 2
    with pytest.raises(LedgerError, match="was taken since"), stale:
        pass
    with pytest.raises(BudgetError, match="would spend more"):
        run.step()
    assert run.books.units == 2


def test_rows_out_of_place_are_refused_in_every_step(engine: Callable[..., PrivacyEngine]) -> None:
    class Later(PoissonSampler):
        def draw(self, step: int, generation: int = 0) -> Tensor:
            return torch.tensor([0, 1]) if step == 0 else torch.tensor([7, 40])

    run = engine(sampling=Later(40, 10, 4, seed=1))
    run.step()
    with pytest.raises(SamplingError, match="rows 0 to 39"):
        run.step()
    assert run.steps_done == 1 and isinstance(run.sampler, Sampler)
