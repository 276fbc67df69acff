"""Programs written to get past the proof: rows in two orders, places, constants, and Python that a
graph does not hold.

Each is `program(model, x, y) -> losses [B]`, with `x` `[B, T, D]` and classes `y` `[B]`. `# mixes`
marks the line that a refusal must name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

B, T, D, CLASSES = 4, 3, 6, 5
F64 = torch.float64
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Attacked(nn.Module):
    """Parameters under attack: `l`, `o`, a bare `w`; buffers `pos` and `table`."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.o, self.w = nn.Linear(D,
                                           D), nn.Linear(D,
                                                         CLASSES), nn.Parameter(torch.randn(D, D))
        self.register_buffer("pos", torch.rand(T))
        self.register_buffer("table", torch.rand(T, D))
        self.double()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, T, D, dtype=F64), torch.randint(CLASSES, (B,))


def by_position(m: nn.Module, x: Tensor) -> Tensor:
    return m.l(x).transpose(0, 1).reshape(-1, D)


def by_example(m: nn.Module, x: Tensor) -> Tensor:
    return m.l(x).reshape(-1, D)


def pooled(m: nn.Module, x: Tensor) -> Tensor:
    return m.l(x).mean(1)


def head(m: nn.Module, h: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(m.o(h), y, reduction="none")


def tail(m: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """The head of rows by position."""
    return head(m, z.reshape(T, len(y), D).sum(0), y)


# --- a flag of one operand becomes the result's ---


def einsum_times(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    f = torch.einsum("nd,nd->nd", by_example(m, x), torch.ones(len(x) * T, D, dtype=F64))
    return tail(m, f * by_position(m, x), y)  # mixes


def einsum_plus(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    f = torch.einsum("nd,nd->nd", by_example(m, x), torch.ones(len(x) * T, D, dtype=F64))
    return tail(m, f + by_position(m, x), y)  # mixes


def einsum_cosine(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    f = torch.einsum("nd,nd->nd", by_example(m, x), torch.ones(len(x) * T, D, dtype=F64))
    near = F.cosine_similarity(f, by_position(m, x), dim=1)  # mixes
    return tail(m, by_position(m, x) * near[:, None], y)


def einsum_product(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    f = torch.einsum("nd,nd->nd", by_example(m, x), torch.ones(len(x) * T, D, dtype=F64))
    return tail(m, torch.einsum("nd,nd->nd", f @ m.w, by_position(m, x)), y)  # mixes


# --- a pattern that repeats is no row like any other ---


def repeated_parameter(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return tail(m, by_position(m, x) + m.w[:T].repeat(len(x), 1), y)  # mixes


def repeated_times(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return tail(m, by_position(m, x) * m.pos.repeat(len(x))[:, None], y)  # mixes


def repeated_ids(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    places = F.embedding(torch.arange(T).repeat(len(x)), m.w)
    return tail(m, by_position(m, x) + places, y)  # mixes


def repeated_rows(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return tail(m, by_position(m, x) * m.table.repeat(len(x), 1), y)  # mixes


def interleaved_rows(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = by_example(m, x) * m.table.repeat_interleave(len(x), 0)  # mixes
    return head(m, z.reshape(len(x), T, D).sum(1), y)


def merged_ones(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    ones = torch.ones(2, 2 * len(x), 3, dtype=F64) * m.pos[:2, None, None]
    z = m.l(x[:, :2]).reshape(-1, D) * ones.reshape(2 * len(x), D)  # mixes
    return head(m, z.reshape(len(x), 2, D).sum(1), y)


# --- an example's place in the batch ---


def row_of_rows(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    h, i = pooled(m, x), torch.arange(len(x))
    return head(m, h + h[i, i][:, None], y)  # mixes


def place_of_place(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    i = torch.arange(len(x))
    return head(m, pooled(m, x) * i[i][:, None], y)  # mixes


def wide_place(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    i = torch.arange(len(x))
    return head(m, pooled(m, x) * i[:, None].expand(len(x), D)[i], y)  # mixes


def small_place(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    i = torch.arange(len(x)).to(torch.int8).long()  # mixes
    return head(m, pooled(m, x)[i], y)


def first_rows_written(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    rows = by_example(m, x)
    first, ones = torch.zeros(len(x), 1, dtype=torch.long), torch.ones_like(rows) * m.pos[0]
    z = rows.scatter(1, first, ones)  # mixes
    return head(m, z.reshape(len(x), T, D).sum(1), y)


# --- scores and targets in two orders ---


def fresh_scores(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    s, t = torch.ones(len(x) * T, D, dtype=F64) @ m.w, y[:, None].expand(len(x), T).t().reshape(-1)
    loss = F.cross_entropy(s, t, reduction="none")  # mixes
    return loss.reshape(len(x), T).sum(1) + head(m, pooled(m, x), y)


def random_scores(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    s, t = torch.rand(len(x) * T, D, dtype=F64) * m.w[0], y[:, None].expand(len(x),
                                                                            T).t().reshape(-1)
    loss = F.cross_entropy(s, t, reduction="none")  # mixes
    return loss.reshape(len(x), T).sum(1) + head(m, pooled(m, x), y)


def fresh_likelihoods(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    s, t = torch.ones(len(x) * T, D, dtype=F64) @ m.w, y[:, None].expand(len(x), T).t().reshape(-1)
    loss = F.nll_loss(s, t, reduction="none")  # mixes
    return loss.reshape(len(x), T).sum(1) + head(m, pooled(m, x), y)


def constant_scores(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    s, t = torch.ones(len(x) * T, D, dtype=F64), y[:, None].expand(len(x), T).t().reshape(-1)
    loss = F.cross_entropy(s, t, reduction="none")
    return loss.reshape(len(x), T).sum(1) + head(m, pooled(m, x), y)  # mixes


# --- batch normalisation under other names, without eps ---


def native_norm(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    h = torch.native_batch_norm(pooled(m, x), None, None, None, None, True, 0.1, 0.0)[0]  # mixes
    return head(m, h, y)


def plain_norm(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    h = pooled(m, x)
    return head(m, torch.batch_norm(h, None, None, None, None, True, 0.1, 0.0, False), y)  # mixes


def inner_norm(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    h = pooled(m, x)
    h = torch._batch_norm_impl_index(h, None, None, None, None, True, 0.1, 0.0, False)[0]  # mixes
    return head(m, h, y)


# --- a parameter's gradient would be cut in the wrong order ---


def product_of_ones(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return tail(m, by_position(m, x) + torch.ones(T * len(x), D, dtype=F64) @ m.w, y)  # mixes


def expanded_parameter(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return tail(m, by_position(m, x) * m.w[:1].expand(T * len(x), D), y)  # mixes


def chosen_parameter(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    draws = torch.rand(T * len(x), D)
    return tail(m, torch.where(draws > 0.5, by_position(m, x), m.w[0]), y)  # mixes


# --- the batch size as a number ---


def weighted_sum(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = head(m, pooled(m, x), y)
    return torch.add(loss.sum(), loss.square().sum(), alpha=len(x))  # mixes


def written_at_size(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    h, zero = pooled(m, x).repeat(1, 3), torch.zeros(len(x), 1, dtype=F64)
    z = torch.slice_scatter(h, zero, 1, len(x), len(x) + 1)  # mixes
    return head(m, z.reshape(len(x), 3, D).mean(1), y)


MIXING: dict[str, Attack] = {
    f.__name__: f
    for f in (einsum_times, einsum_plus, einsum_cosine, einsum_product, repeated_parameter,
              repeated_times, repeated_ids, repeated_rows, interleaved_rows, merged_ones,
              row_of_rows, place_of_place, wide_place, small_place, first_rows_written,
              fresh_scores, random_scores, fresh_likelihoods, constant_scores, native_norm,
              plain_norm, inner_norm, product_of_ones, expanded_parameter, chosen_parameter,
              weighted_sum, written_at_size)
}


# --- look-alikes: the same operations, in one order ---


def same_order(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    f = torch.einsum("nd,nd->nd", by_example(m, x), torch.ones(len(x) * T, D, dtype=F64))
    z = f * by_example(m, x) + m.w[:T].repeat(len(x), 1) + F.embedding(
        torch.arange(T).repeat(len(x)), m.w)
    return head(m, z.reshape(len(x), T, D).sum(1), y)


def one_row_for_all(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = by_position(m, x) * torch.ones(len(x) * T, D, dtype=F64) + m.table[:1].repeat(len(x) * T, 1)
    return tail(m, z + m.table.repeat_interleave(len(x), 0), y)


def own_entries(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    h, i = pooled(m, x), torch.arange(len(x))
    places = i[i]
    return head(m, h[places] + h[i, h.argmax(1)][:, None], y)


def evaluating_norms(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    mean, spread = torch.zeros(D, dtype=F64), torch.ones(D, dtype=F64)
    h = torch.native_batch_norm(pooled(m, x), None, None, mean, spread, False, 0.1, 1e-5)[0]
    return head(m, torch.batch_norm(h, None, None, mean, spread, False, 0.1, 1e-5, False), y)


def targets_in_order(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    t = y[:, None].expand(len(x), T).t().reshape(-1)
    loss = F.cross_entropy(by_position(m, x), t, reduction="none")
    return loss.reshape(T, len(x)).sum(0) + x.mode(-1)[0].sum(1) * m.w.sum()


def no_targets_in_order(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(by_position(m, x), torch.zeros(T * len(x), dtype=torch.long),
                           reduction="sum")


def no_scores_in_order(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(torch.zeros(T * len(x), D, dtype=F64), by_position(m, x), reduction="sum")


def own_diagonals(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    h = m.l(x)
    return (h @ h.mT).diagonal(dim1=1, dim2=2).sum(1) + head(m, h.mean(1), y)


def mean_by_hand(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return head(m, pooled(m, x), y).sum() * (1 / len(x))


ALIKE: dict[str, Attack] = {
    f.__name__: f
    for f in (same_order, one_row_for_all, own_entries, evaluating_norms, targets_in_order,
              no_targets_in_order, no_scores_in_order, own_diagonals, mean_by_hand)
}
