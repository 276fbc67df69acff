"""Tables, graphs and implicit layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Case, classify, family


class DLRM(nn.Module):
    """Recommendation in small (arXiv 1906.00091): embedding bags, dense features, pairwise
    products.
    """

    def __init__(self, tables: tuple[int, ...] = (11, 7, 13), width: int = 5) -> None:
        super().__init__()
        self.bags = nn.ModuleList([nn.EmbeddingBag(n, width, mode="sum") for n in tables])
        self.bottom = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width))
        pairs = (len(tables) + 1) * len(tables) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.bottom(dense)
        features = torch.stack([x, *(bag(ids[:, i]) for i, bag in enumerate(self.bags))], 1)
        row, column = torch.tril_indices(features.shape[1], features.shape[1], -1)
        return self.top(torch.cat([x, (features @ features.mT)[:, row, column]], 1)).squeeze(1)


@family("DLRM, embedding bags", "tables and graphs")
def dlrm() -> Case:
    def forward(model: nn.Module, dense: Tensor, ids: Tensor, clicked: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(dense, ids), clicked)

    ids = torch.randint(0, 7, (5, 3, 4))  # four ids a bag, repeats among them
    return Case(DLRM(), (torch.randn(5, 4), ids, torch.randint(0, 2, (5,)).float()), forward)


class Tabular(nn.Module):
    """Categorical embeddings beside numbers; a token per feature, attention between them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.words = nn.ModuleList([nn.Embedding(n, width) for n in (3, 5)])
        self.scale, self.shift = nn.Parameter(torch.randn(4, width)), nn.Parameter(
            torch.randn(4, width))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, 0.0, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, numbers: Tensor, classes: Tensor) -> Tensor:
        tokens = [numbers[..., None] * self.scale + self.shift]
        tokens += [word(classes[:, i])[:, None] for i, word in enumerate(self.words)]
        return self.head(
            self.layer(torch.cat([self.token.expand(len(numbers), -1, -1), *tokens], 1))[:, 0])


@family("FT-Transformer", "tables and graphs")
def tabular() -> Case:
    def forward(model: nn.Module, numbers: Tensor, classes: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(numbers, classes), y)

    return Case(Tabular(), (torch.randn(5, 4), torch.randint(0, 3,
                                                             (5, 2)), torch.randint(0, 2, (5, ))),
                forward)


class GNN(nn.Module):
    """Graph convolutions over a dense adjacency per example, a masked mean over its nodes."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, width), nn.Linear(width, width)])
        self.attention, self.head = nn.Parameter(torch.randn(width)), nn.Linear(width, 3)

    def forward(self, x: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        edges = edges + torch.eye(edges.shape[1], dtype=edges.dtype)
        degree = edges.sum(2).rsqrt()
        edges = degree[:, :, None] * edges * degree[:, None, :]
        for layer in self.layers:
            x = F.elu(edges @ layer(x))
        weights = (x @ self.attention).masked_fill(~mask, float("-inf")).softmax(1)
        return self.head(torch.einsum("bn,bnd->bd", weights, x))


@family("GNN, dense adjacency", "tables and graphs")
def gnn() -> Case:
    def forward(model: nn.Module, x: Tensor, edges: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, edges, mask), y)

    edges = (torch.rand(4, 5, 5) < 0.5).float()
    mask = torch.arange(5) < torch.tensor([[3], [5], [4], [1]])
    return Case(GNN(),
                (torch.randn(4, 5, 4), edges.maximum(edges.mT), mask, torch.randint(0, 3, (4, ))),
                forward)


class Implicit(nn.Module):
    """A fixed point `h = tanh(W h + U x)` by a fixed number of iterations, read once a token: an
    implicit RNN.
    """

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.word, self.inner, self.outer = nn.Embedding(9, width), nn.Linear(width,
                                                                              width), nn.Linear(
                                                                                  width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word(ids)
        h = x.new_zeros(len(x), x.shape[2])
        for t in range(ids.shape[1]):
            z = h
            for _ in range(3):
                z = torch.tanh(self.inner(z) + self.outer(x[:, t]) + h)
            h = z
        return self.head(h)


@family("implicit RNN", "sequences")
def implicit() -> Case:
    return Case(Implicit(), (torch.randint(0, 9, (4, 5)), torch.randint(0, 3, (4,))), classify)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.word = nn.Embedding(9, 6, padding_idx=0)
        self.cell = kind(6, 5, batch_first=True, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cell(self.word(ids))[0].mean(1))


def _recurrent(kind: type[nn.RNNBase], **options: object) -> Case:
    return Case(Recurrent(kind, **options),
                (torch.randint(0, 9, (4, 5)), torch.randint(0, 3, (4, ))), classify)


family("LSTM, two directions", "sequences")(lambda: _recurrent(nn.LSTM, bidirectional=True))
family("GRU, two layers", "sequences")(lambda: _recurrent(nn.GRU, num_layers=2))
