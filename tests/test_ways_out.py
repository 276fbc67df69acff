"""Every refusal of a capture names its cause at the user's line and a way out; the way out is taken
here, and is right.

Nothing is printed or logged meanwhile: torch shows partial graphs and tracebacks of its own before
the line that helps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import fxperex
from fxperex.capture.quiet import quiet
from fxperex.errors import CaptureError
from fxperex.testing import clipped, error, loop

Forward = Callable[..., Tensor]
B, T = 5, 4


@dataclass(frozen=True)
class Way:
    """`forward` is refused with `words`; `instead`, which the message proposes, is right."""

    forward: Forward
    words: str
    instead: Forward | None
    model: Callable[[], nn.Module] = lambda: nn.Linear(6, 3)


def _batch() -> tuple[Tensor, Tensor]:
    """`x [B, T, 6]` and labels `y [B, T]`, of which -1 does not count; every row has one that
    does.
    """
    x, y = torch.randn(B, T, 6).double(), torch.randint(-1, 3, (B, T))
    y[:, 0] = 1
    return x, y


def _normal(checked: bool | None) -> Forward:
    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        law = torch.distributions.Normal(m(x)[..., 0], 1.0, validate_args=checked)
        return -law.log_prob(y.to(x.dtype)).mean(1)

    return forward


def _own_nll(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    mean, var = m(x)[..., 0], m(x)[..., 1].exp()
    return (0.5 * (var.log() + (mean - y) ** 2 / var)).mean(1)


def _masked(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    mask = (y >= 0).to(x.dtype)
    loss = F.cross_entropy(m(x).transpose(1, 2), y.clamp(min=0), reduction="none")
    return (loss * mask).sum(1) / mask.sum(1)


def _checked(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    h = m(x)
    if h.isnan().any():
        raise ValueError("not a number")
    return h.square().sum((1, 2))


def _penalty(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = x.detach().requires_grad_()
    slope = torch.autograd.grad(m(z).tanh().sum(), z, create_graph=True)[0]
    return slope.square().sum((1, 2))


def _along(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.func.jvp(lambda z: m(z).tanh(), (x, ), (torch.ones_like(x), ))[1].square().sum(
        (1, 2))


def _packed(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(x, (y >= 0).sum(1), batch_first=True,
                                             enforce_sorted=False)
    return m(rows)[1][0].square().sum(1)


def _padded(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    n, o = (y >= 0).sum(1), m(x)[0]
    return o[torch.arange(len(o)), n - 1].square().sum(1)


def _attended(attend: Callable[..., Tensor]) -> Forward:
    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        q = m(x)[:, None]
        return attend(q, q, q).square().sum((1, 2, 3))

    return forward


WAYS: dict[str, Way] = {
    "ragged selection": Way(lambda m, x, y: F.cross_entropy(m(x)[y >= 0], y[y >= 0]),
                            "how many entries.*sum", _masked),
    "number of distinct": Way(lambda m, x, y: m(x).sum((1, 2)) / len(y.unique()),
                              "how many entries it gives depends", None),
    "branch": Way(
        lambda m, x, y: m(x if x.sum() > 0 else -x).square().sum(
            (1, 2)), r"torch\.where\(condition, a, b\)",
        lambda m, x, y: m(torch.where(x.sum((1, 2), True) > 0, x, -x)).square().sum((1, 2))),
    "check of values": Way(_checked, "check of values.*taken out",
                           lambda m, x, y: m(x).square().sum((1, 2))),
    "gaussian nll": Way(
        lambda m, x, y: F.gaussian_nll_loss(m(x)[..., 0], y.to(x.dtype),
                                            m(x)[..., 1].exp()), r"0\.5 \* \(var\.log", _own_nll),
    "gradient penalty": Way(_penalty, r"torch\.func\.jvp", _along),
    "data": Way(lambda m, x, y: (m(x) * m.weight.data.sum()).sum((1, 2)), r"for \.data write "
                r"\.detach", lambda m, x, y: (m(x) * m.weight.detach().sum()).sum((1, 2))),
    "packed": Way(_packed, r"o\[torch\.arange\(len\(o\)\), n "
                  r"- 1\]", _padded, lambda: nn.GRU(6, 3, batch_first=True)),
    "flex attention": Way(_attended(flex_attention), "scaled_dot_product_attention",
                          _attended(F.scaled_dot_product_attention), lambda: nn.Linear(6, 16)),
    "nested": Way(
        lambda m, x, y: m(torch.nested.nested_tensor(list(x), layout=torch.jagged)).
        to_padded_tensor(0).sum((1, 2)), "Pad the examples to one length", _masked),
    "numpy": Way(lambda m, x, y: (m(x) * torch.from_numpy(y.numpy())[..., None]).sum((1, 2)),
                 "hand the array in", lambda m, x, y: (m(x) * y[..., None]).sum((1, 2))),
    "item": Way(lambda m, x, y: m(x).sum((1, 2)) * y.float().mean().item(), "Keep it a tensor",
                lambda m, x, y: m(x).sum((1, 2)) * y.to(x.dtype).mean(1)),
    "hard-coded size": Way(lambda m, x, y: m(x.view(B, -1, 6)).square().sum(
        (1, 2)), r"hard-code its batch size.*x\.view\(len",
                           lambda m, x, y: m(x.view(len(x), -1, 6)).square().sum((1, 2))),
    "a script": Way(lambda m, x, y: m(x).square().sum((1, 2)), "scripted or traced from", None,
                    lambda: torch.jit.trace(nn.Linear(6, 3).double(),
                                            torch.randn(2, 6).double())),
    "shapes that do "
    "not fit": Way(lambda m, x, y: m(x[..., :5]).square().sum((1, 2)),
                   "RuntimeError.*reduction dim", None),
}
if torch.__version__ < "2.15":  # later ones trace the check of a distribution's arguments
    WAYS["distribution"] = Way(_normal(True), "validate_args=False", _normal(False))
SIZED = {"hard-coded size"}


def test_distributions_are_traced_without_their_checks_and_checked_as_before_afterwards() -> None:
    model, batch = nn.Linear(6, 3).double(), _batch()
    result = fxperex.transform(model, batch, forward=_normal(None), backend="eager").step(*batch)
    assert error(result.norms, clipped(loop(model, _normal(None), batch), 1.0)[1]) <= 1e-9
    with pytest.raises(ValueError, match="Expected parameter scale"):
        torch.distributions.Normal(0.0, -1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", WAYS)
def test_is_refused_in_silence_and_the_way_out_is_right(name: str,
                                                        capfd: pytest.CaptureFixture[str]) -> None:
    way, batch = WAYS[name], _batch()
    model = way.model().double()
    with pytest.raises(CaptureError, match=way.words) as caught:
        fxperex.transform(model, batch, forward=way.forward, backend="eager")
    text = str(caught.value)
    assert ("batch size" in text) == (name in SIZED) and "github" not in text.partition("(")[0]
    assert tuple(capfd.readouterr()) == ("", "")
    if way.instead is not None:
        result = fxperex.transform(model, batch, forward=way.instead, backend="eager").step(*batch)
        assert error(result.norms, clipped(loop(model, way.instead, batch), 1.0)[1]) <= 1e-9


def test_silence_ends_with_the_capture_and_is_torchs_alone(
        capfd: pytest.CaptureFixture[str]) -> None:
    loggers = [
        logging.getLogger(n)
        for n in ("torch", "torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    ]
    levels = [x.level for x in loggers]

    def forward(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logging.getLogger("users.own").error("heard")
        return m(x).square().sum((1, 2))

    handler = logging.StreamHandler()
    logging.getLogger("users.own").addHandler(handler)
    try:
        fxperex.transform(nn.Linear(6, 3).double(), _batch(), forward=forward, backend="eager")
    finally:
        logging.getLogger("users.own").removeHandler(handler)
    assert "heard" in capfd.readouterr().err and [x.level for x in loggers] == levels
    with pytest.raises(ValueError, match="own"), quiet():
        raise ValueError("own")
    assert [x.level for x in loggers] == levels
