"""Compiling a step: remembered choices, the CUDA graph's bookkeeping, no wait for the host, memory
that ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxperex
from fxperex.compiler import Forecast, backend_cache, backends, compile_step
from fxperex.compiler.cuda_graph import host_waits, record
from fxperex.errors import BackendWarning, MemoryLimitError
from fxperex.rewrite.passes import channels_last


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).flatten(1).square().sum(1)


def _graph(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    return torch.fx.experimental.proxy_tensor.make_fx(function)(*inputs)


def _stand_in(call: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """What a CUDA graph does, on the CPU: every replay writes the outputs of the recording."""
    outputs = call()

    def replay() -> None:
        for kept, new in zip(outputs, call(), strict=True):
            kept.copy_(new)

    return replay, outputs


def test_a_replay_reads_parameters_in_place_and_copies_the_batch() -> None:
    weight, x = torch.randn(3), torch.randn(3)
    run = record(lambda w, v: [w * v, w + v], [weight, x], [True, False], _stand_in)
    first = run(weight, x)
    assert torch.equal(first[0], weight * x)
    weight.add_(1.0)  # an optimizer's update
    other = torch.randn(3)
    again = run(weight, other)
    assert torch.equal(
        again[0], weight * other) and again[0] is first[0], "outputs are the recording's memory"
    assert torch.equal(run(weight, x)[1], weight + x)


def test_a_moved_parameter_is_recorded_anew() -> None:
    recordings = []

    def counting(
            call: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        recordings.append(1)
        return _stand_in(call)

    weight, x = torch.randn(3), torch.randn(3)
    run = record(lambda w, v: [w * v], [weight, x], [True, False], counting)
    moved = torch.randn(3)
    assert torch.equal(run(moved, x)[0], moved * x) and torch.equal(
        run(moved, 2 * x)[0], 2 * moved * x)
    assert len(recordings) == 2


NETS = {
    "mlp": (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (5, )),
    "cnn": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Flatten(), nn.Linear(16, 3)), (2, 6, 6)),
    "encoder": (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), (5, 8))
}


@pytest.mark.parametrize("strategy", ["auto", "ghost", "unfold", "vmap"])
@pytest.mark.parametrize("net", NETS)
def test_no_node_of_a_step_waits_for_the_host(net: str, strategy: str) -> None:
    model, shape = NETS[net]
    private = fxperex.transform(model, (torch.randn(4, *shape), ), forward=_loss, strategy=strategy,
                                backend="eager")
    assert host_waits(private.step_graph) == []


def test_nodes_that_wait_are_found() -> None:
    x = torch.randn(4)
    graph = fx.Graph()
    inputs = graph.placeholder("x")
    for op in (torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default):
        graph.call_function(op, (inputs,))
    moved = graph.call_function(torch.ops.aten._to_copy.default, (inputs, ),
                                {"device": torch.device("meta")})
    inputs.meta["val"], moved.meta["val"] = x, x.to("meta")
    graph.output(())
    found = host_waits(fx.GraphModule(nn.Module(), graph))
    assert [name.removesuffix("_default") for name in found
            ] == ["nonzero", "_local_scalar_dense", "_to_copy"]


def _pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], folder: Path) -> list[str]:
    """Inductor replaced by the graph itself, clocks by `seconds`; returns the list of what was
    timed.
    """
    timed: list[str] = []
    monkeypatch.setenv("FXPEREX_CACHE", str(folder))

    def fast(graph: fx.GraphModule, inputs: list[Tensor], fixed: Sequence[bool]) -> backends.Step:
        def compiled(*args: Tensor) -> Sequence[Any]:
            return graph(*args)
        return compiled

    def clock(calls: dict[str, backends.Step], inputs: list[Tensor]) -> dict[str, float]:
        timed.extend(calls)
        assert "compiled" in calls["inductor"].__qualname__ and "compiled" not in calls[
            "eager"].__qualname__
        return seconds

    monkeypatch.setattr(backends, "_inductor", fast)
    monkeypatch.setattr(backends, "_seconds", clock)
    return timed


@pytest.mark.parametrize("faster", ["eager", "inductor"])
def test_auto_measures_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, faster: str) -> None:
    seconds = {"eager": 1.0, "inductor": 1.0} | {faster: 0.5}
    timed = _pretend(monkeypatch, seconds, tmp_path)
    x = torch.randn(3)
    graph = _graph(lambda v: (v + 1,), x)
    assert compile_step(graph, [x], "auto")[1] == faster and len(timed) == 2
    assert compile_step(graph, [x], "auto")[1] == faster and len(timed) == 2, "remembered"
    wider = torch.randn(4)
    compile_step(_graph(lambda v: (v + 1,), wider), [wider], "auto")
    assert len(timed) == 4, "another shape is another choice"


def test_a_spoilt_memory_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed = _pretend(monkeypatch, {"eager": 1.0, "inductor": 0.5}, tmp_path)
    x = torch.randn(3)
    graph = _graph(lambda v: (v + 1,), x)
    compile_step(graph, [x], "auto")
    for path in (tmp_path / "backends").iterdir():
        path.write_text("{")
    assert backend_cache.recall(graph, [x]) is None
    assert compile_step(graph, [x], "auto")[1] == "inductor" and len(timed) == 4


def test_a_failing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no C++ compiler")

    monkeypatch.setattr(backends, "_inductor", broken)
    x = torch.randn(3)
    with pytest.warns(BackendWarning, match="no C\\+\\+ compiler"):
        step, backend = compile_step(_graph(lambda v: (v + 1,), x), [x], "inductor")
    assert backend == "eager" and torch.equal(step(x)[0], x + 1)


@pytest.mark.parametrize("failure", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to "
                           "allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: "
                 "you tried to allocate 9 bytes.")
])
def test_memory_that_ends_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch,
                                                      failure: Exception) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(),
                             nn.Linear(5776, 3)), torch.randn(6, 3, 40, 40)
    calls = []

    def compile_limited(graph: fx.GraphModule, *_: Any) -> tuple[Callable[..., Any], str]:
        def step(*args: Tensor) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise failure
            return graph(*args)
        return step, "eager"

    monkeypatch.setattr("fxperex.runtime.compiled.compile_step", compile_limited)
    private = fxperex.transform(model, (x[:2],), forward=_loss, backend="eager")
    private.step(x[:2])
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    lower = 0.75 * private.peak
    peak = (rf"a peak of {private.peak / 2**20:.2f}MiB.*"
            rf"memory=\"{lower / 2**20:.2f}MiB\".*physical_batch=1")
    with pytest.raises(MemoryLimitError, match=f"plan for 2 rows expected {peak}"):
        private.step(x)  # three physical batches; the second fails
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (p.grad for p in model.parameters()), strict=True))
    private.step(x)


def test_other_errors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = fxperex.compiler.guarded(lambda: [][1], Forecast(1, float))
    with pytest.raises(IndexError):
        guarded()


SECOND = """
import torch, fxperex
from torch._dynamo.utils import counters
torch.manual_seed(0)
nn = torch.nn
layers = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
model = nn.Sequential(*layers)
x = torch.randn(3, 2, 6, 6)
squares = lambda m, v: m(v).square().sum(1)
private = fxperex.transform(model, (x,), forward=squares, backend="inductor")
private.step(x)
counted = counters["inductor"]
print(private.backend, counted["fxgraph_cache_hit"], counted["fxgraph_cache_miss"])
"""


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    env = {
        **os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"
    }
    ran = [
        subprocess.run([sys.executable, "-c", SECOND], text=True, capture_output=True, env=env,
                       check=True).stdout.split() for _ in range(2)
    ]
    assert ran == [["inductor", "0", "1"], ["inductor", "1", "0"]]


def test_inductor_is_given_numbers_for_sizes() -> None:
    """With symbols for an image's sides its code fits any of them, and a ResNet's step took twice
    as long.
    """
    seen: list[Sequence[int]] = []

    def look(graph: fx.Graph) -> None:
        seen.extend(node.meta["val"].shape for node in graph.nodes if node.op == "placeholder")

    inputs = torch.randn(4, 3, 8, 8), torch.randn(5, 3, 3, 3)
    with torch._inductor.config.patch({"post_grad_custom_post_pass": look,
                                       "fx_graph_cache": False}):
        compile_step(_graph(torch.conv2d, *inputs), list(inputs), "inductor")
    assert [tuple(shape) for shape in seen] == [tuple(x.shape) for x in inputs]
    assert all(type(side) is int for shape in seen for side in shape)


def _convolved() -> tuple[fx.GraphModule, list[Tensor]]:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    made = torch.fx.experimental.proxy_tensor.make_fx(lambda w, v: (torch.conv2d(v, w).relu(), ),
                                                      tracing_mode="fake")(weight, x)
    return made, [weight, x]


def test_channels_last_is_one_copy_of_the_images_that_hands_its_layout_on() -> None:
    graph, inputs = _convolved()
    before = [n.name for n in graph.graph.nodes]
    other = channels_last(graph, [True, False])
    assert other is not None and [n.name for n in graph.graph.nodes] == before
    assert [n.name for n in other.graph.nodes if n.name not in before] == ["clone_default"]
    (mine,), (theirs,) = graph(*inputs), other(*inputs)
    assert mine.is_contiguous() and theirs.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_graph_without_images_has_no_channels_to_lay_last() -> None:
    x = torch.randn(2, 3, 8, 8)
    plain = torch.fx.experimental.proxy_tensor.make_fx(lambda v: (v * 2,), tracing_mode="fake")(x)
    assert channels_last(plain, [False]) is None
    graph, _ = _convolved()
    assert channels_last(graph, [True, True]) is None, "parameters keep their layout"


@pytest.mark.parametrize("other", ["inductor", backends.CHANNELS_LAST])
def test_another_way_to_run_has_to_be_worth_it_on_a_cpu(other: str) -> None:
    assert backends._fastest({"eager": 1.0, other: 0.90}, backends.WORTH) == other
    assert backends._fastest({"eager": 1.0, other: 0.97}, backends.WORTH) == "eager"
    assert backends._fastest({"eager": 1.0, other: 0.99}, 1.0) == other


def test_the_fastest_of_those_that_are_worth_it_is_taken() -> None:
    assert backends._fastest({"eager": 1.0, backends.CHANNELS_LAST: 0.8, "inductor": 0.7},
                             backends.WORTH) == "inductor"


def test_backends_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine doubles its speed between the turns of one late round: the least of each call
    would favour the other one.
    """
    now, turns = [0.0], {"eager": 0, "inductor": 0}

    def call(name: str, cost: float) -> backends.Step:
        def run(*args: Tensor) -> Sequence[Any]:
            turns[name] += 1
            fast = turns[name] == 9 and name == "eager"
            now[0] += cost / (2 if fast else 1)
            return ()
        return run

    monkeypatch.setattr(backends.time, "perf_counter", lambda: now[0])
    taken = backends._seconds({"eager": call("eager", 1.0), "inductor": call("inductor", 0.8)}, [])
    monkeypatch.undo()
    assert turns == dict.fromkeys(turns, backends.ROUNDS[0])
    assert taken == {"eager": 1.0, "inductor": pytest.approx(0.8)}
    assert backends._fastest(taken, backends.WORTH) == "inductor"


def test_auto_takes_channels_last_where_it_is_fastest(monkeypatch: pytest.MonkeyPatch,
                                                      tmp_path: Path) -> None:
    seconds = {"eager": 1.0, "inductor": 1.0, backends.CHANNELS_LAST: 0.5}
    timed = _pretend(monkeypatch, seconds, tmp_path)
    graph, inputs = _convolved()
    for _ in range(2):  # measured, then remembered
        step, backend = compile_step(graph, inputs, "auto", [True, False])
        assert backend == backends.CHANNELS_LAST and timed == [
            "eager", backends.CHANNELS_LAST, "inductor"
        ]
        assert step(*inputs)[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("strategy", ["auto", "multi", "crb", "unfold", "ghost", "vmap"])
def test_every_strategy_is_right_with_channels_last(strategy: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
                          nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.Flatten(),
                          nn.Linear(32, 2)).double()
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    private = fxperex.transform(model, (x,), forward=_loss, strategy=strategy, backend="eager")
    inputs = private.step_inputs((x,))
    other = channels_last(private.step_graph, private.signature.stays)
    assert other is not None
    for mine, theirs in zip(private.step_graph(*inputs), other(*inputs), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)
