"""What mixes examples is refused with op and line; its look-alikes pass and equal the loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxperex
from fxperex.errors import BatchMixingError, CaptureError, FxperexError, MutationError
from fxperex.testing import clipped, error, loop

B, T, D = 4, 4, 6
Program = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A linear layer, then the program under test, then a linear-free head."""

    def __init__(self, program: Program | nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = nn.Linear(shape[-1], shape[-1])
        self.program = program

    def forward(self, x: Tensor) -> Tensor:
        return self.program(self.inner(x))


def _head(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).flatten(1).square().sum(1)


def _sum(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def _transform(program: Program | nn.Module, shape: tuple[int, ...], loss: Callable[..., Tensor] = _sum,
               clip: float = 1.0) -> tuple[nn.Module, Tensor, fxperex.PerExampleModule]:
    model = Net(program, shape).double()
    x = torch.randn(B, *shape, dtype=torch.float64)
    return model, x, fxperex.transform(model, (x,), forward=loss, clip=clip, backend="eager")


def _randperm(x: Tensor) -> Tensor:
    return x[torch.randperm(len(x))]


def _wrong_lstm(first: bool) -> nn.Module:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(D, 3, batch_first=first)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x)[0]

    return Wrong()


def _write(x: Tensor) -> Tensor:
    y = x.clone()
    y[0] = 0.0
    return y


# name: (op in the message, program, shape of one example)
V, M, I = (D,), (T, D), (2, 6, 6)  # noqa: E741
MIXING: dict[str, tuple[str, Program, tuple[int, ...]]] = {
    "minus mean": ("mean", lambda x: x - x.mean(0), V),
    "minus mean keepdim": ("mean", lambda x: x - x.mean(dim=0, keepdim=True), V),
    "minus overall mean": ("mul|sub", lambda x: x - x.mean(), V),
    "standard deviation": ("std", lambda x: x / x.std(0), V),
    "variance": ("var", lambda x: x / (x.var(0) + 1), V),
    "roll": ("roll", lambda x: x.roll(1, 0), V),
    "roll flat": ("roll", lambda x: x.roll(1), V),
    "gram": ("matmul", lambda x: x @ x.T, V),
    "covariance": ("matmul", lambda x: x.T @ x, V),
    "flip": ("flip", lambda x: x.flip(0), V),
    "sort": ("sort", lambda x: x.sort(0)[0], V),
    "topk": ("topk", lambda x: x.topk(2, 0)[0], V),
    "norm": ("norm", lambda x: x / x.norm(), V),
    "normalize": ("norm", lambda x: F.normalize(x, dim=0), V),
    "softmax": ("softmax", lambda x: x.softmax(0), V),
    "log_softmax": ("log_softmax", lambda x: x.log_softmax(0), V),
    "cumsum": ("cumsum", lambda x: x.cumsum(0), V),
    "cumprod": ("cumprod", lambda x: x.cumprod(0), V),
    "functional batch norm": ("batch_norm", lambda x: F.batch_norm(x, None, None, training=True), V),
    "view halves": ("view|reshape", lambda x: x.view(2, -1), V),
    "view four": ("view|reshape", lambda x: x.view(4, -1).t().reshape(4, -1), V),
    "first": ("select", lambda x: x - x[0], V),
    "last": ("select", lambda x: x * x[-1], V),
    "every other": ("slice", lambda x: x[::2], V),
    "first three": ("slice", lambda x: x[:3], V),
    "shifted": ("slice", lambda x: x[1:] - x[:-1], V),
    "random order": ("index|randperm", _randperm, V),
    "cat": ("cat", lambda x: torch.cat([x, x]), V),
    "chunk": ("split|chunk", lambda x: torch.cat(x.chunk(2, 0), 1), V),
    "unbind": ("unbind", lambda x: torch.stack(x.unbind(0), 1), V),
    "attention over batch": ("scaled_dot", lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]), V),
    "attention over batch, transposed": ("scaled_dot", lambda x: F.scaled_dot_product_attention(
        x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1)), M),
    "einsum over b": ("einsum", lambda x: torch.einsum("bi,bj->ij", x, x), V),
    "einsum pairs": ("einsum", lambda x: torch.einsum("bi,ci->bc", x, x), V),
    "max": ("max", lambda x: x - x.max(0)[0], V),
    "amax": ("amax", lambda x: x - x.amax(0), V),
    "logsumexp": ("logsumexp", lambda x: x - x.logsumexp(0), V),
    "times len": ("mul", lambda x: x * len(x), V),
    "over len": ("div", lambda x: x / len(x), V),
    "plus place": ("add|mul", lambda x: x + torch.arange(len(x))[:, None], V),
    "filled with len": ("full", lambda x: x * torch.full((D,), float(len(x))), V),
    "stack and reshape": ("view|reshape", lambda x: torch.stack([x, x]).view(B, 2, D).sum(1), V),
    "transpose and reshape": ("view|reshape", lambda x: x.transpose(0, 1).reshape(len(x), -1).roll(1, 0), M),
    "conv over batch": ("conv1d", lambda x: F.conv1d(x.t()[None], torch.ones(D, D, 3).double(), padding=1), V),
    "pool over batch": ("pool", lambda x: F.max_pool1d(x.t()[None], 2, 1), V),
    "contrastive": ("matmul", lambda x: (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T).softmax(1), V),
    "distances": ("cdist|expand|sub|unsqueeze", lambda x: (x[:, None] - x[None]).square(), V),
    "pad batch": ("pad", lambda x: F.pad(x, (0, 0, 1, 1)), V),
    "diff": ("diff|slice|narrow", lambda x: x.diff(dim=0), V),
    "gather": ("gather", lambda x: x.gather(0, torch.zeros_like(x, dtype=torch.long)), V),
    "gather first row": ("gather", lambda x: x.gather(1, torch.zeros(1, 3, dtype=torch.long)), V),
    "write to the first": ("scatter|select|copy", _write, V),
    "roll by len": ("roll", lambda x: x.roll(len(x), 1), V),
    "median": ("median", lambda x: x - x.median(), V),
    "linear over batch": ("linear|matmul", lambda x: x.t() @ torch.ones(B, 2).double(), V),
    "index of each in all": ("index", lambda x: x[:, x.argmax(1)], V),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_refused_with_op_and_line(name: str) -> None:
    op, program, shape = MIXING[name]
    with pytest.raises((BatchMixingError, CaptureError)) as caught:
        _transform(program, shape)
    message = str(caught.value)
    if isinstance(caught.value, CaptureError):
        # Another program, or none, at another batch size: capture sees it first.
        assert name in {"linear over batch", "stack and reshape", "view four", "chunk", "unbind"}
    assert "test_batch_axis.py" in message
    if isinstance(caught.value, BatchMixingError):
        told = message.split(" at ")[0]
        assert any(word in told for word in op.split("|")), message


def _one_hot() -> nn.Module:
    class Hot(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * F.one_hot(x.argmax(1)).sum(1, keepdim=True)

    return Hot()


MODULES: dict[str, tuple[type[FxperexError], str, Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (BatchMixingError, "GroupNorm", lambda: nn.BatchNorm1d(D), V),
    "BatchNorm2d": (BatchMixingError, "module program", lambda: nn.BatchNorm2d(2), I),
    "BatchNorm2d without statistics": (BatchMixingError, "eval", lambda: nn.BatchNorm2d(2, track_running_stats=False), I),
    "BatchNorm affine=False": (BatchMixingError, "batch_norm", lambda: nn.BatchNorm1d(D, affine=False), V),
    "InstanceNorm with running statistics": ((MutationError, BatchMixingError), "running",  # type: ignore[dict-item]
                                             lambda: nn.InstanceNorm2d(2, track_running_stats=True), I),
    "LSTM, sequence first": ((BatchMixingError, CaptureError), "batch_first",  # type: ignore[dict-item]
                             lambda: _wrong_lstm(False), M),
    "LSTM, unbatched": ((BatchMixingError, CaptureError), "batch_first",  # type: ignore[dict-item]
                        lambda: _wrong_lstm(True), V),
    "encoder, sequence first": (BatchMixingError, "attention|batch", lambda: nn.TransformerEncoderLayer(D, 2, 8, 0.0), M),
    "one_hot without num_classes": (FxperexError, "test_batch_axis.py|one_hot|captured", _one_hot, V),
    "embedding scaled by frequency": (BatchMixingError, "scale_grad_by_freq", lambda: nn.Sequential(
        _Ids(), nn.Embedding(9, 3, scale_grad_by_freq=True)), V),
    "embedding renormalised": (FxperexError, "embedding|captured|writes", lambda: nn.Sequential(
        _Ids(), nn.Embedding(9, 3, max_norm=1.0)), V),
}


class _Ids(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().abs().long().clamp(max=8)


@pytest.mark.parametrize("name", MODULES)
def test_mixing_modules_are_refused(name: str) -> None:
    kind, words, make, shape = MODULES[name]
    with pytest.raises(kind, match=words):
        _transform(make(), shape)


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
        self.token, self.place = nn.Parameter(torch.randn(1, 1, D)), nn.Parameter(torch.randn(1, T + 1, D))

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
    "own token": (lambda: lambda x: x[torch.arange(len(x)), x.sum(2).argmax(1)], M),
    "gather": (lambda: lambda x: x.gather(1, x.argsort(1)[:, :2]), V),
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
    "scaled dot product": (lambda: lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), M),
    "scaled dot product, own mask": (lambda: lambda x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=(x.detach().sum(2) > -99)[:, None, :]), M),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(D, 2, 8, 0.0, batch_first=True), M),
    "encoder layer, norm first": (lambda: nn.TransformerEncoderLayer(D, 2, 8, 0.0, norm_first=True, batch_first=True), M),
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
    "pixel shuffle": (lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.PixelShuffle(2), nn.Upsample(scale_factor=2)), I),
    "unfold patches": (lambda: lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).sin(), I),
    "LSTM": (lambda: _Recurrent(nn.LSTM, True), M),
    "GRU, sequence first": (lambda: _Recurrent(nn.GRU, False), M),
    "bilinear form": (lambda: lambda x: torch.einsum("bi,bj->bij", x, x), V),
    "squeeze": (lambda: lambda x: x.mean(1, keepdim=True).squeeze(), V),
    "own statistics": (lambda: lambda x: (x - x.flatten(1).mean(1)[:, None, None]) / x.flatten(1).std(1).view(-1, 1, 1).exp(), M),
    "detached": (lambda: lambda x: x * x.detach().sum(1, keepdim=True), V),
    "causal mask": (lambda: lambda x: (x @ x.mT).masked_fill(torch.ones(T, T).triu(1).bool(), -9.0).softmax(-1), M),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_look_alikes_equal_the_loop(name: str) -> None:
    make, shape = ACCEPTED[name]
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        return (y.reshape(len(x), -1) * 1.3 + 0.2).square().sum(1)

    model, x, private = _transform(make(), shape, loss, clip=3.0)
    truth = loop(model, loss, (x,))
    total, norms = clipped(truth, 3.0)
    result = private.step(x)
    assert error(result.norms, norms) <= 1e-9
    for key, p in model.named_parameters():
        assert p.grad is not None and error(p.grad, total[key], 1e-3) <= 1e-9, key
