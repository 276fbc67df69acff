"""Traps that must come out right: models on which a peer released a wrong gradient, or one longer
than the bound.

`mistake` is what the peer released, per example; a library that makes it fails the trap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxperex.testing import Call, clipped, loop

Batch = tuple[Tensor, ...]
Grads = dict[str, Tensor]
Forward = Callable[..., Tensor]
CLIP = 0.6  # of the least norm among the examples: every one is clipped


@dataclass(frozen=True)
class Trap:
    """`seen`: where; `make() -> (model, batch)`; `mistake(model, batch, truth, clip)`: the
    contributions released there.
    """

    seen: str
    make: Callable[[], tuple[nn.Module, Batch]]
    mistake: Callable[[nn.Module, Batch, Grads, float], Grads]
    mean: bool = False


def loss(model: nn.Module, *batch: Tensor) -> Tensor:
    """One loss per example whose output gradients differ everywhere."""
    out = model(*batch).flatten(1)
    weights = torch.linspace(0.5, 2.0, out.shape[1], dtype=out.dtype)
    return ((out * weights).sin() + out.square() / 3).sum(1)


def scaled(grads: Grads, norms: Tensor, clip: float) -> Grads:
    """Contributions of examples whose norms were taken for `norms`."""
    factors = (clip / norms.clamp(min=1e-30)).clamp(max=1.0)
    return {n: torch.einsum("b,b...->b...", factors, g) for n, g in grads.items()}


def norms_of(grads: Grads) -> Tensor:
    return clipped(grads, 1.0)[1]


def forgets(function: Callable[..., Tensor]) -> Callable[[nn.Module, Batch, Grads, float], Grads]:
    """The true gradients, clipped by the norms of another program: one that leaves a use of the
    weight out.
    """
    return lambda model, batch, truth, clip: scaled(truth, norms_of(_other(model, function, batch)),
                                                    clip)


def replaces(function: Callable[..., Tensor]) -> Callable[[nn.Module, Batch, Grads, float], Grads]:
    """The gradients of another program."""
    def wrong(model: nn.Module, batch: Batch, truth: Grads, clip: float) -> Grads:
        grads = _other(model, function, batch)
        return scaled(grads, norms_of(grads), clip)

    return wrong


def _other(model: nn.Module, function: Callable[..., Tensor], batch: Batch) -> Grads:
    return loop(model, lambda m, *rows: loss(Call(function, m.module), *rows), batch)


def _on_first(model: nn.Module, batch: Batch, truth: Grads, clip: float) -> Grads:
    whole = {
        n: torch.cat([g.sum(0, keepdim=True), torch.zeros_like(g[1:])])
        for n, g in truth.items()
    }
    return scaled(whole, norms_of(whole), clip)


def _groups_added(model: nn.Module, batch: Batch, truth: Grads, clip: float) -> Grads:
    folded = {n: g.unflatten(1, (2, -1)).sum(1) if g.dim() > 2 else g for n, g in truth.items()}
    return scaled(truth, norms_of(folded), clip)


def _positions_apart(model: nn.Module, batch: Batch, truth: Grads, clip: float) -> Grads:
    """A bias' norm as that of all its positions, `|g|_F` instead of `|sum_t g_t|`."""
    out = model(*batch).detach().requires_grad_()
    (g,) = torch.autograd.grad(loss(nn.Identity(), out).sum(), out)
    weights = norms_of({"module.weight": truth["module.weight"]})
    return scaled(truth, (weights.square() + g.flatten(1).square().sum(1)).sqrt(), clip)


def _each_parameter(model: nn.Module, batch: Batch, truth: Grads, clip: float) -> Grads:
    return {
        n: g
        for name, one in truth.items()
        for n, g in scaled({name: one}, norms_of({name: one}), clip).items()
    }


def _without(name: str) -> Callable[[nn.Module, Batch, Grads, float], Grads]:
    def wrong(model: nn.Module, batch: Batch, truth: Grads, clip: float) -> Grads:
        return scaled({n: g * (n != name) for n, g in truth.items()}, norms_of(truth), clip)

    return wrong


class Tied(nn.Module):
    """Embedding and output layer, two modules of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.word.weight


def _embedded(table: nn.Embedding, ids: Tensor) -> Tensor:
    return F.linear(table(ids).tanh(), table.weight)


def _padded(mode: str) -> tuple[nn.Module, Batch]:
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    return Call(lambda m, x: m(x), layer), (torch.randn(4, 2, 4, 5),)


def _bag(**options: object) -> tuple[nn.Module, Batch]:
    return Call(lambda m, ids: m(ids),
                nn.EmbeddingBag(7, 4, **options)), (IDS, )  # type: ignore[arg-type]


def _once(bag: nn.EmbeddingBag, ids: Tensor) -> Tensor:
    first = torch.tensor([[i not in row[:t] for t, i in enumerate(row)] for row in ids.tolist()])
    rows = F.embedding(ids, bag.weight)
    return (torch.where(first[..., None], rows, rows.detach())).sum(1)


IDS = torch.tensor([[1, 2, 2, 6, 0], [3, 3, 3, 3, 3], [2, 1, 2, 3, 4], [6, 5, 6, 5, 1]])
X3 = (4, 3, 5)

RIGHT: dict[str, Trap] = {
    "linear over four dimensions": Trap(
        "Opacus ghost: takes 2 and 3; with 4 it reuses the last batch's norms", lambda:
        (Call(lambda m, x: m(x), nn.Linear(5, 3)), (torch.randn(4, 2, 3, 5), )),
        lambda m, b, truth, clip: scaled(truth,
                                         norms_of(truth).roll(1), clip)),
    "weight used beside its module": Trap(
        "Opacus hooks: x @ layer.weight, no error; ghost 5.90 C", lambda:
        (Call(lambda m, x: m(x) + x @ m.weight.t(), nn.Linear(5, 3)), (torch.randn(*X3), )),
        forgets(lambda m, x: m(x) + x @ m.weight.detach().t())),
    "embedding tied by a function": Trap(
        "Opacus ghost: F.linear(h, emb.weight), 1.46 C", lambda:
        (Call(_embedded, nn.Embedding(7, 4)), (IDS, )),
        forgets(lambda m, ids: F.linear(m(ids).tanh(), m.weight.detach()))),
    "embedding and linear of one parameter": Trap(
        "FastDP, MixOpt and ghost: norm_sample overwritten, 2.20 C", lambda:
        (Call(lambda m, ids: m.out(m.word(ids).tanh()), Tied()), (IDS, )),
        forgets(lambda m, ids: m.out(F.embedding(ids, m.word.weight.detach()).tanh()))),
    **{
        f"convolution, {mode} padding": Trap(
            "Opacus hooks wrong by 0.3; ghost 2.08 C and 2.03 C", lambda mode=mode: _padded(mode),
            replaces(lambda m, x: F.conv2d(x, m.weight, m.bias, padding=1)))
        for mode in ("circular", "reflect", "replicate")
    },
    "grouped convolution": Trap(
        "FastDP: gradient and norm wrong for groups", lambda:
        (Call(lambda m, x: m(x), nn.Conv2d(4, 6, 3, groups=2)),
         (torch.randn(4, 4, 5, 4), )), _groups_added),
    "embedding with padding_idx": Trap(
        "Opacus: error "
        "1.16", lambda: (Call(lambda m, ids: m(ids), nn.Embedding(7, 4, padding_idx=2)), (IDS, )),
        replaces(lambda m, ids: F.embedding(ids, m.weight))),
    "bag with an id several "
    "times": Trap("Opacus: error 0.56", lambda: _bag(mode="sum"), replaces(_once)),
    "bag of maxima": Trap("Opacus: error 1.0", lambda: _bag(mode="max"),
                          replaces(lambda m, ids: F.embedding_bag(ids, m.weight, mode="sum"))),
    "bag with padding_idx": Trap(
        "Opacus: error 0.56", lambda: _bag(mode="sum", padding_idx=2),
        replaces(lambda m, ids: F.embedding_bag(ids, m.weight, mode="sum"))),
    "bias over positions": Trap(
        "Opacus before PR 751, FlashNorm: vec(G)^T vec(G) for vec(G)^T 1", lambda:
        (Call(lambda m, x: m(x), nn.Linear(5, 3)), (torch.randn(*X3), )), _positions_apart),
    "a broadcast input": Trap(
        "ExpandedWeights: position ids [1, T], all of it on example 0", lambda:
        (Call(lambda m, x: x * m(torch.arange(3)[None]), nn.Embedding(3, 5)),
         (torch.randn(*X3), )), _on_first),
    "weight and bias clipped apart": Trap(
        "FlashDP: sqrt(2) C", lambda: (Call(lambda m, x: m(x), nn.Linear(5, 3)),
                                       (torch.randn(*X3), )), _each_parameter),
    "a parameter of no known layer": Trap(
        "FastDP: printed and left without a gradient", lambda:
        (Call(lambda m, x: m(x), nn.Sequential(nn.Linear(5, 3), nn.PReLU(3))),
         (torch.randn(4, 5), )), _without("module.1.weight")),
    "the bound that was asked for": Trap(
        "Opacus PR 664: clipped at 1 whatever "
        "max_grad_norm", lambda: (nn.Sequential(nn.Linear(5, 3)), (torch.randn(4, 5), )),
        lambda m, b, truth, clip: scaled(truth, norms_of(truth), 3 * clip)),
    "a mean over the batch": Trap(
        "Tramer et al. 2202.12219: a factor of the batch size", lambda:
        (nn.Sequential(nn.Linear(5, 3)), (torch.randn(4, 5), )),
        lambda m, b, truth, clip: scaled(truth, 4 * norms_of(truth), clip), mean=True),
}
