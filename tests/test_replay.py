"""CUDA graphs without a GPU: what waits for the host, which device is asked, what an empty
recording is found by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxperex
from fxperex.compiler import backends, cuda_graph, out_of_memory
from fxperex.compiler.cuda_graph import device_of, host_waits, record, stuck
from fxperex.errors import BackendWarning

X, IDS = torch.randn(4, 3), torch.tensor([2, 0])
INDICES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], bool]] = {
    "whole numbers": (lambda x, i: x[i], (X, IDS), False),
    "the second dimension": (lambda x, i: x[:, i], (X, IDS), False),
    "two of them": (lambda x, i, j: x[i, j], (X, IDS, IDS), False),
    "int32": (lambda x, i: x[i], (X, IDS.int()), False),
    "written by whole numbers": (lambda x, i: x.index_put((i, ), x[:2] * 2), (X, IDS), False),
    "a mask": (lambda x, i: torch.ops.aten.index.Tensor(x, [i]), (X, X[:, 0] > 0), True),
    "a mask of uint8": (lambda x, i: torch.ops.aten.index.Tensor(x, [i]),
                        (X, (X[:, 0] > 0).to(torch.uint8)), True),
    "whole numbers and a "
    "mask": (lambda x, i, j: torch.ops.aten.index.Tensor(x, [j, i]), (X, IDS, X[:, 1]
                                                                      > X[:, 1].median()), True),
    "nonzero": (lambda x: x.nonzero(), (X, ), True),
    "repeats": (lambda x, i: torch.repeat_interleave(i), (X, IDS), True),
}


def _graph(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    made = torch.fx.experimental.proxy_tensor.make_fx(function)(*inputs)
    for node in made.graph.nodes:
        node.meta.setdefault("val", node.meta.get("tensor_meta"))
    values = dict(zip(made.graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node, value in values.items():
        node.meta["val"] = value
    return made


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("name", INDICES)
def test_masks_wait_for_the_host_and_whole_numbers_do_not(name: str) -> None:
    function, inputs, waits = INDICES[name]
    assert bool(host_waits(_graph(function, *inputs))) is waits


class _Gathers(nn.Module):
    """Window biases read by a table of positions, as Swin's, and ids of positions, as GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.places = nn.Parameter(torch.randn(5, 2)), nn.Embedding(3, 2)
        self.register_buffer("table", torch.randint(0, 5, (3,)))
        self.register_buffer("ids", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bias[self.table] + self.places(self.ids[torch.arange(3)])).square().sum(
            (1, 2))


def test_a_step_that_gathers_by_whole_numbers_can_be_recorded() -> None:
    private = fxperex.transform(_Gathers(), (torch.randn(4, 3, 2),), backend="eager")
    assert any("index" in str(n.target)
               for n in private.step_graph.graph.nodes) and host_waits(private.step_graph) == []


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["GPT-2", "Swin-T"])
def test_gpt2_and_swin_do_not_wait_for_the_host(name: str) -> None:
    for package in ("transformers", "torchvision"):
        pytest.importorskip(package)
    if name == "GPT-2":
        import transformers

        config = transformers.GPT2Config(vocab_size=47, n_positions=16, n_embd=16, n_layer=1,
                                         n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                         use_cache=False)
        model, batch = transformers.GPT2LMHeadModel(config).train(), (torch.randint(3, 47, (3, 7)),)
        private = fxperex.transform(model, batch,
                                    forward=lambda m, x: m(input_ids=x, labels=x).loss,
                                    backend="eager")
    else:
        import torchvision

        model = torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4],
                                                   stochastic_depth_prob=0.0, num_classes=3)
        batch = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
        private = fxperex.transform(model, batch, nn.functional.cross_entropy, backend="eager")
    assert host_waits(private.step_graph) == []


def _honest(call: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """What a CUDA graph does, on the CPU: every replay writes the outputs of the recording."""
    outputs = call()

    def again() -> None:
        for old, new in zip(outputs, call(), strict=True):
            old.copy_(new)

    return again, outputs


def _empty(call: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """A recording on a device that the step does not run on: nothing was seen, and a replay does
    nothing.
    """
    return lambda: None, call()


def _run(weight: Tensor, x: Tensor) -> list[Tensor]:
    return [weight * x, weight + x]


ONE, TWO = [torch.randn(3), torch.randn(3)], [torch.randn(3), torch.randn(3)]
TRIES = [("ordinary rows", ONE), ("other ordinary rows", [ONE[0], TWO[1]])]


def test_a_recording_that_sees_no_input_is_refused() -> None:
    for recorder, found in ((_empty, True), (_honest, False)):
        assert stuck(record(_run, ONE, [True, False], recorder), _run, ONE, TRIES[1][1]) is found
    constant = lambda w, x: [torch.ones(3)]  # noqa: E731
    assert not stuck(record(constant, ONE, [True, False], _honest), constant, ONE,
                     TRIES[1][1]), "the step itself is constant"
    assert len(backends.recorded(_run, ONE, [True, False], [], TRIES, _honest)) == 1
    with pytest.warns(BackendWarning, match="without a CUDA graph: the recorded one gives the "
                                            "same outputs for two different"):
        assert backends.recorded(_run, ONE, [True, False], [], TRIES, _empty) == []
    with pytest.warns(BackendWarning, match="without a CUDA graph: nonzero waits for the host"):
        assert backends.recorded(_run, ONE, [True, False], ["nonzero"], TRIES, _honest) == []


def test_a_wrong_recording_leaves_the_compiled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ways to run, the recorded and the compiled one, the first that is as the eager step is
    taken.
    """
    graph = _graph(lambda w, x: (w * x,), *ONE)
    wrong, right = (lambda w, x: [w * x * 2]), (lambda w, x: [w * x])
    monkeypatch.setattr(backends, "_ways", lambda *_: [wrong, right])
    with pytest.warns(BackendWarning, match="by inductor is not the eager one, it runs without a "
                                            "CUDA graph: output 0"):
        step, backend = backends.compile_step(graph, ONE, "inductor")
    assert step is right and backend == "inductor"


class _OnSecond(Tensor):
    """A tensor that says it is on the second GPU."""

    is_cuda, device = True, torch.device("cuda", 1)  # type: ignore[assignment]


def _second(x: Tensor) -> Tensor:
    return x.as_subclass(_OnSecond)


def test_the_tensors_own_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    @contextlib.contextmanager
    def current(device: torch.device) -> Any:
        asked.append(("enter", device.index))
        yield
        asked.append(("leave", device.index))

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: asked.append(
        ("wait", device.index)))
    inputs = [torch.randn(3), _second(torch.randn(3))]
    assert device_of(inputs) == torch.device("cuda", 1) and device_of(ONE).type == "cpu"
    step = record(lambda w, x: [w * 2], inputs, [True, True], _honest)
    assert asked == [("enter", 1), ("leave", 1)]
    step(*inputs)
    assert asked[2:] == [("enter", 1), ("leave", 1)]
    asked.clear()
    backends._seconds({"eager": lambda *_: ()}, inputs)
    assert set(asked) == {("wait", 1)}


def test_memory_is_that_of_the_gpu_that_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device:
                        ({1: 100.0}[device.index], 200.0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: {1: 20.0}[device.index])
    assert out_of_memory._budget(1e9, torch.device("cuda", 1)) == 0.9 * 120.0
    assert out_of_memory._budget(1e9, None) == 0.75e9
    assert cuda_graph.on(torch.device("cpu")).__class__ is contextlib.nullcontext
