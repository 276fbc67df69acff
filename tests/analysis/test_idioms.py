"""Ordinary lines that write, join, look up, transform and decompose: right if each example works on
its own rows, refused if one reaches another's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex.errors import FxperexError
from fxperex.testing import clipped, error, loop

B, T, D = 4, 3, 6
TABLE = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
Line = Callable[["Net", Tensor, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.w = nn.Linear(D, D), nn.Parameter(torch.randn(D, D))
        self.double()


def _set(write: Callable[[Tensor, Tensor], None]) -> Line:
    """The tensor that `write(h, y)` has written into."""
    def line(m: Net, h: Tensor, y: Tensor) -> Tensor:
        h = h.clone()
        write(h, y)
        return h

    return line


def _negative(h: Tensor, y: Tensor) -> None:
    h[h < 0] = 0.0


def _whole_rows(h: Tensor, y: Tensor) -> None:
    h[h.sum((1, 2)) > 0] = 0.5


def _columns(h: Tensor, y: Tensor) -> None:
    h[:, :, torch.tensor([True, False, True, False, False, True])] = 1.0


def _exchanged(h: Tensor, y: Tensor) -> None:
    h[:, [0, 2]] = h[:, [2, 0]]


def _own_place(h: Tensor, y: Tensor) -> None:
    h[torch.arange(len(h)), y % T] = 0.0


def _steps(m: Net, h: Tensor, y: Tensor) -> Tensor:
    out, state = torch.zeros_like(h), h[:, 0]
    for t in range(T):
        state = torch.tanh(state + h[:, t])
        out[:, t] = state
    return out


def _diagonal(m: Net, h: Tensor, y: Tensor) -> Tensor:
    pairs, i = torch.einsum("bi,bj->bij", h[:, 0], h[:, 1]), torch.arange(D)
    pairs[:, i, i] = 1.0
    return pairs


def _two_views(m: Net, h: Tensor, y: Tensor) -> Tensor:
    one, two = torch.tanh(torch.cat([h[:, 0], h[:, 1]]) @ m.w).chunk(2)
    return one * two.sin()


def _real_and_fake(m: Net, h: Tensor, y: Tensor) -> Tensor:
    scores = (torch.cat([h[:, 0], h[:, 1]]) @ m.w).sum(1)
    labels = torch.cat([torch.ones(len(h)), torch.zeros(len(h))]).double()
    loss = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    return loss[:len(h)] + 2 * loss[len(h):]


def _rotary(m: Net, h: Tensor, y: Tensor) -> Tensor:
    turns = torch.polar(torch.ones(T, D // 2), torch.arange(9.0).view(T, D // 2)).to(
        torch.complex128)
    return torch.view_as_real(torch.view_as_complex(h.reshape(*h.shape[:-1], -1, 2)) * turns
                              ).flatten(2)


def _gram(h: Tensor) -> Tensor:
    return h @ h.mT + torch.eye(T, dtype=h.dtype)


RIGHT: dict[str, Line] = {
    "mask": _set(_negative),
    "mask of rows": _set(_whole_rows),
    "mask of columns": _set(_columns),
    "columns exchanged": _set(_exchanged),
    "own place": _set(_own_place),
    "filled step by step": _steps,
    "diagonal": _diagonal,
    "index_add": lambda m, h, y: torch.zeros(len(h), 2, D, dtype=h.dtype).index_add(
        1, torch.tensor([0, 1, 1]), h),
    "two views": _two_views,
    "real and fake": _real_and_fake,
    "schedule by gather": lambda m, h, y: h * TABLE.gather(-1, y)[:, None, None],
    "schedule of parameters": lambda m, h, y: h * m.w[0].gather(-1, y)[:, None, None],
    "rotary": _rotary,
    "filter of parameters": lambda m, h, y: torch.fft.irfft(
        torch.fft.rfft(h, dim=2) * torch.fft.rfft(m.w[0]), n=D, dim=2),
    "distances": lambda m, h, y: torch.cdist(h, m.w[:2]),
    "own distances": lambda m, h, y: torch.cdist(h, h + 1),
    "solve": lambda m, h, y: torch.linalg.solve(_gram(h), h),
    "logdet": lambda m, h, y: torch.logdet(_gram(h)),
    "quantile": lambda m, h, y: h.quantile(0.3, dim=1),
    "joined beside": lambda m, h, y: torch.hstack([h, torch.tile(h, (1, 2, 1)).sin()]),
    "tensordot": lambda m, h, y: torch.tensordot(h, m.w, dims=([2], [0])),
    "triplet": lambda m, h, y: F.triplet_margin_loss(h[:, 0], h[:, 1], h[:, 2], reduction="none"),
    "margins": lambda m, h, y: F.multi_margin_loss(h[:, 0], y, reduction="none"),
    "warped": lambda m, h, y: F.grid_sample(h[:, None], F.affine_grid(
        h[:, :2, :3] * 0.1, [len(h), 1, 4, 4], align_corners=False), align_corners=False),
}
# Beside these, one of each kind is in the ordinary run.
LATER = {"mask of rows", "columns exchanged", "schedule of parameters", "own distances", "logdet",
         "tensordot", "quantile"}


def _others_places(h: Tensor, y: Tensor) -> None:
    h[y % len(h), 0] = 0.0


def _first_row(h: Tensor, y: Tensor) -> None:
    h[torch.zeros(1, dtype=torch.long)] = 0.0


def _everybodys(h: Tensor, y: Tensor) -> None:
    h[:, y % T] = 0.0


def _places_written(h: Tensor, y: Tensor) -> None:
    h[:, 0, torch.tensor([0])] = torch.arange(len(h)).double()[:, None]


def _shown_to_all(h: Tensor, y: Tensor) -> None:
    h[h < h.mean()] = 0.0


def _across(m: Net, h: Tensor, y: Tensor) -> Tensor:
    both = torch.cat([h[:, 0], h[:, 1]])
    return both[1:len(h) + 1]


def _other_order(m: Net, h: Tensor, y: Tensor) -> Tensor:
    flat = torch.cat([h.reshape(-1, D), h.transpose(0, 1).reshape(-1, D)])
    one, two = flat.chunk(2)
    return (one * two).view(len(h), T, D)


MIXING: dict[str, Line] = {
    "written at others' places": _set(_others_places),
    "written into the first": _set(_first_row),
    "everybody's index in all": _set(_everybodys),
    "place in the batch": _set(_places_written),
    "mask by the mean": _set(_shown_to_all),
    "index_add of rows": lambda m, h, y: torch.zeros_like(h).index_add(0, y % len(h), h),
    "index_copy of rows": lambda m, h, y: h.index_copy(0, torch.arange(len(h)).flip(0), h),
    "a shifted window": _across,
    "halves of a batch": lambda m, h, y: h.chunk(2)[0] - h.chunk(2)[1],
    "every other of two views": lambda m, h, y: torch.cat([h, h.sin()])[::2],
    "two orders": _other_order,
    "joined with a constant": lambda m, h, y: torch.cat([h, h.new_zeros(1, T, D)])[1:],
    "table by place": lambda m, h, y: h * TABLE[:, None].expand(5, 4).gather(0, y[None])[0, :, None,
                                                                                        None],
    "gathered along the batch": lambda m, h, y: h.take_along_dim((y % len(h))[:, None, None], 0),
    "transform of the batch": lambda m, h, y: torch.fft.fft(h, dim=0).real,
    "transform of all": lambda m, h, y: torch.fft.fftn(h).real,
    "distances of examples": lambda m, h, y: torch.cdist(h[:, 0], h[:, 0]),
    "solved for the batch": lambda m, h, y: torch.linalg.solve(
        h[:, 0].T @ h[:, 0] + torch.eye(D, dtype=h.dtype), h[:, 0].T).T,
    "whitened": lambda m, h, y: torch.linalg.qr(h[:, 0])[0],
    "singular values": lambda m, h, y: h[:, 0] * torch.linalg.svdvals(h[:, 0])[0],
    "quantile of the batch": lambda m, h, y: h - h.quantile(0.5, dim=0),
    "joined in rows": lambda m, h, y: torch.vstack([h[1:], h[:1]]),
    "tensordot over the batch": lambda m, h, y: torch.tensordot(h, h, dims=([0], [0])),
    "triplet of a neighbour": lambda m, h, y: F.triplet_margin_loss(
        h[:, 0], h[:, 1], h[:, 0].roll(1, 0), reduction="none"),
    "complex of two examples": lambda m, h, y: torch.view_as_complex(
        h[:, 0].reshape(-1, 2, D).transpose(1, 2).contiguous()).real,
    "turned": lambda m, h, y: torch.rot90(h, 1, (0, 1)),
    "boundaries of the batch": lambda m, h, y: h * torch.searchsorted(
        h[:, 0, 0].detach().sort()[0], h.detach()),
    "warped by one": lambda m, h, y: F.grid_sample(h[:, None], h[:1, :, :2, None].movedim(
        3, 1).expand(len(h), 1, T, 2), align_corners=False),
}


def _loss(line: Line) -> Callable[..., Tensor]:
    def forward(m: Net, x: Tensor, y: Tensor) -> Tensor:
        out = line(m, m.inner(x), y).flatten(1) if len(x) else x.flatten(1)
        weights = torch.linspace(0.5, 2.0, out.shape[1], dtype=out.dtype)
        return (out * weights).sin().sum(1) + out.square().sum(1) / 3

    return forward


def _flat(line: Line) -> Line:
    """Of a result [B] too, one column."""
    def column(m: Net, h: Tensor, y: Tensor) -> Tensor:
        out = line(m, h, y)
        return out[:, None] if out.dim() == 1 else out

    return column


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.nightly) if n in LATER else n for n in RIGHT])
def test_a_line_on_an_examples_own_rows_is_right(name: str) -> None:
    model, forward = Net(), _loss(_flat(RIGHT[name]))
    batch = (torch.randn(B, T, D, dtype=torch.float64), torch.randint(0, 5, (B,)))
    total, norms = clipped(loop(model, forward, batch), 1.0)
    result = fxperex.transform(model, batch, forward=forward, backend="eager").step(*batch)
    assert error(result.norms, norms) <= 1e-9
    for key, p in model.named_parameters():
        assert p.grad is not None and error(p.grad, total[key], 1e-3) <= 1e-9, key


@pytest.mark.parametrize("name", MIXING)
def test_a_line_that_reaches_others_is_refused(name: str) -> None:
    batch = (torch.randn(B, T, D, dtype=torch.float64), torch.randint(0, 5, (B,)))
    with pytest.raises(FxperexError):
        fxperex.transform(Net(), batch, forward=_loss(_flat(MIXING[name])), backend="eager")
