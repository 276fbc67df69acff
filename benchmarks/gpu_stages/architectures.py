"""The models of the table, in plain torch: the machine may have neither torchvision nor
transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workloads import group_norm

Batch = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """A block of ResNet: two convolutions of 3 x 3, or (`wide` = 4) one between two of 1 x 1."""

    def __init__(self, channels: int, width: int, stride: int, wide: int) -> None:
        super().__init__()
        sizes = [(channels, width, 1, 1), (width, width, 3, stride), (width, wide * width, 1, 1)]
        if wide == 1:
            sizes = [(channels, width, 3, stride), (width, width, 3, 1)]
        self.inner = nn.Sequential(
            *(
                layer
                for i, size in enumerate(sizes)
                for layer in _normed(*size, plain=i + 1 == len(sizes))
            )
        )
        same = stride == 1 and channels == wide * width
        self.short = (
            nn.Identity()
            if same
            else nn.Sequential(*_normed(channels, wide * width, 1, stride, plain=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) + self.short(x))


def _normed(channels: int, out: int, kernel: int, stride: int, *, plain: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
        group_norm(out),
    ]
    return layers if plain else [*layers, nn.ReLU()]


def resnet(blocks: Sequence[int], wide: int, classes: int = 1000, width: int = 64) -> nn.Module:
    layers: list[nn.Module] = [*_normed(3, width, 7, 2, plain=False), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for i, count in enumerate(blocks):
        for j in range(count):
            layers.append(Residual(channels, width << i, 2 if i and not j else 1, wide))
            channels = wide * (width << i)
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


def alexnet(classes: int = 1000) -> nn.Module:
    convs = [
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
    ]
    return nn.Sequential(*convs, *_classifier(256 * 36, classes))


def vgg16(classes: int = 1000) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *_classifier(512 * 49, classes)
    )


def _classifier(inputs: int, classes: int) -> list[nn.Module]:
    return [
        nn.Linear(inputs, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, classes),
    ]


class Block(nn.Module):
    """A transformer's block: norm, attention, norm, two maps; `causal` or not."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before_mixing, self.before_maps = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.qkv(self.before_mixing(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        x = x + self.out(
            F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            .transpose(1, 2)
            .flatten(2)
        )
        return x + self.down(F.gelu(self.up(self.before_maps(x)), approximate="tanh"))


class Language(nn.Module):
    """GPT-2: causal, its table of tokens the last map too. BERT-like with `classes`: all places
    seen, classified by the first."""

    def __init__(
        self, layers: int, width: int, heads: int, tokens: int, length: int, classes: int = 0
    ) -> None:
        super().__init__()
        self.tokens, self.places = (
            nn.Embedding(tokens, width),
            nn.Parameter(0.02 * torch.randn(length, width)),
        )
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.Sequential(
            *(Block(width, heads, causal=not classes) for _ in range(layers))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes) if classes else None

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.tokens(ids) + self.places))
        return (
            F.linear(x, self.tokens.weight).transpose(1, 2)
            if self.head is None
            else self.head(x[:, 0])
        )


class Vision(nn.Module):
    """ViT: patches, a class token, blocks that see all places."""

    def __init__(
        self, layers: int, width: int, heads: int, size: int, patch: int, classes: int = 1000
    ) -> None:
        super().__init__()
        self.patches, self.token = (
            nn.Conv2d(3, width, patch, patch),
            nn.Parameter(torch.zeros(1, width)),
        )
        self.places = nn.Parameter(0.02 * torch.randn((size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], 1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


@dataclass(frozen=True)
class Workload:
    """`make()` the model, `batch()` its inputs and targets on the CPU."""

    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]


def images(rows: int, size: int, classes: int = 1000) -> Callable[[], Batch]:
    return lambda: (torch.randn(rows, 3, size, size), torch.randint(classes, (rows,)))


def tokens(rows: int, length: int, vocabulary: int, classes: int = 0) -> Callable[[], Batch]:
    return lambda: (
        torch.randint(vocabulary, (rows, length)),
        torch.randint(classes, (rows,)) if classes else torch.randint(vocabulary, (rows, length)),
    )


def workloads(tiny: bool) -> dict[str, Workload]:
    """Returns the table's workloads in the order in which they are wanted."""
    if tiny:
        return {"resnet18": Workload(lambda: resnet((1, 1), 1, 10, 8), images(4, 32, 10)),
                "gpt2": Workload(lambda: Language(1, 32, 2, 50, 16), tokens(4, 16, 50))}
    return {
        "resnet18": Workload(lambda: resnet((2, 2, 2, 2), 1), images(64, 224)),
        "gpt2": Workload(lambda: Language(12, 768, 12, 50257, 1024), tokens(16, 1024, 50257)),
        "vit": Workload(lambda: Vision(12, 768, 12, 224, 16), images(64, 224)),
        "vgg16": Workload(vgg16, images(8, 256)),
        "alexnet": Workload(alexnet, images(16, 256)),
        "resnet50": Workload(lambda: resnet((3, 4, 6, 3), 4), images(64, 224)),
        "bert": Workload(lambda: Language(12, 768, 12, 30522, 512, 2), tokens(32, 512, 30522, 2)),
    }
