"""Embedding norms by sorting each example's tokens: `sum_v |sum_{t: id_t = v} g_t|^2`, linear in T.

After sorting, equal tokens form a run. The gradients of each run are added up, then squared.
Nothing cancels that does not cancel in the gradient itself, and no table of the vocabulary's size
is formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxperex.kernels.device import ANY_STRIDES, runs, unavailable
from fxperex.numerics.norms import sq_norm


def by_token(ids: Tensor, g: Tensor) -> Tensor:
    """Returns `embedding_sq_norm`: as one node if its kernel runs, else as ATen operations that a
    compiler can fuse.
    """
    return embedding_sq_norm(ids, g) if unavailable(g.device) is None else reference(ids, g)


@torch.library.custom_op("fxperex::embedding_sq_norm", mutates_args=(), tags=ANY_STRIDES)
def embedding_sq_norm(ids: Tensor, g: Tensor) -> Tensor:
    """Returns the squared norms `[B]`, float64, of the table's gradients for `ids [B,T]` and
    `g [B,T,P]`.
    """
    if runs(ids, g):
        from fxperex.kernels.gpu.embedding import launch

        return launch(ids, g)
    return reference(ids, g)


@embedding_sq_norm.register_fake
def _(ids: Tensor, g: Tensor) -> Tensor:
    return g.new_empty(g.shape[0], dtype=torch.float64)


def reference(ids: Tensor, g: Tensor) -> Tensor:
    """Returns the same by ATen: every token adds to the row of its run, `[B,T,P]` in all."""
    rows, length, width = g.shape
    runs_of = run_numbers(ids) + length * torch.arange(rows, device=ids.device)[:, None]
    wide = g if g.dtype in (torch.float32, torch.float64) else g.float()
    sums = added(runs_of.reshape(-1), wide.reshape(rows * length, width), rows * length)
    return sq_norm(sums.view(rows, length * width))


def added(places: Tensor, g: Tensor, count: int) -> Tensor:
    """Returns `[count, P]`: the rows of `g [N, P]` added up by place. On a CPU this is faster than
    `index_add`.
    """
    return torch.ops.aten.embedding_dense_backward(g, places, count, -1, False)


def run_numbers(ids: Tensor) -> Tensor:
    """Returns `[B,T]`: the number of each token's id among its example's sorted distinct ids."""
    ordered, order = ids.sort(dim=1)
    new = torch.nn.functional.pad((ordered[:, 1:] != ordered[:, :-1]).to(torch.int64), (1, 0))
    return torch.zeros_like(order).scatter(1, order, new.cumsum(1))
