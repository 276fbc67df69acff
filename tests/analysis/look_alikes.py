"""Look-alikes of the mixing programs: examples stay apart, and the proof must see it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from mixing import D, I, M, Program, T, V
from torch import Tensor, nn


def _windows(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    parts = x.view(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(b * 4, -1, c)
    mixed = F.scaled_dot_product_attention(parts, parts, parts)
    return mixed.view(b, 2, 2, h // 2, w // 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


class _SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(D, 2, 8, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class _Attention(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.layer = nn.MultiheadAttention(D, 2, batch_first=first)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        y = self.layer(x, x, x, need_weights=False)[0]
        return y if self.first else y.transpose(0, 1)


class _Class(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Parameter(torch.randn(1, 1, D)), nn.Parameter(
            torch.randn(1, T + 1, D))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place).softmax(1)


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], first: bool) -> None:
        super().__init__()
        self.cell = kind(D, 3, batch_first=first)

    def forward(self, x: Tensor) -> Tensor:
        if self.cell.batch_first:
            return self.cell(x)[0]
        return self.cell(x.transpose(0, 1))[0].transpose(0, 1)


def _state(x: Tensor) -> Tensor:
    h = torch.zeros(len(x), D, dtype=x.dtype)
    for t in range(x.shape[1]):
        h = torch.tanh(h + x[:, t])
    return h


ACCEPTED: dict[str, tuple[Callable[[], Program | nn.Module], tuple[int, ...]]] = {
    "minus mean 1": (lambda: lambda x: x - x.mean(1, keepdim=True), V),
    "minus mean tokens": (lambda: lambda x: x - x.mean(1)[:, None], M),
    "flatten": (lambda: lambda x: x.flatten(1).tanh(), M),
    "permute": (lambda: lambda x: x.permute(2, 0, 1).tanh().permute(1, 2, 0), M),
    "sequence-first transformer": (_SequenceFirst, M),
    "windows": (lambda: _windows, I),
    "own index": (lambda: lambda x: x[torch.arange(len(x)), x.argmax(1)][:, None], V),
    "own token": (
        lambda: lambda x: x[torch.arange(len(x)), x.sum(2).argmax(1)], M),
    "gather": (lambda: lambda x: x.gather(1,
                                          x.argsort(1)[:, :2]), V),
    "class token": (_Class, M),
    "view by len": (lambda: lambda x: x.contiguous().view(len(x), -1).softmax(1), M),
    "view by size": (lambda: lambda x: x.contiguous().view(x.size(0), -1).softmax(1), M),
    "view merged": (lambda: lambda x: x.reshape(-1, D).softmax(1).view(-1, T, D), M),
    "chunk features": (lambda: lambda x: torch.mul(*x.chunk(2, 1)), V),
    "split features": (lambda: lambda x: torch.cat(x.split([2, 4], 1)[::-1], 1), V),
    "einsum keeping b": (lambda: lambda x: torch.einsum("btd,bsd->bts", x, x), M),
    "softmax 1": (lambda: lambda x: x.softmax(1), V),
    "pad": (lambda: lambda x: F.pad(x, (1, 1, 2, 0)), I),
    "pad reflect": (lambda: lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), I),
    "pad circular": (lambda: lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), I),
    "normalize 1": (lambda: lambda x: F.normalize(x, dim=1), V),
    "attention, batch first": (lambda: _Attention(True), M),
    "attention, sequence first": (lambda: _Attention(False), M),
    "scaled dot product": (
        lambda: lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), M),
    "scaled dot product, own mask": (lambda: lambda x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=(x.detach().sum(2) > -99)[:, None, :]), M),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(D, 2, 8, 0.0, batch_first=True), M),
    "encoder layer, norm "
    "first": (lambda: nn.TransformerEncoderLayer(D, 2, 8, 0.0, norm_first=True, batch_first=True),
              M),
    "repeat features": (lambda: lambda x: x.repeat(1, 2).sin(), V),
    "repeat batch back": (lambda: lambda x: x.repeat(2, 1).sin().view(2, -1, D).sum(0), V),
    "repeat interleave": (lambda: lambda x: x.repeat_interleave(3, 0).sin().view(-1, 3, D), V),
    "zeros state": (lambda: _state, M),
    "dropout 0": (lambda: nn.Dropout(0.0), V),
    "gram of tokens": (lambda: lambda x: x @ x.transpose(1, 2), M),
    "cumsum 1": (lambda: lambda x: x.cumsum(1), V),
    "sort 1": (lambda: lambda x: x.sort(1)[0], V),
    "flip 1": (lambda: lambda x: x.flip(1)[:, :3], V),
    "roll 1": (lambda: lambda x: x.roll((1, 1), (1, 2)).cumsum(1), M),
    "norm 1": (lambda: lambda x: x / x.norm(dim=1, keepdim=True), V),
    "max 1": (lambda: lambda x: x - x.max(1, keepdim=True)[0], V),
    "variance 1": (lambda: lambda x: x / (x.var(1, keepdim=True) + 1), V),
    "stack": (lambda: lambda x: torch.stack([x, x.sin()], 1), V),
    "stack in front": (lambda: lambda x: torch.stack([x, x.sin()]).sum(0), V),
    "unbind tokens": (lambda: lambda x: sum(t * i for i, t in enumerate(x.unbind(1))), M),
    "select token": (lambda: lambda x: x[:, 0] * x[:, -1], M),
    "slices": (lambda: lambda x: x[:, ::2, 1:].exp(), M),
    "where": (lambda: lambda x: torch.where(x > 0, x, 0.1 * x), V),
    "one hot": (lambda: lambda x: x * F.one_hot(x.argmax(1), D), V),
    "batch norm, evaluating": (lambda: nn.BatchNorm2d(2).eval(), I),
    "group norm": (lambda: nn.GroupNorm(2, 2), I),
    "instance norm": (lambda: nn.InstanceNorm2d(2, affine=True), I),
    "layer norm": (lambda: nn.LayerNorm(D), M),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), I),
    "pools": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), I),
    "pixel shuffle": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.PixelShuffle(2), nn.Upsample(scale_factor=2)),
        I),
    "unfold patches": (lambda: lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).sin(), I),
    "LSTM": (lambda: _Recurrent(nn.LSTM, True), M),
    "GRU, sequence first": (lambda: _Recurrent(nn.GRU, False), M),
    "bilinear form": (lambda: lambda x: torch.einsum("bi,bj->bij", x, x), V),
    "squeeze": (lambda: lambda x: x.mean(1, keepdim=True).squeeze(), V),
    "own statistics": (
        lambda: lambda x:
        (x - x.flatten(1).mean(1)[:, None, None]) / x.flatten(1).std(1).view(-1, 1, 1).exp(), M),
    "detached": (lambda: lambda x: x * x.detach().sum(1, keepdim=True), V),
    "causal mask": (lambda: lambda x:
                    (x @ x.mT).masked_fill(torch.ones(T, T).triu(1).bool(), -9.0).softmax(-1), M),
}
