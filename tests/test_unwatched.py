"""What a captured graph does not hold is refused: Python state, draws outside torch, constants of
the batch, hooks.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxperex.analysis import prove
from fxperex.capture.program import capture
from fxperex.errors import CaptureError, CoverageError, FxperexError
from fxperex.testing import error, loop

COUNT = {"steps": 0}
LIST = [1]
STEPS = 0
GENERATOR = np.random.default_rng(0)


class _Schedule:
    shared = 0

    def __init__(self) -> None:
        self.steps = 0


SCHEDULE = _Schedule()


def _helper() -> int:
    COUNT["steps"] += 1
    return COUNT["steps"]


def _dict(x: Tensor) -> Tensor:
    COUNT["steps"] += 1
    return x * COUNT["steps"]


def _list(x: Tensor) -> Tensor:
    LIST.append(1)
    return x * len(LIST)


def _object(x: Tensor) -> Tensor:
    SCHEDULE.steps += 1
    return x * SCHEDULE.steps


def _class(x: Tensor) -> Tensor:
    _Schedule.shared += 1
    return x * _Schedule.shared


def _global(x: Tensor) -> Tensor:
    global STEPS
    STEPS += 1
    return x * STEPS


def _closure() -> Callable[[Tensor], Tensor]:
    steps = 0

    def program(x: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return x * steps

    return program


# name: (words of the refusal, program)
STATEFUL: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "dict": ("COUNT", _dict),
    "helper": ("COUNT", lambda x: x * _helper()),
    "list": ("LIST", _list),
    "object": ("SCHEDULE.steps", _object),
    "class": ("_Schedule.shared", _class),
    "global": ("STEPS", _global),
    "closure": ("steps of an enclosing function", _closure()),
    "random": (r"Python's random.*torch\.rand", lambda x: x * random.random()),
    "layer drop": ("Python's random", lambda x: x.sin() if random.random() < 0.5 else x),
    "numpy": ("numpy.random", lambda x: x * float(np.random.rand())),
    "numpy generator": ("GENERATOR", lambda x: x * GENERATOR.random()),
}


def _loss(program: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda m, x: program(m(x)).square().sum(1)


def _proved(program: Callable[[Tensor], Tensor], model: nn.Module | None = None) -> None:
    prove(capture(model or nn.Linear(3, 2), _loss(program), (torch.randn(4, 3),), 4))


@pytest.mark.parametrize("name", STATEFUL)
def test_what_forward_changes_is_refused_by_name(name: str) -> None:
    words, program = STATEFUL[name]
    states = random.getstate(), repr(np.random.get_state()), repr(GENERATOR.bit_generator.state)
    with pytest.raises(CaptureError, match=words):
        _proved(program)
    assert states == (random.getstate(), repr(np.random.get_state()),
                      repr(GENERATOR.bit_generator.state))


def test_counters_are_put_back() -> None:
    before = COUNT["steps"], STEPS, SCHEDULE.steps
    for name in ("dict", "global", "object"):
        with pytest.raises(CaptureError):
            _proved(STATEFUL[name][1])
    assert before == (COUNT["steps"], STEPS, SCHEDULE.steps)


def test_a_module_that_counts_in_a_dict_is_refused_and_a_cache_of_tensors_is_not() -> None:
    class Counts(nn.Linear):
        def __init__(self, cached: bool) -> None:
            super().__init__(3, 2)
            self.held: dict[str, object] = {} if cached else {"steps": 0}
            self.cached = cached

        def forward(self, x: Tensor) -> Tensor:
            if self.cached:
                self.held["sizes"] = (torch.ones(2), 7)
            else:
                self.held["steps"] += 1  # type: ignore[operator]
            return super().forward(x)

    with pytest.raises(CaptureError, match="held"):
        _proved(torch.sin, Counts(cached=False))
    _proved(torch.sin, Counts(cached=True))


@pytest.mark.parametrize(
    "program", [lambda x: x * torch.tensor(float(len(x))), lambda x: x * x.new_tensor([len(x)])])
def test_a_constant_that_holds_the_batch_size_is_refused(
        program: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match=r"test_unwatched.py.*torch.tensor\(3.0\)"):
        _proved(program)
    _proved(lambda x: x * torch.tensor(3.0))


def _hooked(x: Tensor) -> Tensor:
    x.register_hook(lambda g: g * 0.1)
    return x


def test_a_hook_on_a_tensor_is_refused_at_its_line() -> None:
    with pytest.raises(CoverageError, match=r"register_hook at "
                                            r".*test_unwatched.py.*x.register_hook"):
        _proved(_hooked)


@pytest.mark.parametrize("kind", ["full backward", "full backward pre", "parameter", "accumulated"])
def test_a_hook_on_a_module_or_parameter_is_refused_by_name(kind: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    {
        "full backward": lambda: model[0].register_full_backward_hook(lambda *_: None),
        "full backward pre": lambda: model[0].register_full_backward_pre_hook(lambda *_: None),
        "parameter": lambda: model[0].weight.register_hook(lambda g: g),
        "accumulated": lambda: model[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    }[kind]()
    with pytest.raises(CoverageError, match=r"'0'|'0\.weight'"):
        _proved(torch.sin, model)


def test_the_way_out_of_a_hook_has_the_hooks_gradient() -> None:
    """The refusal says: h * 0.1 + h.detach() * 0.9."""
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3).double()
    hooked = loop(model, _loss(_hooked), (x,))
    written = loop(model, _loss(lambda h: h * 0.1 + h.detach() * 0.9), (x,))
    assert all(error(written[n], g) <= 1e-12 for n, g in hooked.items())
    _proved(lambda h: h * 0.1 + h.detach() * 0.9)


def test_the_ways_out_of_state_and_draws_are_accepted() -> None:
    class Warm(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("factor", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

    _proved(lambda h: torch.where(torch.rand(len(h), 1) < 0.5, h.sin(), h), Warm())


@pytest.mark.parametrize("divide", [
    lambda s, n: s / (n + 1), lambda s, n: s / (n - 1), lambda s, n: s * (n - 1), lambda s, n: s /
    (n * n)
])
def test_a_sum_over_another_number_than_the_batch_is_no_mean(
        divide: Callable[[Tensor, int], Tensor]) -> None:
    import fxperex

    with pytest.raises(FxperexError, match="batch size"):
        fxperex.transform(nn.Linear(3, 2), (torch.randn(4, 3),), backend="eager",
                          forward=lambda m, x: divide(m(x).square().sum(), len(x)))
