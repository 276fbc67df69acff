"""Attention with every mask, local response norm, and loops that export unrolls: against the loop,
seeing no other example.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support import against_the_loop, curved
from torch import Tensor, nn

import fxperex
from fxperex.errors import BatchMixingError
from fxperex.testing import Call, flat, moved

B, T, D, H = 3, 4, 6, 2
PADDING = torch.tensor([[False, False, True, True], [False, False, False, False],
                        [False, False, False, True]])
CAUSAL = torch.ones(T, T, dtype=torch.bool).triu(1)
Maker = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


def _attention(run: Callable[..., Tensor], *more: Tensor,
               **options: object) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Call(run,
                nn.MultiheadAttention(D, H,
                                      **options)), (torch.randn(B, T,
                                                                D), *more)  # type: ignore[arg-type]


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (H, -1)).transpose(1, 2)


def _product(**options: object) -> Callable[..., Tensor]:
    """`F.scaled_dot_product_attention` of a layer's output; a mask may come with the batch."""
    def run(layer: nn.Module, x: Tensor, *mask: Tensor) -> Tensor:
        q, k, v = (_heads(p) for p in layer(x).chunk(3, -1))
        given = {"attn_mask": mask[0]} if mask else {}
        return F.scaled_dot_product_attention(q, k, v, **given, **options)  # type: ignore[arg-type]

    return run


def _stacked(run: Callable[..., Tensor], *more: Tensor) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Call(run, nn.Linear(D, 3 * D)), (torch.randn(B, T, D), *more)


def _cross(layer: nn.MultiheadAttention, x: Tensor, y: Tensor) -> Tensor:
    return layer(x, y, y.cos(), need_weights=False)[0]


def _sequence_first(layer: nn.MultiheadAttention, x: Tensor, padding: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    return layer(x, x, x, key_padding_mask=padding, attn_mask=CAUSAL)[0].transpose(0, 1)


def _scan(cell: nn.Module, x: Tensor) -> Tensor:
    """A state carried along: a decay, a gate, and an early output, as state-space layers have
    it.
    """
    state, outs = torch.zeros_like(x[:, 0]), []
    for step in x.unbind(1):
        gate = cell(step).sigmoid()
        state = gate * state + (1 - gate) * step
        outs.append(state + cell(state))
    return torch.stack(outs, 1)


def _backwards(cell: nn.Module, x: Tensor) -> Tensor:
    total = x[:, -1]
    for t in reversed(range(T - 1)):
        total = cell(torch.maximum(total, x[:, t])) * 0.5
    return total


MODELS: dict[str, Maker] = {
    "attention, causal": lambda: _attention(
        lambda m, x: m(x, x, x, attn_mask=CAUSAL, need_weights=False)[0], batch_first=True),
    "attention, causal by a "
    "flag": lambda: _attention(
        lambda m, x: m(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False)[0],
        batch_first=True),
    "attention, padding": lambda: _attention(lambda m, x, p: m(x, x, x, key_padding_mask=p)[0],
                                             PADDING, batch_first=True),
    "attention, padding and scores": lambda: _attention(
        lambda m, x, p: m(x, x, x, key_padding_mask=
                          torch.where(p, -9.0, 0.0).to(x.dtype), attn_mask=torch.linspace(
                              -1, 1, T * T).view(T, T).to(x.dtype))[0], PADDING, batch_first=True),
    "attention, a mask of each example's own": lambda: _attention(
        lambda m, x, p: m(x, x, x, attn_mask=p[:, None, None, :].expand(-1, H, T, -1).reshape(
            -1, T, T))[0], PADDING, batch_first=True),
    "attention, sequence first": lambda: _attention(_sequence_first, PADDING),
    "attention, its "
    "weights": lambda: _attention(lambda m, x: m(x, x, x, average_attn_weights=False)[1],
                                  batch_first=True),
    "attention, another "
    "source": lambda: _attention(_cross, torch.randn(B, 5, 4), kdim=4, vdim=4, batch_first=True),
    "attention, bias and zero "
    "tokens": lambda: _attention(lambda m, x: m(x, x, x)[0], add_bias_kv=True, add_zero_attn=True,
                                 batch_first=True),
    "product": lambda: _stacked(_product()),
    "product, causal": lambda: _stacked(_product(is_causal=True)),
    "product, scaled": lambda: _stacked(_product(scale=0.3)),
    "product, mask": lambda: _stacked(_product(), ~PADDING[:, None, None, :]),
    "product, scores": lambda: _stacked(_product(), torch.randn(B, 1, T, T)),
    "local response": lambda:
    (nn.Sequential(nn.Conv1d(T, 5, 3), nn.LocalResponseNorm(3, alpha=0.5)),
     (torch.randn(B, T, D), )),
    "scan": lambda: (Call(_scan, nn.Linear(D, D)), (torch.randn(B, T, D), )),
    "scan, backwards": lambda: (Call(_backwards, nn.Linear(D, D)), (torch.randn(B, T, D), )),
}


@pytest.mark.parametrize("name", MODELS)
def test_against_the_loop_and_blind_to_others(name: str) -> None:
    model, batch = MODELS[name]()
    batch = tuple(x.double() if x.is_floating_point() else x for x in batch)
    (private,) = against_the_loop(model.double(), batch, ("auto",))
    for probe, example, far in moved(lambda rows: flat(private.gradients(*rows)), batch):
        assert far <= 1e-12, (probe, example)


def test_a_padding_mask_along_the_batch_is_refused() -> None:
    model, (x, ) = _attention(
        lambda m, x: m(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0],
        batch_first=True)
    with pytest.raises(BatchMixingError, match="batch"):
        fxperex.transform(model, (x,), forward=lambda m, x: m(x).square().sum(), backend="eager")


def test_a_mask_for_all_examples_that_is_one_examples_is_refused() -> None:
    model, batch = _stacked(lambda m, x, p: _product()(m, x, ~p[:1, None, None, :]), PADDING)
    with pytest.raises(BatchMixingError, match="slice"):
        fxperex.transform(model, batch, forward=curved, backend="eager")
