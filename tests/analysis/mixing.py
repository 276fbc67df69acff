"""Programs in which examples meet: what the refusal must name, the program, the shape of one
example.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxperex.errors import BatchMixingError, CaptureError, FxperexError, MutationError

B, T, D = 4, 4, 6
V, M, I = (D,), (T, D), (2, 6, 6)  # noqa: E741
Program = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A linear layer, then the program under test, then a linear-free head."""

    def __init__(self, program: Program | nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = nn.Linear(shape[-1], shape[-1])
        self.program = program

    def forward(self, x: Tensor) -> Tensor:
        return self.program(self.inner(x))


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
    y[0] = 0.0  # mixes
    return y


# name: (op in the message, program, shape of one example)
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
    "functional batch "
    "norm": ("batch_norm", lambda x: F.batch_norm(x, None, None, training=True), V),
    "view halves": ("view|reshape", lambda x: x.view(2, -1), V),
    "view four": ("view|reshape", lambda x: x.view(4, -1).t().reshape(4, -1), V),
    "first": ("select", lambda x: x - x[0], V),
    "last": ("select", lambda x: x * x[-1], V),
    "every other": ("slice", lambda x: x[::2], V),
    "first three": ("slice", lambda x: x[:3], V),
    "shifted": ("slice", lambda x: x[1:] - x[:-1], V),
    "random order": ("index|randperm", _randperm, V),
    "cat": ("cat", lambda x: torch.cat([x, x.new_zeros(1, D)]), V),
    "chunk": ("split|chunk", lambda x: torch.cat(x.chunk(2, 0), 1), V),
    "unbind": ("unbind", lambda x: torch.stack(x.unbind(0), 1), V),
    "attention over "
    "batch": ("scaled_dot", lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]), V),
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
    "filled with len": ("full", lambda x: x * torch.full((D, ), float(len(x))), V),
    "stack and reshape": ("view|reshape", lambda x: torch.stack([x, x]).view(B, 2, D).sum(1), V),
    "transpose and "
    "reshape": ("view|reshape", lambda x: x.transpose(0, 1).reshape(len(x), -1).roll(1, 0), M),
    "conv over batch": ("conv1d", lambda x: F.conv1d(x.t()[None],
                                                     torch.ones(D, D, 3).double(), padding=1), V),
    "pool over batch": ("pool", lambda x: F.max_pool1d(x.t()[None], 2, 1), V),
    "contrastive": ("matmul", lambda x:
                    (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T).softmax(1), V),
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
    "expert capacity": ("cumsum", lambda x: x * (x.softmax(1).cumsum(0) < 2), V),
    "load balance": ("mean", lambda x: x * x.softmax(1).mean(0), V),
    "mixup": ("flip", lambda x: 0.7 * x + 0.3 * x.flip(0), V),
    "triplets": ("roll", lambda x: (x - x.roll(1, 0)).norm(dim=1) -
                 (x - x.roll(2, 0)).norm(dim=1), V),
    "all distances": ("cdist", lambda x: torch.cdist(x, x), V),
    "two halves apart": ("view|reshape", lambda x:
                         (x.view(2, -1, D) - x.view(2, -1, D).mean(1, keepdim=True)).view(-1, D),
                         V),
    "added to the first": ("index_add|zeros",
                           lambda x: torch.zeros_like(x).index_add(0,
                                                                   torch.zeros(B).long(), x), V),
    "rank in the batch": ("argsort|sort", lambda x: x * x.argsort(0), V),
    "shared drop": ("bernoulli", lambda x: x * torch.bernoulli(torch.full(
        (D, ), 0.5, dtype=x.dtype)), V),
}


def _one_hot() -> nn.Module:
    class Hot(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * F.one_hot(x.argmax(1)).sum(1, keepdim=True)

    return Hot()


class _Ids(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().abs().long().clamp(max=8)


MODULES: dict[str, tuple[type[FxperexError], str, Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (BatchMixingError, "GroupNorm", lambda: nn.BatchNorm1d(D), V),
    "BatchNorm2d": (BatchMixingError, "module program", lambda: nn.BatchNorm2d(2), I),
    "BatchNorm2d without "
    "statistics": (BatchMixingError, "eval", lambda: nn.BatchNorm2d(2, track_running_stats=False),
                   I),
    "BatchNorm affine=False": (BatchMixingError, "batch_norm",
                               lambda: nn.BatchNorm1d(D, affine=False), V),
    "InstanceNorm with running "
    "statistics": (
        (MutationError, BatchMixingError),
        "running",  # type: ignore[dict-item]
        lambda: nn.InstanceNorm2d(2, track_running_stats=True),
        I),
    "LSTM, sequence "
    "first": (
        (BatchMixingError, CaptureError),
        "batch_first",  # type: ignore[dict-item]
        lambda: _wrong_lstm(False),
        M),
    "LSTM, unbatched": (
        (BatchMixingError, CaptureError),
        "batch_first",  # type: ignore[dict-item]
        lambda: _wrong_lstm(True),
        V),
    "encoder, sequence "
    "first": (BatchMixingError, "attention|batch", lambda: nn.TransformerEncoderLayer(D, 2, 8, 0.0),
              M),
    "one_hot without "
    "num_classes": (FxperexError, "test_batch_axis.py|one_hot|captured", _one_hot, V),
    "embedding scaled by frequency": (
        BatchMixingError, "scale_grad_by_freq",
        lambda: nn.Sequential(_Ids(), nn.Embedding(9, 3, scale_grad_by_freq=True)), V),
    "embedding renormalised": (FxperexError, "embedding|captured|writes",
                               lambda: nn.Sequential(_Ids(), nn.Embedding(9, 3, max_norm=1.0)), V),
}
