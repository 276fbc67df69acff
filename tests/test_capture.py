"""Programs that export alone would get wrong or give up on: sizes fixed in silence, masks compared,
tensors without elements.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from support import against_the_loop
from torch import Tensor, nn
from torch.nn.modules import transformer

import fxperex
from fxperex.graph.strides import distinct
from fxperex.layers.products import spelled


class Appended(nn.Module):
    """Keys of `[B, T, 4, 3]`, the batch second, and one learnt one after them.

    At 3 examples the strides are those of a tensor that a product may fold: the decomposition of
    `linear` asks, and the answer fixes the batch size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key, self.more = nn.Linear(4, 4, bias=False), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        keys = self.key(x.transpose(0, 1).unbind(-1)[0])
        return torch.cat([keys, self.more.repeat(1, keys.shape[1], 1)]).transpose(0, 1)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("shown", [None, 3])
def test_a_size_that_decomposition_fixes_in_silence(shown: int | None, traced: bool,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    if traced:  # as a program is that writes where others look
        monkeypatch.setattr(importlib.import_module("fxperex.capture.export"), "functionalise",
                            lambda *_: False)
    if shown:  # as many examples as the strides are of
        monkeypatch.setattr(importlib.import_module("fxperex.capture.program"), "distinct",
                            lambda *_: shown)
    (private,) = against_the_loop(Appended(), (torch.randn(3, 5, 4, 3),))
    assert private.captured.symbolic == (shown is None or not traced)
    assert private.step(torch.randn(7, 5, 4, 3)).norms.shape == (7,)


def test_the_size_shown_to_export_is_no_other_dimension() -> None:
    assert distinct(nn.Linear(5, 7), (torch.randn(2, 11, 1), torch.randn(2, 26))) == 17


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
                                   nn.MultiheadAttention(4, 2, batch_first=True)])
def test_as_many_examples_as_positions(layer: nn.Module) -> None:
    def attend(model: nn.Module, x: Tensor) -> Tensor:
        out = model(x) if isinstance(model, nn.TransformerEncoderLayer) else model(x, x, x)[0]
        return out.square().flatten(1).sum(1)

    (private,) = against_the_loop(layer.double(), (torch.randn(3, 3, 4).double(),), forward=attend)
    assert private.captured.symbolic


@pytest.mark.parametrize(
    "mask", [torch.ones(3, 3).triu(1).bool(),
             torch.tensor([False, True, False]).expand(3, 3)])
def test_masks_of_transformers_are_taken_as_they_stand(mask: Tensor) -> None:
    compares = transformer._detect_is_causal_mask
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
    against_the_loop(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double(),
        (torch.randn(3, 3, 4).double(), ),
        forward=lambda model, x: model(x, mask).square().flatten(1).sum(1))
    assert transformer._detect_is_causal_mask is compares


def test_examples_without_tokens() -> None:
    ids = torch.zeros(4, 0, dtype=torch.long)
    private = fxperex.transform(nn.Embedding(3, 2), (ids, ),
                                forward=lambda m, x: m(x).flatten(1).sum(1), backend="eager")
    assert torch.equal(private.gradients(ids)["weight"], torch.zeros(4, 3, 2))
    assert torch.equal(private.step(ids).norms, torch.zeros(4).double())


@pytest.mark.parametrize(("equation", "ranks", "terms"), [
    ("...d,dk->...k", [3, 2], (["abd", "dk"], "abk")),
    ("b...,...c->b...c", [3, 2], (["bad", "dc"], "badc")),
    ("ab, bc", [2, 2], (["ab", "bc"], "ac")),
    ("bd...,dk", [3, 2], (["bda", "dk"], "abk")),
    ("a...->a", [2], (["ab"], "a")),
])
def test_ellipses_of_einsum_are_spelled_out(equation: str, ranks: list[int],
                                            terms: tuple[list[str], str]) -> None:
    found = spelled(equation, ranks)
    assert found == terms
    operands = [torch.rand([2 + "abcdk".index(k) for k in term]) for term in terms[0]]
    torch.testing.assert_close(torch.einsum(equation, *operands),
                               torch.einsum(",".join(found[0]) + "->" + found[1], *operands))
