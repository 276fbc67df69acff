"""The models that benchmarks share: real architectures at sizes a CPU can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOSS = nn.CrossEntropyLoss()
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """`make()` gives the model, `batch(rows)` inputs and targets, `rows` the two batch sizes to
    look at.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    rows: tuple[int, int]


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)


def toy(layers: int, rate: float, kernel: int, size: int, first: int = 25) -> nn.Module:
    """The paper's toy CNN (arXiv 1912.06015): padding always 2, a pool after every second layer,
    one linear layer.
    """
    parts: list[nn.Module] = []
    channels, side = 3, size
    for i in range(layers):
        out = int(first * rate**i)
        parts += [nn.Conv2d(channels, out, kernel, padding=2), nn.ReLU()]
        channels, side = out, side + 5 - kernel
        if i % 2 == 1:
            parts.append(nn.MaxPool2d(2, 2))
            side //= 2
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels * side**2, 10))


class Decoder(nn.Module):
    """A GPT-2-shaped decoder: pre-norm blocks, causal attention, tied head left out, mean loss over
    tokens by the caller.
    """

    def __init__(self, layers: int = 4, width: int = 192, heads: int = 6, tokens: int = 1000,
                 length: int = 64) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Parameter(
            0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.second(x))))


class Recurrent(nn.Module):
    """An LSTM over token embeddings, classified at its last position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cells, self.head = nn.Embedding(1000, 64), nn.LSTM(
            64, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cells(self.embed(ids))[0][:, -1])


class RMSNorm(nn.Module):
    """Llama's norm, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class _LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = RMSNorm(width), RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, hidden,
                                       bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.first(x)
        q, k, v = (part(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for part in (self.q, self.k, self.v))
        x = x + self.o(
            F.scaled_dot_product_attention(_turned(q), _turned(k), v, is_causal=True).transpose(
                1, 2).flatten(2))
        normed = self.second(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def _turned(x: Tensor) -> Tensor:
    """Rotary positions: pairs of channels turned by an angle that grows with the position."""
    length, half = x.shape[-2], x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(length, device=x.device)[:, None] * rates
    one, two = x[..., :half], x[..., half:]
    return torch.cat(
        [one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1)


class Llama(nn.Module):
    """A Llama-shaped decoder of plain torch modules; 6.7 B parameters as it stands."""

    def __init__(self, layers: int = 32, width: int = 4096, heads: int = 32, hidden: int = 11008,
                 tokens: int = 32000) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(_LlamaBlock(width, heads, hidden) for _ in range(layers)))
        self.norm, self.head = RMSNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(ids))))


def images(size: int, classes: int = 10) -> Callable[[int], Batch]:
    return lambda rows: (torch.randn(rows, 3, size, size), torch.randint(0, classes, (rows,)))


def _normless(model: nn.Module) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, group_norm(child.num_features))
        else:
            _normless(child)
    return model


def _vision() -> list[Workload]:
    from torchvision import models

    return [
        Workload("alexnet", lambda: models.alexnet(dropout=0.0, num_classes=10), images(64),
                 (8, 32)),
        Workload("vgg16", lambda: models.vgg16(dropout=0.0, num_classes=10), images(32), (4, 16)),
        Workload("resnet18", lambda: models.resnet18(norm_layer=group_norm, num_classes=10),
                 images(32), (8, 32)),
        Workload("resnet50", lambda: models.resnet50(norm_layer=group_norm, num_classes=10),
                 images(64), (4, 16)),
        Workload("mobilenet_v3",
                 lambda: _normless(models.mobilenet_v3_small(num_classes=10, dropout=0.0)),
                 images(64), (8, 32)),
        Workload("convnext_tiny",
                 lambda: models.convnext_tiny(num_classes=10, stochastic_depth_prob=0.0),
                 images(64), (4, 16)),
        Workload("vit_small",
                 lambda: models.VisionTransformer(64, 8, 6, 6, 384, 1536, num_classes=10),
                 images(64), (4, 16)),
    ]


def _tokens(length: int, each: bool) -> Callable[[int], Batch]:
    def make(rows: int) -> Batch:
        targets = torch.randint(0, 1000, (rows, length)) if each else torch.randint(0, 10, (rows,))
        return torch.randint(0, 1000, (rows, length)), targets

    return make


GRID = {2: (1.0, 2.0, 4.0, 8.0, 16.0), 3: (1.0, 2.0, 3.0, 4.0, 5.0), 4: (1.0, 1.75, 2.5, 3.25, 4.0)}


def toys(size: int) -> list[Workload]:
    """The paper's 30 toy CNNs, on images of `size` pixels a side (the paper: 256)."""
    return [
        Workload(
            f"toy L{layers} r{rate:g} "
            f"k{kernel}",
            lambda a=layers, b=rate, c=kernel: toy(a, b, c, size),  # type: ignore[misc]
            images(size),
            (4, 8)) for kernel in (3, 5) for layers, rates in GRID.items() for rate in rates
    ]


def chosen(toy_size: int, names: list[str] | None, quick: bool) -> list[tuple[Workload, int]]:
    """Returns (workload, rows) for those of `names` (None: all) at both of their batch sizes, or at
    the smaller one alone.
    """
    return [(w, rows) for w in workloads(toy_size) if names is None or w.name in names
            for rows in w.rows[:1 if quick else 2]]


def workloads(toy_size: int = 32) -> list[Workload]:
    """Returns every workload of the regret benchmark."""
    return [*_vision(), Workload("decoder", Decoder, _tokens(64, True), (4, 16)),
            Workload("lstm", Recurrent, _tokens(16, False), (8, 32)), *toys(toy_size)]
