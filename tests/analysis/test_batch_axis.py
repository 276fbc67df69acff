"""What mixes examples is refused with op and line; its look-alikes pass, equal the loop, and see no
other example.

Proof and probes never contradict: an accepted program's gradients stay where they are when all
other examples are replaced, and a refused one's move, but for those that `UNSEEN` lists, each with
its reason.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from look_alikes import ACCEPTED
from mixing import MIXING, MODULES, B, Net, Program
from naming import names_the_line
from torch import Tensor, nn

import fxperex
from fxperex.errors import BatchMixingError, CaptureError
from fxperex.testing import clipped, error, flat, loop, moved

# Look-alikes that the proof is too coarse for. At most three, each with its reason; none so far.
TOO_CAREFUL: dict[str, str] = {}
# Capture sees these first: they are another program, or none, at another batch size.
CAPTURED_FIRST = {
    "linear over batch", "stack and reshape", "view four", "chunk", "unbind", "added to the first",
    "two halves apart"
}


def _head(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x).reshape(len(x), -1) * 1.3 + 0.2).square().sum(1)


def _sum(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def _net(program: Program | nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    return Net(program, shape).double(), torch.randn(B, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_refused_with_op_and_line(name: str) -> None:
    op, program, shape = MIXING[name]
    model, x = _net(program, shape)
    with pytest.raises((BatchMixingError, CaptureError)) as caught:
        fxperex.transform(model, (x,), forward=_sum, backend="eager")
    message = str(caught.value)
    assert names_the_line(message, program), message
    assert isinstance(caught.value, BatchMixingError) or name in CAPTURED_FIRST
    if isinstance(caught.value, BatchMixingError):
        told = message.split(" at ")[0]
        assert any(word in told for word in op.split("|")), message


@pytest.mark.parametrize("name", MODULES)
def test_mixing_modules_are_refused(name: str) -> None:
    kind, words, make, shape = MODULES[name]
    model, x = _net(made := make(), shape)
    with pytest.raises(kind, match=words) as caught:
        fxperex.transform(model, (x,), forward=_sum, backend="eager")
    forward = type(made).forward if type(made).__module__ == "mixing" else Net.forward
    assert names_the_line(str(caught.value), forward), str(caught.value)


@pytest.mark.parametrize("name", ACCEPTED)
def test_look_alikes_equal_the_loop_and_see_no_other_example(name: str) -> None:
    make, shape = ACCEPTED[name]
    model, x = _net(make(), shape)
    if name in TOO_CAREFUL:
        with pytest.raises(BatchMixingError):
            fxperex.transform(model, (x,), forward=_head, backend="eager")
        return
    private = fxperex.transform(model, (x,), forward=_head, clip=3.0, backend="eager")
    total, norms = clipped(loop(model, _head, (x,)), 3.0)
    result = private.step(x)
    assert error(result.norms, norms) <= 1e-9
    for key, p in model.named_parameters():
        assert p.grad is not None and error(p.grad, total[key], 1e-3) <= 1e-9, key
    for probe, example, far in moved(lambda batch: flat(private.gradients(*batch)), (x,)):
        assert far <= 1e-12, (probe, example)


def test_there_are_enough_of_both() -> None:
    assert len(MIXING) + len(MODULES) >= 60 and len(ACCEPTED) >= 60
    assert len(TOO_CAREFUL) <= 3


NO_ROW = ("its result has no row for every example; what it holds is moved about and adds up to "
          "the same total")
BY_SIZE = ("it computes with the number of examples or with an example's place, never with what "
           "others hold")
BY_LOT = "all examples share a draw, which no example's values change"
# Mixing programs that no probe sees: the proof alone refuses them.
UNSEEN = {
    "view halves": NO_ROW, "every other": NO_ROW, "first three": NO_ROW, "cat": NO_ROW,
    "chunk": NO_ROW, "unbind": NO_ROW, "pad batch": NO_ROW, "gather first row": NO_ROW,
    "write to the first": BY_SIZE, "times len": BY_SIZE, "over len": BY_SIZE, "plus place": BY_SIZE,
    "filled with len": BY_SIZE, "roll by len": BY_SIZE, "shared drop": BY_LOT
}


def _loss_and_gradient(model: nn.Module) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """Each example's loss beside its gradient at its own activation: `[B, 1 + N]`; of the total
    where the output has no row for an example."""
    def found(batch: tuple[Tensor, ...]) -> Tensor:
        torch.manual_seed(0)
        hidden = model.inner(*batch)
        out = model.program(hidden)
        if len(out) != B:
            return torch.autograd.grad(out.square().sum(), hidden)[0].flatten(1)
        losses = (out.reshape(B, -1) * 1.3 + 0.2).square().sum(1)
        own = [
            torch.autograd.grad(one, hidden, retain_graph=True)[0][i].flatten()
            for i, one in enumerate(losses)
        ]
        return torch.cat([losses.detach()[:, None], torch.stack(own)], 1)

    return found


def test_probes_see_what_the_proof_refuses() -> None:
    """Each probe alone misses some, none sees the programs of `UNSEEN`: this is why the proof comes
    first.
    """
    seen: dict[str, set[str]] = {}
    for name, (_, program, shape) in MIXING.items():
        model, x = _net(program, shape)
        seen[name] = {
            probe
            for probe, _, far in moved(_loss_and_gradient(model), (x, ))
            if far > 1e-9
        }
    assert {name for name, probes in seen.items() if not probes} == set(UNSEEN)
