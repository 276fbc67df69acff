"""No compiled step is trusted: planted miscompilations are caught, other roundings are not, and
what was wrong runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxperex
from fxperex.compiler import Check, backend_cache, backends, first_difference, tries
from fxperex.compiler.noise import unit
from fxperex.errors import BackendWarning, MemoryLimitError

Outputs = list[Tensor]
B = 6
NAMES = [
    "losses", "norms", "factors", "one.weight", "one.bias", "two.weight", "two.bias", "out.weight",
    "out.bias", "count"
]
ONE, TWO, BIAS, COUNT = 3, 5, 6, 9  # outputs


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.count.add_(1)
        return F.cross_entropy(self.out(self.two(self.one(x).tanh()).tanh()), y - 1)


def _shown(rows: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 6), torch.randint(1, 5, (rows,))


def _go(backend: str, rows: int = B, **options: Any) -> fxperex.PerExampleModule:
    return fxperex.transform(_Net(), _shown(rows), clip=0.4, backend=backend, **options)


class Bench:
    """One step graph, the check of it and the rows it is tried on: made once, since making it takes
    its time.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.private = _go("eager")
        self.check = Check(self.private.step_graph, NAMES, 3)
        self.tries = tries(self.check, _shown(), B,
                           self.private.step_inputs)
        names = [key for _, key in self.private.signature.inputs.values()]
        self.x, self.y, self.count, self.weight = names.index(0), names.index(1), names.index(
            "count"), names.index("one.weight")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


Wrong = Callable[[Bench, list[Tensor], Outputs, dict[str, Any]], Outputs]
PLANTS: dict[str, tuple[Wrong, str]] = {}


def plant(words: str) -> Callable[[Wrong], Wrong]:
    """A compiler's fault: from the inputs and the right outputs to the wrong ones; `words` are of
    the message it must raise.
    """
    def add(wrong: Wrong) -> Wrong:
        PLANTS[wrong.__name__.strip("_").replace("_", " ")] = wrong, words
        return wrong

    return add


def _with(outputs: Outputs, at: int, value: Tensor) -> Outputs:
    return [*outputs[:at], value, *outputs[at + 1:]]


@plant("one.weight .node .*site one.weight, .*weighted_sum.*on ordinary rows")
def zeroed_output(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, ONE, torch.zeros_like(o[ONE]))


@plant("one.weight")
def swapped_outputs(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(_with(o, ONE, o[TWO]), TWO, o[ONE])


@plant("losses.*masked")
def stale_outputs(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return s.setdefault("first", o)


@plant("two.weight.*masked")
def one_stale_output(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, TWO, s.setdefault("first", o[TWO]))


@plant("two.weight")
def transposed_sum(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, TWO, o[TWO].t())


@plant("out.weight")
def wrong_stride(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, 7, torch.as_strided(o[7].contiguous(), (4, 6), (1, 4)))


@plant("two.bias .* is .*\\[1, 6\\].*eagerly .*\\[6\\]")
def wrong_shape(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, BIAS, o[BIAS][None])


@plant("count")
def dropped_write(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, COUNT, inputs[b.count])


@plant("one.weight")
def one_row_lost(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    mask = inputs[-1].clone()
    mask[0] = False
    return [*o[:3], *b.check.eager(*inputs[:-1], mask)[3:]]


@plant("one.weight.*masked")
def mask_ignored(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return [*o[:3], *b.check.eager(*inputs[:-1], torch.ones(B, dtype=torch.bool))[3:]]


@plant("two.bias.*no row")
def wrong_without_rows(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return o if inputs[-1].any() else _with(o, BIAS, o[BIAS] + 1e-6)


@plant("one.weight")
def scale_off_by_a_thousandth(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str,
                                                                                  Any]) -> Outputs:
    return _with(o, ONE, o[ONE] * (1 + 2.0**-10))


@plant("one.weight")
def sum_rounded_to_bfloat16(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str,
                                                                                Any]) -> Outputs:
    return _with(o, ONE, o[ONE].bfloat16().float())


@plant("losses .* of row")
def rows_shifted(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return [*(v.roll(1, 0) for v in o[:3]), *o[3:]]


@plant("factors .* of row")
def factor_of_another_row(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, 2, o[2].roll(1, 0))


@plant("norms .* of row [345].*masked")
def nan_on_a_masked_row(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, 1, torch.where(inputs[-1], o[1], torch.nan))


@plant("norms .* of row")
def norms_too_low(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, 1, o[1] * (1 - 2.0**-12))


@plant("overwrites its input")
def parameter_overwritten(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    inputs[b.weight].mul_(1 + 2.0**-20)
    return o


@plant("overwrites its input")
def batch_overwritten(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    inputs[b.x][2] = 0.0
    return o


@plant("out.bias.*masked")
def wrong_for_partial_masks(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str,
                                                                                Any]) -> Outputs:
    return o if inputs[-1].all() or not inputs[-1].any() else _with(o, 8, 1.01 * o[8])


@plant("one.bias.*equal rows")
def wrong_for_equal_rows(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return _with(o, 4, 1.01 * o[4]) if torch.equal(inputs[b.x], inputs[b.x][:1].expand(B, 6)) else o


@plant("two.bias.*large rows")
def wrong_for_large_values(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str,
                                                                               Any]) -> Outputs:
    return _with(o, BIAS, 1.01 * o[BIAS]) if inputs[b.x].abs().max() > 50 else o


@plant("two.bias.*small rows")
def wrong_for_small_values(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str,
                                                                               Any]) -> Outputs:
    return _with(o, BIAS, 1.01 * o[BIAS]) if inputs[b.x].abs().max() < 0.01 else o


@plant("one.weight.*masked")
def wrong_on_the_second_call(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str,
                                                                                 Any]) -> Outputs:
    s["calls"] = s.get("calls", 0) + 1
    return _with(o, ONE, -o[ONE]) if s["calls"] == 2 else o


@plant("losses")
def wrong_label_read(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    labels = inputs[b.y].clone()
    labels[0] = labels[0] % 4 + 1
    return b.check.eager(*inputs[:b.y], labels, *inputs[b.y + 1:])


@plant("one.weight")
def last_entry_lost(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    value = o[ONE].clone()
    value[-1, -1] = 0.0
    return _with(o, ONE, value)


@plant("one.weight")
def clipped_by_nobody(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return [*o[:3], *(v / o[2].amin() for v in o[3:9]), o[9]]


@plant("raises RuntimeError")
def failing(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    raise RuntimeError("a kernel that is not there")


@plant("has 9 outputs")
def output_missing(b: Bench, inputs: list[Tensor], o: Outputs, s: dict[str, Any]) -> Outputs:
    return o[:-1]


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_miscompilation_is_caught(bench: Bench, name: str) -> None:
    wrong, words = PLANTS[name]
    notes: dict[str, Any] = {}
    state = [p.clone() for p in bench.private.model.state_dict().values()]

    def step(*inputs: Tensor) -> Outputs:
        return wrong(bench, list(inputs), bench.check.eager(*inputs), notes)

    found = first_difference(bench.check, step, bench.tries)
    assert found
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found)
    assert all(
        torch.equal(a, b) for a, b in zip(state,
                                          bench.private.model.state_dict().values(), strict=True))


def test_there_are_twenty_plants_and_more() -> None:
    assert len(PLANTS) >= 20


class _Rounds(fx.Interpreter):
    """Another compiler's arithmetic: every operation's result is off by a unit of rounding, up or
    down.
    """

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "call_function" or not isinstance(
                value, Tensor) or not value.dtype.is_floating_point or not value.numel():
            return value
        u = max(torch.finfo(value.dtype).eps, 2.0**-24) / 2
        return value * (1 + u * (2.0 * (torch.rand(value.shape) < 0.5).to(value.dtype) - 1))


def rounded(graph: fx.GraphModule) -> backends.Step:
    """Returns a step of `graph` that rounds otherwise in every operation, and draws what it
    draws.
    """
    def run(*inputs: Tensor) -> Sequence[Any]:
        with torch.no_grad():
            return _Rounds(graph).run(*inputs)

    return run


def test_another_rounding_is_no_difference(bench: Bench) -> None:
    assert not first_difference(bench.check, bench.check.eager, bench.tries)
    for _ in range(5):
        assert not first_difference(bench.check, rounded(bench.private.step_graph), bench.tries)


def test_a_sum_that_cancels_to_nothing_may_round_to_anything() -> None:
    """The loss is constant but for rounding (squares of a normalised output): eager sums are
    rounding errors alone.
    """
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8, eps=0.0))
    private = fxperex.transform(model, (torch.randn(4, 5), ),
                                forward=lambda m, v: m(v).square().sum(1), backend="eager")
    check = Check(private.step_graph, (), 3)
    on = tries(check, (torch.randn(4, 5),), 4, private.step_inputs)
    first, second = (rounded(private.step_graph)(*on[0][1])[3] for _ in range(2))
    assert float((first - second).norm()) > 1e-2 * float(first.norm()), "rounding decides"
    assert not first_difference(check, rounded(private.step_graph), on)


def test_rows_that_stand_in_are_legal_and_of_every_kind(bench: Bench) -> None:
    kinds = {kind: inputs for kind, inputs in bench.tries}
    assert list(kinds) == [
        "ordinary rows", "rows of which some are "
        "masked", "no row", "equal rows", "large rows", "small rows", "other ordinary rows"
    ]
    for inputs in kinds.values():
        assert int(inputs[bench.y].min()) >= 1 and int(
            inputs[bench.y].max()) <= 4 and inputs[bench.x].std() > 0
    assert kinds["large rows"][bench.x].abs().max() > 1e3 and kinds["small rows"][
        bench.x].abs().max() < 0.01
    assert [int(inputs[-1].sum()) for inputs in kinds.values()] == [6, 3, 0, 6, 6, 6, 6]


def test_numbers_that_become_indices_are_only_shuffled() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.embed(x.long() - 1).square().sum((1, 2))

    shown = torch.randint(1, 5, (3, 2)).float()
    private = fxperex.transform(Looks(), (shown,), backend="eager")
    found = tries(Check(private.step_graph, (), 3), (shown, ), 3,
                  private.step_inputs)
    assert [kind for kind, _ in found] == ["ordinary rows", "rows of which some are "
                                                            "masked", "no row", "equal rows",
                                           "other ordinary rows"]
    rows = {tuple(r) for r in shown.tolist()}
    assert all({tuple(r) for r in inputs[-2].tolist()} <= rows for _, inputs in found)


def _planted(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[list[Tensor], Outputs],
                                                              Outputs]) -> list[int]:
    """Inductor replaced by the graph itself and a fault; returns the list that its calls are
    counted in.
    """
    calls: list[int] = []

    def compiled(graph: fx.GraphModule, inputs: list[Tensor],
                 fixed: Sequence[bool]) -> backends.Step:
        def run(*args: Tensor) -> Sequence[Any]:
            calls.append(1)
            with torch.no_grad():
                return wrong(list(args), list(graph(*args)))
        return run

    monkeypatch.setattr(backends, "_inductor", compiled)
    return calls


def _same_step(one: fxperex.PerExampleModule, batch: tuple[Tensor, ...]) -> bool:
    """Whether `one` steps as the eager step of its model does; gradients are cleared."""
    eager = fxperex.transform(one.model, batch, clip=0.4, backend="eager")
    found = []
    for private in (eager, one):
        one.model.zero_grad()
        private.step(*batch)
        found.append([p.grad.clone() for p in one.model.parameters()])
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*found, strict=True))


def test_a_lost_write_is_named_and_the_step_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _planted(monkeypatch, lambda inputs, o: _with(o, 8, torch.zeros_like(o[8])))
    with pytest.warns(BackendWarning, match=r"by inductor is not the eager one, it runs eagerly: "
                                            r"the sum of 'out.bias' \(node .*"
                                            "site .*on ordinary rows, and rounding explains"):
        private = _go("inductor")
    assert private.backend == "eager"
    calls.clear()
    assert _same_step(private, _shown()) and not calls


def test_what_only_real_rows_show_is_seen_on_the_first_of_them(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Right on all that stood in for data, wrong for a number that only data have: caught before
    anything is written.
    """
    calls = _planted(
        monkeypatch, lambda inputs, o: [*o[:3], *(v * 2 for v in o[3:])]
        if (inputs[7] == 3.25).any() else o)
    private = _go("inductor")
    assert private.backend == "inductor"
    private.step(*(t[:0] for t in _shown()))  # no row is no batch yet
    private.model.zero_grad()
    x, y = _shown()
    x[0, 0] = 3.25
    with pytest.warns(BackendWarning, match="it runs eagerly from here on: the sum of "
                                            "'one.weight'.*on the first batch"):
        result = private.step(x, y)
    assert private.backend == "eager" and float(
        private.model.count) == 2, "buffers are written once a step"
    calls.clear()
    grads = [p.grad.clone() for p in private.model.parameters()]
    private.model.zero_grad()
    assert torch.equal(private.step(x, y).norms, result.norms) and not calls
    assert all(
        torch.equal(a, p.grad) for a, p in zip(grads, private.model.parameters(), strict=True))


def test_the_first_batch_is_compared_once_and_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _planted(monkeypatch, lambda inputs, o: o)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)), torch.randn(4, 5)
    run = lambda m, v: m(v).square().sum(1)  # noqa: E731
    private = fxperex.transform(model, (x,), forward=run, backend="inductor")
    eager = fxperex.transform(model, (x,), forward=run, backend="eager")
    calls.clear()
    found, after = [], []
    for step in (private, private, eager):
        torch.manual_seed(3)
        found.append(step.step(x).norms)
        after.append(torch.get_rng_state())
    assert len(calls) == 2, "once with the eager step beside it, once alone"
    assert all(
        torch.equal(found[0], f) and torch.equal(after[0], a)
        for f, a in zip(found, after, strict=True))
    assert not torch.equal(private.step(x).norms, found[0]), "another draw"


def test_a_remembered_choice_is_compared_in_every_process(monkeypatch: pytest.MonkeyPatch,
                                                          tmp_path: Path) -> None:
    monkeypatch.setenv("FXPEREX_CACHE", str(tmp_path))
    monkeypatch.setattr(backend_cache, "recall", lambda *_: "inductor")
    _planted(monkeypatch, lambda inputs, o: _with(o, 1, 0.9 * o[1]))
    with pytest.warns(BackendWarning, match="by inductor is not the eager one.*the norms"):
        assert _go("auto").compile() == "eager"


def test_auto_does_not_take_the_fastest_of_what_is_wrong(monkeypatch: pytest.MonkeyPatch,
                                                         tmp_path: Path) -> None:
    monkeypatch.setenv("FXPEREX_CACHE", str(tmp_path))
    _planted(monkeypatch, lambda inputs, o: _with(o, 1, 0.9 * o[1]))
    monkeypatch.setattr(backends, "channels_last", lambda graph, fixed: graph)
    timed: list[str] = []
    monkeypatch.setattr(
        backends, "_seconds",
        lambda runs, inputs: timed.extend(runs) or dict(zip(runs, (1.0, 0.5), strict=True)))
    with pytest.warns(BackendWarning, match="by inductor is not the eager one"):
        assert _go("auto").compile() == backends.CHANNELS_LAST
    assert timed == ["eager", backends.CHANNELS_LAST]


def test_memory_that_ends_while_compiling_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(backends, "_inductor", ends)
    with pytest.raises(MemoryLimitError, match=r"plan for 6 rows.*Nothing was "
                                               r"written.*physical_batch=3"):
        _go("inductor")


def test_the_unit_of_rounding_is_that_of_the_coarsest_arithmetic() -> None:
    x = torch.randn(3)
    make = torch.fx.experimental.proxy_tensor.make_fx
    assert unit(make(lambda v: v + 1, tracing_mode="fake")(x)) == 2.0**-24
    assert unit(make(lambda v: v.bfloat16() + 1, tracing_mode="fake")(x)) == 2.0**-8
    assert unit(make(lambda v: v + 1, tracing_mode="fake")(x.double())) == 2.0**-53
