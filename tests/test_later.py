"""A step of backend="auto" is eager at once, and changes only to what was checked and won."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxperex
from fxperex.compiler import backend_cache, backends, may_pay
from fxperex.compiler.ahead import Ahead, _stop
from fxperex.devices import profile
from fxperex.errors import BackendWarning
from fxperex.runtime import later
from fxperex.runtime.module import PerExampleModule

# Where a real process would compile for many seconds, Inductor is the graph itself.
PLAIN = """
import fxperex.compiler.backends as backends
backends._inductor = lambda graph, inputs, fixed: graph
backends._seconds = lambda runs, inputs: {name: float(name != "inductor") for name in runs}
from fxperex.compiler.ahead import main
main()
"""


@pytest.fixture(autouse=True)
def _inductor_is_the_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def compiled(graph: fx.GraphModule, *_: Any) -> Callable[..., Any]:
        return lambda *inputs: graph(*inputs)

    monkeypatch.setenv("FXPEREX_CACHE", str(tmp_path))
    monkeypatch.setenv("FXPEREX_BACKGROUND", "1")
    monkeypatch.setattr(backends, "_inductor", compiled)
    monkeypatch.setattr(backends, "_seconds", lambda runs, inputs: {
        name: float(name != "inductor") for name in runs})
    monkeypatch.setattr(later, "PATIENCE", 0.0)
    monkeypatch.setattr(later, "may_pay", lambda graph, device: True)


class Answers:
    """Stands for the other process: what it says at each step. Counts how many were started."""

    started = 0

    def __init__(self, *_: Any) -> None:
        type(self).started += 1
        self._said = iter((None, "inductor"))

    @property
    def backend(self) -> str | None:
        return next(self._said)

    def stop(self) -> None:
        """Nothing runs."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> type[Answers]:
    answering = type("Answering", (Answers,), {})
    monkeypatch.setattr(later, "Ahead", answering)
    return answering


MODEL = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
BATCH = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2


def private(backend: str = "auto") -> PerExampleModule:
    return fxperex.transform(MODEL, BATCH, nn.CrossEntropyLoss(), backend=backend)


def stepped(step: PerExampleModule, count: int) -> list[Tensor]:
    """Returns norms of `count` steps, and where torch's generator ends."""
    torch.manual_seed(1)
    return [*(step.step(*BATCH).norms for _ in range(count)), torch.get_rng_state()]


def test_it_is_eager_until_a_compiled_step_was_checked_and_won(answers: type[Answers]) -> None:
    step, eager = private(), private("eager")
    assert step.backend == "eager" and answers.started == 0
    expected = stepped(eager, 5)
    assert all(map(torch.equal, stepped(step, 5), expected))
    assert step.backend == "inductor" and answers.started == 1


def test_what_won_is_known_to_the_next_process(answers: type[Answers],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    stepped(private(), 4)
    monkeypatch.setattr(later, "may_pay", lambda graph, device: False)  # it need not be asked
    step = private()
    stepped(step, 4)
    assert step.backend == "inductor" and answers.started == 2


def test_what_lost_is_not_compiled_again(answers: type[Answers]) -> None:
    step = private()
    backend_cache.remember(step.step_graph, step.example_inputs(), "eager")
    again = private()
    stepped(again, 4)
    assert again.backend == "eager" and answers.started == 0 and again.compile() == "eager"


def test_compile_settles_it_now() -> None:
    step, eager = private(), private("eager")
    assert step.compile() == step.backend == "inductor"
    assert all(map(torch.equal, stepped(step, 2), stepped(eager, 2)))
    assert eager.compile() == "eager"


@pytest.mark.parametrize("reason", ["environment", "determinism", "no gain", "patience"])
def test_nothing_is_compiled_unasked(reason: str, answers: type[Answers],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == "environment":
        monkeypatch.setenv("FXPEREX_BACKGROUND", "0")
    if reason == "determinism":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    if reason == "no gain":
        monkeypatch.setattr(later, "may_pay", lambda graph, device: False)
    if reason == "patience":
        monkeypatch.setattr(later, "PATIENCE", 1e9)
    step = private()
    stepped(step, 4)
    assert step.backend == "eager" and answers.started == 0


def test_a_wrong_compiled_step_is_a_warning(answers: type[Answers],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: fx.GraphModule, *_: Any) -> Callable[..., Sequence[Any]]:
        return lambda *inputs: [x * 0.5 if x.is_floating_point() else x for x in graph(*inputs)]

    monkeypatch.setattr(backends, "_inductor", wrong)
    step = private()
    with pytest.warns(BackendWarning, match="by inductor is not the eager one"):
        found = stepped(step, 4)
    assert step.backend == "eager"
    assert all(map(torch.equal, found, stepped(private("eager"), 4)))


def test_a_failure_beside_the_run_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(later, "Ahead", fails)
    step = private()
    with pytest.warns(BackendWarning, match="stays eager: OSError: no more processes"):
        stepped(step, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepped(step, 2)  # said once


def ahead(code: str) -> Ahead:
    step = private("eager")
    return Ahead(step.step_graph, step.example_inputs(), step.signature.stays,
                 [sys.executable, "-c", code])


def finished(process: Ahead) -> Ahead:
    process.waiter.join(120)
    return process


def test_the_other_process_gets_the_whole_graph() -> None:
    assert finished(ahead(PLAIN)).backend == "inductor"


def test_a_process_that_fails_is_a_warning_once() -> None:
    process = finished(ahead("raise SystemExit('no compiler here')"))
    with pytest.warns(BackendWarning, match="stays eager: no compiler here"):
        assert process.backend == "eager"
    assert process.backend == "eager"


def test_the_process_ends_with_its_owner_and_not_with_a_fork() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        _stop(process, os.getpid() + 1)
        assert process.poll() is None
        _stop(process, os.getpid())
        assert process.wait(60) != 0


def test_only_time_between_products_can_be_saved() -> None:
    wide = nn.Linear(4096, 4096, bias=False)
    few = fxperex.transform(wide, (torch.zeros(2048, 4096),), forward=lambda m, x: m(x).sum(1),
                            strategy="ghost", backend="eager")
    assert not may_pay(few.step_graph, profile(torch.device("cpu")))
    small = private("eager")
    assert may_pay(small.step_graph, profile(torch.device("cpu")))
