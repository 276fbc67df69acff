"""Random draws: each example its own, repeatable, blind to the other examples; the gradient is that
of what was drawn.

The drawn mask is read off a gradient: with the loss `<v, out>` and `out = mask * h`, the gradient
at a bias of h is `v * mask`. All other gradients, the losses and the norms must then be those of a
float64 loop given this mask.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import ops

import fxperex
from fxperex.errors import BatchMixingError
from fxperex.testing import clipped, error, flat, loop, moved

B, D = 6, 8
Draw = Callable[[Tensor], Tensor]


class Noisy(nn.Module):
    """Two layers, a bias, then `draw`, which multiplies by random numbers; or, given them, a
    product with those.
    """

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw, self.one, self.two = draw, nn.Linear(5, 7), nn.Linear(7, D)
        self.bias = nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.two(self.one(x).tanh()).sin() + self.bias
        return self.draw(h) if mask is None else h * mask


V = torch.linspace(0.5, 2.0, D, dtype=torch.float64)


def _loss(model: nn.Module, *batch: Tensor) -> Tensor:
    return (model(*batch) * V).sum(1)


def _depth(mode: str) -> Draw:
    return lambda h: ops.stochastic_depth(h, 0.5, mode, True)


def _attended(h: Tensor) -> Tensor:
    ones = torch.ones_like(h)[:, :, None]  # every token attends to itself and to zeros behind it
    keys = F.pad(ones, (0, 0, 0, D))
    return h * F.scaled_dot_product_attention(ones, keys, keys, dropout_p=0.5)[:, :, 0]


# name -> (draw, distinct values of the mask where they are few)
DRAWS: dict[str, tuple[Draw, tuple[float, ...]]] = {
    "dropout": (lambda h: F.dropout(h, 0.25), (0.0, 4 / 3)),
    "dropout of channels": (lambda h: F.dropout1d(h[:, :, None], 0.5)[:, :, 0], (0.0, 2.0)),
    "stochastic depth, rows": (lambda h: _depth("row")(h), (0.0, 2.0)),
    "bernoulli in place": (lambda h: h * torch.empty_like(h).bernoulli_(0.3), (0.0, 1.0)),
    "bernoulli of a given "
    "chance": (lambda h: h * torch.bernoulli(torch.full_like(h, 0.4)), (0.0, 1.0)),
    "rand by rows": (lambda h: h * torch.rand(len(h), 1, dtype=h.dtype), ()),
    "normal": (lambda h: h * torch.randn_like(h), ()),
    "uniform in place": (lambda h: h * torch.empty_like(h).uniform_(0.5, 1.5), ()),
    "exponential in place": (lambda h: h * torch.empty_like(h).exponential_(), ()),
    "a distribution": (lambda h: h * torch.distributions.Normal(torch.zeros_like(h), 1.0,
                                                                validate_args=False).rsample(), ()),
    "attention with dropout": (_attended, ()),
}


ORDINARY = {"dropout", "stochastic depth, rows", "exponential in place", "attention with dropout"}
CASES = [(name, "auto") for name in DRAWS] + [("dropout", "naive"), ("dropout", "ghost"),
                                              ("attention with dropout", "vmap")]


@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_the_gradient_is_that_of_the_drawn_mask(name: str, strategy: str) -> None:
    draw, values = DRAWS[name]
    model, x = Noisy(draw).double(), torch.randn(B, 5, dtype=torch.float64)
    private = fxperex.transform(model, (x, ), forward=_loss, strategy=strategy, clip=0.5,
                                backend="eager")
    torch.manual_seed(5)
    grads = private.gradients(x)
    mask = grads["bias"] / V
    truth = loop(model, _loss, (x, mask))
    for key, want in truth.items():
        assert error(grads[key], want) <= 1e-10, key
    if values:
        assert all(min(abs(float(m) - v) for v in values) <= 1e-12 for m in mask.flatten())
    assert len({tuple(row.tolist())
                for row in mask.round(decimals=9)}) > 1, "all examples share one draw"
    # The step draws what `gradients` drew: norms, factors and sums belong to one mask.
    torch.manual_seed(5)
    result = private.step(x)
    total, norms = clipped(truth, 0.5)
    assert error(result.norms, norms) <= 1e-10
    assert error(result.losses, _loss(model, x, mask).detach()) <= 1e-10
    for key, want in total.items():
        assert error(model.get_parameter(key).grad, want) <= 1e-10, key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", [n if n in ORDINARY else pytest.param(n, marks=pytest.mark.nightly) for n in DRAWS])
def test_draws_repeat_under_a_seed_and_see_no_other_example(name: str) -> None:
    model, x = Noisy(DRAWS[name][0]).double(), torch.randn(B, 5, dtype=torch.float64)
    private = fxperex.transform(model, (x,), forward=_loss, backend="eager")

    def drawn(batch: tuple[Tensor, ...]) -> Tensor:
        torch.manual_seed(2)
        return flat(private.gradients(*batch))

    assert torch.equal(drawn((x,)), drawn((x,)))
    assert not torch.equal(drawn((x,)), flat(private.gradients(x)))
    assert all(far <= 1e-12 for *_, far in moved(drawn, (x,)))


def test_draws_come_as_often_as_they_should() -> None:
    """64 rows of 8, kept with chance 0.75, over ten steps: within five standard deviations of
    0.75.
    """
    model, x = Noisy(DRAWS["dropout"][0]).double(), torch.randn(64, 5, dtype=torch.float64)
    private = fxperex.transform(model, (x,), forward=_loss, backend="eager")
    kept = torch.stack([(private.gradients(x)["bias"] != 0).double() for _ in range(10)])
    assert abs(float(kept.mean()) - 0.75) <= 5 * (0.75 * 0.25 / kept.numel()) ** 0.5
    assert not torch.equal(kept[0], kept[1])


def test_a_draw_that_depends_on_its_own_example() -> None:
    """The chance is a function of the example: `bernoulli(sigmoid(h))` and Gumbel noise."""
    for draw in (lambda h: h * torch.bernoulli(h.sigmoid()),
                 lambda h: F.gumbel_softmax(h, hard=True) * h):
        model, x = Noisy(draw).double(), torch.randn(B, 5, dtype=torch.float64)
        private = fxperex.transform(model, (x,), forward=_loss, backend="eager")

        def drawn(batch: tuple[Tensor, ...], private: fxperex.PerExampleModule = private) -> Tensor:
            torch.manual_seed(2)
            return flat(private.gradients(*batch))

        # A NaN or 1e30 among the chances is no chance; torch itself refuses it.
        assert all(far <= 1e-12 for *_, far in moved(drawn, (x,), probes=("zero", "copy")))
        assert len({tuple(row.tolist()) for row in drawn((x[:1].expand(B, 5),))}) > 1


SHARED: dict[str, tuple[Draw, str]] = {
    "stochastic depth, the whole batch": (lambda h: _depth("batch")(h), "mode='row'"),
    "one number for all": (lambda h: h * torch.rand(()).double(), "share what it drew"),
    "one mask for all": (lambda h: h * F.dropout(torch.ones(D).double()), "share what it drew"),
    "features at random": (lambda h: (h @ torch.randn(D, D).double()).cos(), "share what it drew"),
    "randomised slopes": (lambda h: F.rrelu(h, training=True), "LeakyReLU"),
    "poisson": (lambda h: h * torch.poisson(h.detach().exp()), "outside the model"),
    "shuffled": (lambda h: h[torch.randperm(len(h))], "randperm"),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_draws_are_refused(name: str) -> None:
    draw, words = SHARED[name]
    with pytest.raises(BatchMixingError, match=words):
        fxperex.transform(
            Noisy(draw).double(), (torch.randn(B, 5).double(), ), forward=_loss, backend="eager")


def test_a_dropped_weight_is_refused() -> None:
    class DropConnect(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, F.dropout(self.weight, 0.5, self.training), self.bias)

    x = torch.randn(B, 5)
    with pytest.raises(BatchMixingError, match="share what it drew"):
        fxperex.transform(DropConnect(5, 3), (x, ), forward=lambda m, x: m(x).sum(1),
                          backend="eager")
    fxperex.transform(
        DropConnect(5, 3).eval(), (x, ), forward=lambda m, x: m(x).sum(1), backend="eager")
