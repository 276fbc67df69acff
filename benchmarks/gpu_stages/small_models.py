"""Eight small models, one for each way in which a step meets a kernel: every gradient of theirs is
held to float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workloads import RMSNorm

ROWS, LENGTH, WIDTH, TOKENS = 4, 24, 32, 60


class Attention(nn.Module):
    """One block with causal and one with masked attention; the mask hides the last places of every
    example."""

    def __init__(self) -> None:
        super().__init__()
        self.before_causal, self.before_masked = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.causal, self.masked = (nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.arange(LENGTH) < LENGTH - 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixed(self.causal(self.before_causal(x)), None)
        return self.out(x + self.mixed(self.masked(self.before_masked(x)), self.mask))

    def mixed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = x.unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return (
            F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
            .transpose(1, 2)
            .flatten(2)
        )


class Norms(nn.Module):
    """Group, layer and RMS norms between two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.group = nn.Conv1d(8, WIDTH, 3, padding=1), nn.GroupNorm(4, WIDTH)
        self.layer, self.rms, self.out = nn.LayerNorm(WIDTH), RMSNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.group(self.inner(x))).transpose(1, 2)
        return self.out(self.rms(self.layer(x).tanh()))


class Tied(nn.Module):
    """A table of tokens that is the last map as well."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mix = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.mix(self.tokens(ids)).tanh(), self.tokens.weight)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.LSTM(16, WIDTH, batch_first=True), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(x)[0])


class LoRA(nn.Module):
    """A frozen map with an adapter of rank 4 beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.up(self.down(x)).tanh()


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 20, 3, 2, groups=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(20 * 25, 6),
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.Conv2d(16, 16, 5, padding=2, groups=16),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, groups=16),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(32 * 100, 6),
    )


def transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(3, 8, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(8, 4, 3))


@dataclass(frozen=True)
class Small:
    """`make()` the model; `shape` of one example's numbers, or of its token ids where `ids`."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ids: bool = False

    def batch(self, rows: int, device: torch.device, kind: str = "random") -> tuple[Tensor]:
        """Returns one tensor of `rows` examples: "random", "constant", or "cancelling" (signs that
        alternate)."""
        if self.ids:
            ids = (
                torch.randint(TOKENS, (rows, *self.shape))
                if kind != "constant"
                else torch.ones(rows, *self.shape)
            )
            return (ids.long().to(device),)
        if kind == "random":
            return (torch.randn(rows, *self.shape).to(device),)
        signs = (
            torch.ones(self.shape[-1])
            if kind == "constant"
            else 1.0 - 2 * (torch.arange(self.shape[-1]) % 2)
        )
        # Just off a number that TF32 can hold, by half of its last bit: rounding to it is worst
        # there.
        return (((1 + 1.01 * 2.0**-11) * signs.expand(rows, *self.shape)).contiguous().to(device),)


SMALL = {
    "conv": Small(conv, (3, 12, 12)), "depthwise": Small(depthwise, (3, 12, 12)),
    "transposed": Small(transposed, (3, 6, 6)), "norms": Small(Norms, (8, LENGTH)),
    "attention": Small(Attention, (LENGTH, WIDTH)), "tied": Small(Tied, (LENGTH,), ids=True),
    "lstm": Small(Recurrent, (6, 16)), "lora": Small(LoRA, (LENGTH, WIDTH)),
}


def curved(model: nn.Module, *batch: Tensor) -> Tensor:
    """A loss `[B]` whose output gradients differ by element and example."""
    out = model(*batch).flatten(1)
    weights = torch.linspace(0.5, 2.0, out.shape[1], dtype=out.dtype, device=out.device)
    return ((out * weights).sin() + out**2 / 3).sum(1)
