"""Programs of parameters alone, as a model computes its weights: one matrix in, one matrix out,
drawn and composed.

They go where a gradient is easily lost: complex numbers, rounding to integers and back, views,
writes in place, several results, decompositions.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N = 4
Step = Callable[[Tensor], Tensor]


def _written(w: Tensor) -> Tensor:
    q = torch.zeros_like(w)
    q[1:] = w[:-1].tanh()
    q[:, 0] += w[0]
    q[:, 2].copy_(w[3])
    return q


def _doubled(w: Tensor) -> Tensor:
    return w.clone().mul_(2).add_(w.t())


def _standardised(w: Tensor) -> Tensor:
    v, m = torch.var_mean(w, dim=[1], keepdim=True, unbiased=False)
    return (w - m) / torch.sqrt(v + 0.1)


def _spectral(w: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(w) * torch.polar(w[:, :3].exp(), w[:, :3]), n=N)


def _grid(w: Tensor) -> Tensor:
    first, second = torch.meshgrid(w[0], w[1], indexing="ij")
    return first * second.cos()


def _filled(w: Tensor) -> Tensor:
    table = w.new_zeros(N * N).index_put((torch.arange(N),), w[2])
    return table.view(N, N).masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), 0.3) + w


STEPS: dict[str, Step] = {
    "complex view": lambda w:
    (torch.view_as_complex(w.contiguous().view(N, 2, 2))**2).real.repeat(1, 2),
    "complex product": lambda w: torch.view_as_real(torch.complex(w, w.t()) @ torch.complex(w, w))[
        ..., 1],
    "imaginary part": lambda w: (w * (1 + 2j)).conj().imag,
    "phase": lambda w: torch.polar(w, w.t()).real,
    "modulus": lambda w: torch.complex(w,
                                       w.t() + 1).abs(),
    "fourier": _spectral,
    "rounded": lambda w: w.round() + w,
    "through integers": lambda w: w.long().to(w.dtype) * 0.1 + w,
    "straight through": lambda w: w + (w.sign() - w).detach(),
    "quantised": lambda w: (w / 0.1).floor() * 0.1 - w,
    "compared": lambda w: torch.where(w > 0, w, 0.1 * w),
    "written": _written,
    "doubled": _doubled,
    "filled": _filled,
    "diagonal": lambda w: w + torch.diag_embed(w.diagonal()),
    "lower": lambda w: w.tril() - w.triu(1).t(),
    "flipped": lambda w: w.flip(0) + w.roll(1, 1),
    "stacked": lambda w: torch.stack(w.unbind(1)[::-1]),
    "joined": lambda w: torch.cat([w[2:], w.chunk(2)[0]]),
    "strided": lambda w: torch.cat([w[::2], w[1::2].sin()]),
    "repeated": lambda w: w[0].expand(N, N) * w,
    "gathered": lambda w: w.gather(1, w.argsort(1)),
    "table": lambda w: F.embedding(torch.tensor([3, 0, 0, 1]), w),
    "indexed": lambda w: w[torch.arange(N), ::1][[2, 1, 0, 3]],
    "as strided": lambda w: w.contiguous().as_strided((N, N), (1, N)) + w,
    "unfolded": lambda w: w.reshape(-1).unfold(0, N, N) * 1.5,
    "standardised": _standardised,
    "deviations": lambda w: w / (0.5 + torch.std_mean(w, 1, keepdim=True)[0]),
    "grid": _grid,
    "largest": lambda w: w - w.max(1, keepdim=True)[0],
    "sorted": lambda w: w.sort(0)[0],
    "top": lambda w: w.topk(N, 1)[0],
    "extremes": lambda w: w / (1 + torch.aminmax(w)[1].abs()),
    "median": lambda w: w - w.median(1, keepdim=True)[0],
    "running most": lambda w: w.cummax(1)[0],
    "mantissa": lambda w: torch.frexp(w)[0] + w,
    "determinant": lambda w: w * torch.linalg.slogdet(w + 3 * torch.eye(N, dtype=w.dtype))[1],
    "orthogonal": lambda w: torch.linalg.qr(w)[0],
    "values": lambda w: w * torch.linalg.svdvals(w)[:, None],
    "exponential": lambda w: torch.matrix_exp(0.3 * w),
    "symmetric": lambda w: torch.linalg.eigh(w + w.t())[0] * w,
    "inverse": lambda w: torch.linalg.inv(w + 4 * torch.eye(N, dtype=w.dtype)),
    "weight norm": lambda w: w * (w.t().norm(dim=0) / w.norm(dim=1))[:, None],
    "spectral norm": lambda w: w / torch.linalg.matrix_norm(w, 2),
    "low rank": lambda w: w[:, :1] @ w[:1] + w,
    "not at all": lambda w: w.detach() * 2,
    "as integers only": lambda w: (3 * w).long().to(w.dtype),
    "its shape": lambda w: torch.ones_like(w),
}
DEAD = {"not at all", "as integers only", "its shape"}


class Weights(nn.Module):
    """`count` parameters, each through its own program of up to `longest` STEPS; the sum of what
    they make is applied.
    """

    def __init__(self, programs: list[tuple[str, ...]]) -> None:
        super().__init__()
        self.programs = programs
        self.weights = nn.ParameterList(0.5 * torch.randn(N, N, dtype=torch.float64) +
                                        torch.eye(N, dtype=torch.float64) for _ in programs)

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for weight, program in zip(self.weights, self.programs, strict=True):
            value = weight
            for name in program:
                value = STEPS[name](value).tanh()
            made.append(value)
        return x @ torch.cat(made, 1)


def single() -> list[tuple[str, ...]]:
    """Returns every step as a program of its own."""
    return [(name,) for name in STEPS]


def drawn(seed: int, count: int, longest: int = 3) -> list[tuple[str, ...]]:
    """Returns `count` programs drawn from `seed`."""
    choice = random.Random(seed)
    return [
        tuple(choice.choices(sorted(STEPS), k=choice.randint(2, longest))) for _ in range(count)
    ]
