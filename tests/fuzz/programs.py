"""Random models over `[B, T, D]`: a recipe is a list of steps, and builds an `nn.Module`; its repr
is its source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

SIZES = (1, 2, 3, 5)
PLAIN = ("linear", "no bias", "again", "transposed", "functional", "norm", "conv", "depthwise",
         "scale", "shift", "tanh", "gelu", "residual", "concat", "sequence first", "centre",
         "attention", "gru", "prelu", "weight norm", "gate")
MIXING = ("batch mean", "roll", "flip", "batch softmax", "total", "cumsum", "first", "gram")
LOSSES = ("squares", "cross entropy", "mean of positions", "smooth l1", "logistic")


@dataclass(frozen=True)
class Recipe:
    """`Recipe(...)` printed is source that makes the same program again: `Program(recipe)`."""

    positions: int
    width: int
    steps: tuple[tuple[str, int], ...]
    frozen: tuple[int, ...]
    loss: str


@st.composite
def recipes(draw: Any, mixing: bool = False) -> Recipe:
    """Draws a Recipe; with `mixing` one of its steps lets examples meet."""
    step = st.tuples(st.sampled_from(PLAIN), st.sampled_from(SIZES))
    steps = [("linear", draw(st.sampled_from(SIZES))),
             *draw(st.lists(step, min_size=1, max_size=7))]
    if mixing:
        steps.insert(draw(st.integers(1, len(steps))), (draw(st.sampled_from(MIXING)), 1))
    frozen = draw(st.lists(st.integers(0, 11), max_size=2)) if draw(st.integers(0, 4)) == 0 else []
    positions, width, loss = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES)), draw(
        st.sampled_from(LOSSES))
    return Recipe(positions, width, tuple(steps), tuple(frozen), loss)


class Program(nn.Module):
    """The model of a Recipe, float64; `loss` is what it is trained by. Steps that do not fit where
    they stand do nothing.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.recipe = recipe
        self.parts = nn.ModuleList()
        self.bare = nn.ParameterList()
        self.plan: list[tuple[str, int,
                              int]] = []  # (step, index of its module or parameter, of another)
        width = recipe.width
        for name, size in recipe.steps:
            width = self._add(name, size, width)
        self.double()
        trainable = list(self.parameters())
        for i in recipe.frozen:
            if len(trainable) > 1 and i % len(trainable):  # the first always trains
                trainable[i % len(trainable)].requires_grad_(False)

    def _add(self, name: str, size: int, width: int) -> int:
        """Adds a step that takes `width` features; returns how many it gives."""
        if name in MAKE:
            made, after = MAKE[name](self.recipe, width, size)
            self.parts.append(made)
            return self._planned(name, len(self.parts) - 1, size, after)
        if name in BARE:
            shape = (self.recipe.positions, width) if size > 2 else (width,)
            self.bare.append(nn.Parameter(torch.randn(shape) * 0.3 + 1))
            return self._planned(name, len(self.bare) - 1, size, width)
        if name not in REUSE:
            return self._planned(name, -1, size, width)
        takes, gives = REUSE[name]
        known = [
            i for i, m in enumerate(self.parts)
            if type(m) is nn.Linear and getattr(m, takes) == width
        ]
        if not known:
            return width
        at = known[size % len(known)]
        return self._planned(name, at, size, getattr(self.parts[at], gives))

    def _planned(self, name: str, at: int, size: int, after: int) -> int:
        self.plan.append((name, at, size))
        return after

    def forward(self, x: Tensor) -> Tensor:
        for name, at, _ in self.plan:
            x = self._step(name, at, x)
        return x

    def _step(self, name: str, at: int, x: Tensor) -> Tensor:
        if name in BARE:
            return BARE[name](self.bare[at], x)
        part = self.parts[at] if at >= 0 else None
        return STEPS[name](part, x) if name in STEPS else part(x)  # type: ignore[misc]


# Steps with a module of their own: (recipe, features in, size drawn) -> (module, features out).
MAKE: dict[str, Any] = {
    "linear": lambda r, w, s: (nn.Linear(w, s), s), "no bias": lambda r, w, s:
    (nn.Linear(w, s, bias=False), s), "sequence first": lambda r, w, s: (nn.Linear(w, s), s),
    "weight norm": lambda r, w, s: (nn.utils.parametrizations.weight_norm(nn.Linear(w, s)), s),
    "norm": lambda r, w, s: (nn.LayerNorm(w), w), "residual": lambda r, w, s: (nn.Linear(w, w), w),
    "conv": lambda r, w, s: (nn.Conv1d(w, s, min(3, 2 * r.positions - 1), padding="same"), s),
    "depthwise": lambda r, w, s: (nn.Conv1d(w, w, 3, padding=1, groups=w), w),
    "concat": lambda r, w, s: (nn.Linear(w, s), w + s), "gru": lambda r, w, s:
    (nn.GRU(w, s, batch_first=True), s), "prelu": lambda r, w, s: (nn.PReLU(r.positions), w)
}
REUSE = {"again": ("in_features", "out_features"), "functional": ("in_features", "out_features"),
         "transposed": ("out_features", "in_features")}
BARE: dict[str, Any] = {"scale": lambda p, x: x * p, "shift": lambda p, x: x + p,
                        "gate": lambda p, x: x * (p.sigmoid() * x).tanh()}
STEPS: dict[str, Any] = {
    "functional": lambda m, x: F.linear(x, m.weight) * 0.5, "transposed": lambda m, x: x @ m.weight,
    "conv": lambda m, x: m(x.transpose(1, 2)).transpose(1, 2),
    "depthwise": lambda m, x: m(x.transpose(1, 2)).transpose(1, 2), "tanh": lambda m, x: x.tanh(),
    "gelu": lambda m, x: F.gelu(x), "residual": lambda m, x: x + m(x).tanh(),
    "concat": lambda m, x: torch.cat([x, m(x).sin()], -1), "gru": lambda m, x: m(x)[0],
    "sequence first": lambda m, x: m(x.transpose(0, 1)).transpose(0, 1),
    "centre": lambda m, x: x - 0.5 * x.mean(1, keepdim=True),
    "attention": lambda m, x: F.scaled_dot_product_attention(x, x, x),
    "batch mean": lambda m, x: x - x.mean(0), "roll": lambda m, x: x + x.roll(1, 0),
    "flip": lambda m, x: x * x.flip(0), "batch softmax": lambda m, x: x.softmax(0),
    "total": lambda m, x: x / (1 + x.square().sum()), "cumsum": lambda m, x: x.cumsum(0),
    "first": lambda m, x: x - x[0], "gram": lambda m, x: torch.einsum("btd,csd->bts", x, x)
}


def forward(model: Program, x: Tensor) -> Tensor:
    """The recipe's loss, as people write it: over the batch, or one per example."""
    y = model(x)
    if model.recipe.loss == "squares":
        return (y * 1.3 + 0.2).square().flatten(1).sum(1)
    if model.recipe.loss == "cross entropy":
        return F.cross_entropy(y.mean(1), torch.zeros(len(y), dtype=torch.long))
    if model.recipe.loss == "mean of positions":
        return (y.sin() + y.square() / 3).mean()
    if model.recipe.loss == "smooth l1":
        return F.smooth_l1_loss(y, torch.full_like(y, 0.3), reduction="sum")
    return F.softplus(-y.flatten(1).sum(1)).mean()
