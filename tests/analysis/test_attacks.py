"""Programs written to get past the proof are refused at their line; their look-alikes pass, and
equal the loop.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from attacks import ALIKE, MIXING, Attacked, batch, head
from held import HELD
from naming import names_the_line
from torch import Tensor

import fxperex
from fxperex.analysis import prove
from fxperex.capture.program import capture
from fxperex.errors import BatchMixingError, CaptureError, CoverageError, FxperexError
from fxperex.testing import error, loop


@pytest.mark.parametrize("name", MIXING)
def test_an_attack_is_refused_at_its_line(name: str) -> None:
    with pytest.raises((BatchMixingError, CaptureError)) as caught:
        prove(capture(Attacked(), MIXING[name], batch(), 4))
    assert names_the_line(str(caught.value), MIXING[name]), str(caught.value)


@pytest.mark.parametrize("name", ALIKE)
def test_a_look_alike_of_an_attack_equals_the_loop(name: str) -> None:
    model, given = Attacked(), batch()
    private = fxperex.transform(model, given, forward=ALIKE[name], clip=1e6, backend="eager")
    truth, found = loop(model, ALIKE[name], given), private.gradients(*given)
    assert max(error(found[n], g, 1e-3) for n, g in truth.items()) <= 1e-9
    alone = [ALIKE[name](model, *(t[b:b + 1] for t in given)).sum().detach() for b in range(4)]
    assert error(private.step(*given).losses, torch.stack(alone)) <= 1e-9


@pytest.mark.nightly
@pytest.mark.parametrize("name", HELD)
def test_what_held_holds(name: str) -> None:
    def forward(m: Attacked, x: Tensor, y: Tensor) -> Tensor:
        return head(m, HELD[name](m.l(x).mean(1)).reshape(len(x), -1).repeat(1, 6)[:, :6], y)

    with warnings.catch_warnings(), pytest.raises(FxperexError) as caught:
        warnings.simplefilter("ignore")
        prove(capture(Attacked(), forward, batch(), 4))
    assert isinstance(caught.value, BatchMixingError | CaptureError | CoverageError), caught.value
