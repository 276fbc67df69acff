"""Traps that must be refused: programs that a peer accepts although examples meet, or data is kept
without noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxperex.errors import BatchMixingError, CaptureError, ConfigError, FxperexError, MutationError
from fxperex.testing import Call

B, D = 4, 6
IDS = torch.tensor([[1, 2, 2], [3, 3, 3], [0, 1, 2], [6, 5, 6]])
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Refused:
    """`seen`: where; `make() -> (model, batch)`; the error's class and words of its message;
    `options` of transform.
    """

    seen: str
    make: Callable[[], tuple[nn.Module, Batch]]
    kind: type[FxperexError]
    words: str
    options: dict[str, object] | None = None


def _layer(program: Callable[[Tensor], Tensor]) -> Callable[[], tuple[nn.Module, Batch]]:
    return lambda: (Call(lambda m, x: program(m(x)), nn.Linear(D, D)), (torch.randn(B, D),))


def _module(make: Callable[[], nn.Module], *shape: int) -> Callable[[], tuple[nn.Module, Batch]]:
    return lambda: (nn.Sequential(nn.Linear(shape[-1], shape[-1]), make()),
                    (torch.randn(B, *shape), ))


def _table(**options: object) -> Callable[[], tuple[nn.Module, Batch]]:
    return lambda: (nn.Sequential(nn.Embedding(7, 4, **options)), (IDS,))  # type: ignore[arg-type]


def _branch(x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x


def _experts(x: Tensor) -> Tensor:
    """Each expert takes the two examples of the batch that suit it best."""
    score = x.softmax(1)
    chosen = score.topk(2, 0)[1]
    return x * torch.zeros_like(score).scatter(0, chosen, 1.0)


def _contrast(x: Tensor) -> Tensor:
    y = F.normalize(x, dim=1)
    return F.cross_entropy(y @ y.t() / 0.1, torch.arange(len(y)), reduction="none")


def _dice(x: Tensor) -> Tensor:
    p = x.sigmoid()
    return 1 - 2 * p * p / (p.sum() + p.square().sum())


def _packed(model: nn.LSTM, x: Tensor) -> Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2, 2, 1]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(model(rows)[0], batch_first=True, total_length=3)[0]


def _ranges() -> nn.Module:
    from torch.ao.quantization import MovingAverageMinMaxObserver

    return MovingAverageMinMaxObserver()


REFUSED: dict[str, Refused] = {
    "the batch's mean "
    "taken off": Refused("Opacus' validator: 0 errors", _layer(lambda x: x - x.mean(0)),
                         BatchMixingError, "mean"),
    "batch norm as a function": Refused(
        "Opacus' validator passes it, error 2",
        _layer(lambda x: F.batch_norm(x, None, None, training=True)), BatchMixingError,
        "GroupNorm"),
    "batch norm without "
    "parameters": Refused("the same", _module(lambda: nn.BatchNorm1d(D, affine=False), D),
                          BatchMixingError, "GroupNorm"),
    "batch norm, frozen": Refused("Opacus: its statistics change, without noise",
                                  _module(lambda: nn.BatchNorm1d(D).requires_grad_(False), D),
                                  BatchMixingError, "eval"),
    "instance norm with running statistics": Refused(
        "Opacus accepts it", _module(lambda: nn.InstanceNorm1d(3, track_running_stats=True), 3, D),
        FxperexError, "running"),
    "an observer of "
    "ranges": Refused("the same class: quantisation-aware "
                      "training", _module(_ranges, D), FxperexError, "batch|captured|reduces"),
    "maximum over the "
    "batch": Refused("Opacus: error 1.6e12, validator silent", _layer(lambda x: x - x.max(0)[0]),
                     BatchMixingError, "max"),
    "softmax over the "
    "batch": Refused("the same", _layer(lambda x: x.softmax(0)), BatchMixingError, "softmax"),
    "sort over the "
    "batch": Refused("the same", _layer(lambda x: x.sort(0)[0]), BatchMixingError, "sort"),
    "running sum over the "
    "batch": Refused("the same", _layer(lambda x: x.cumsum(0)), BatchMixingError, "cumsum"),
    "rolled batch": Refused("the same", _layer(lambda x: x + x.roll(1, 0)), BatchMixingError,
                            "roll"),
    "batch joined to "
    "itself": Refused("the same", _layer(lambda x: torch.cat([x, x.flip(0)])), BatchMixingError,
                      "flip|cat"),
    "batch axis split": Refused("the same", _layer(lambda x: x.view(2, -1).cumsum(1)), FxperexError,
                                "view|reshap"),
    "experts with a "
    "capacity": Refused("vmap makes it another model, "
                        "silently", _layer(_experts), BatchMixingError, "topk"),
    "load balance loss": Refused("the same", _layer(lambda x: x * x.softmax(1).mean(0)),
                                 BatchMixingError, "mean"),
    "contrastive loss": Refused("cross-example "
                                "losses", _layer(_contrast), BatchMixingError, "matmul|arange|add "
                                "up|pair"),
    "triplets within the batch": Refused(
        "the same",
        _layer(lambda x: F.triplet_margin_loss(x, x.roll(1, 0), x.roll(2, 0), reduction="none")),
        BatchMixingError, "roll"),
    "dice over the batch": Refused("the same", _layer(_dice), BatchMixingError, "batch"),
    "embedding scaled by "
    "frequency": Refused("Opacus: error 0.70", _table(scale_grad_by_freq=True), BatchMixingError,
                         "scale_grad_by_freq"),
    "embedding renormalised": Refused("Opacus: looked-up rows rewritten without "
                                      "noise", _table(max_norm=0.1), MutationError, "max_norm"),
    "sparse gradients": Refused("no peer clips them", _table(sparse=True), FxperexError, "sparse"),
    "packed sequences": Refused(
        "several examples in "
        "one row", lambda: (Call(_packed, nn.LSTM(D, 3, batch_first=True)),
                            (torch.randn(B, 3, D), )), FxperexError, "packed|captured|batch"),
    "a branch on the "
    "data": Refused("Opacus accepts it "
                    "silently", _layer(_branch), CaptureError, "traps_refused.py"),
    "no bound": Refused("Opacus: epsilon 4.2 for C "
                        "= inf", _layer(torch.tanh), ConfigError, "clip must be",
                        {"clip": float("inf")}),
    "a bound of zero": Refused("Opacus: accepted, standard "
                               "deviation 0", _layer(torch.tanh), ConfigError, "clip must be",
                               {"clip": 0.0}),
}
