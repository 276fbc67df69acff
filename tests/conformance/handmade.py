"""What the suites of others leave out: padding modes, `padding_idx`, repeated ids in a bag, kernels
of one, batches of none and of one, transposed convolutions with output padding, dilation and
groups, a kernel larger than its dilated axis.
"""

from __future__ import annotations

import torch
from case import Case
from torch import Tensor, nn

CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d
}
SIZES = (7, 6, 5)


def _images(rows: int, channels: int, dims: int) -> Tensor:
    return torch.randn(rows, channels, *SIZES[:dims])


def _padding_modes() -> list[Case]:
    options = [{"stride": 1}, {"stride": 2, "dilation": 2}, {"groups": 2, "padding": "same"}]
    return [
        Case("padding modes", CONVS[d](4, 6, 3, **{"padding": 2, **more}, padding_mode=mode),
             (_images(3, 4, d), ))
        for d in CONVS
        for mode in ("zeros", "reflect", "replicate", "circular")
        for more in options
    ]


def _kernel_one() -> list[Case]:
    options = [{}, {"groups": 2, "bias": False}, {"stride": 2}, {"padding": 1}]
    return [
        Case("kernel of one", CONVS[d](4, 6, 1, **more), (_images(3, 4, d), ))
        for d in CONVS
        for more in options
    ]


def _transposed() -> list[Case]:
    options = [{}, {"stride": 2, "output_padding": 1}, {"dilation": 2,
                                                        "padding": 1}, {"groups": 2, "bias": False},
               {"stride": 3, "padding": 2, "output_padding": 1, "dilation": 2, "groups": 2}]
    return [Case("transposed convolution", TRANSPOSED[d](4, 6, 3, **more), (_images(3, 4, d),))
            for d in TRANSPOSED for more in options]


def _asymmetric() -> list[Case]:
    return [
        Case("asymmetric kernel", nn.Conv2d(1, 1, (3, 1), dilation=(3, 1), bias=False),
             (torch.randn(1, 1, 8, 1), )),
        Case("asymmetric kernel", nn.Conv2d(2, 3, (1, 3), stride=(2, 1), padding=(0, 2)),
             (torch.randn(3, 2, 5, 4), )),
        Case("asymmetric kernel", nn.Conv3d(2, 4, (1, 2, 3), dilation=(1, 3, 1)),
             (torch.randn(3, 2, 3, 5, 4), ))
    ]


def _padding_idx() -> list[Case]:
    ids = torch.tensor([[2, 2, 0, 1], [2, 2, 2, 2], [0, 0, 0, 3]])
    return [
        Case("padding_idx", nn.Embedding(5, 3, padding_idx=at), (ids, )) for at in (0, 2, -1, 4)
    ] + [
        Case("padding_idx", nn.EmbeddingBag(5, 3, mode=mode, padding_idx=2), (ids, ))
        for mode in ("sum", "mean", "max")
    ]


def _repeated_ids() -> list[Case]:
    ids = torch.tensor([[1, 1, 1, 1], [0, 3, 0, 3], [4, 3, 2, 1]])
    return [
        Case("repeated ids", nn.EmbeddingBag(5, 3, mode=mode), (ids, ))
        for mode in ("sum", "mean", "max")
    ] + [
        Case("repeated ids", nn.Embedding(5, 3), (ids, )),
        Case("repeated ids", nn.EmbeddingBag(5, 3, mode="sum"),
             (ids, torch.randn(3, 4)), lambda m, x, w: m(x, per_sample_weights=w))
    ]


def _modules() -> list[tuple[nn.Module, tuple[int, ...]]]:
    """One module of every kind with the shape of one example."""
    return [(nn.Linear(4, 3), (4, )), (nn.Linear(4, 3), (2, 4)), (nn.Conv1d(2, 3, 2), (2, 5)),
            (nn.Conv2d(2, 3, 2), (2, 4, 5)), (nn.Conv3d(2, 3, 2), (2, 3, 4, 3)),
            (nn.ConvTranspose2d(2, 3, 2), (2, 3, 4)), (nn.LayerNorm(4), (3, 4)),
            (nn.GroupNorm(2, 4), (4, 3)), (nn.InstanceNorm2d(2, affine=True), (2, 3, 4)),
            (nn.RMSNorm(4), (3, 4)), (nn.PReLU(2), (2, 3)), (nn.LSTM(3, 2,
                                                                     batch_first=True), (4, 3)),
            (nn.GRU(3, 2, batch_first=True), (4, 3)),
            (nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), (3, 4))]


def _rows(kind: str, rows: int) -> list[Case]:
    ids = torch.randint(5, (rows, 4))
    return [Case(kind, module, (torch.randn(rows, *shape),)) for module, shape in _modules()] + [
        Case(kind, nn.Embedding(5, 3), (ids,)), Case(kind, nn.EmbeddingBag(5, 3), (ids,)),
        Case(kind, nn.Bilinear(4, 3, 2), (torch.randn(rows, 4), torch.randn(rows, 3)))]


TABLES = {
    "padding modes": _padding_modes, "kernel of one": _kernel_one,
    "transposed convolution": _transposed, "asymmetric kernel": _asymmetric,
    "padding_idx": _padding_idx, "repeated ids": _repeated_ids,
    "no example": lambda: _rows("no example", 0), "one example": lambda: _rows("one example", 1)
}


def cases(kind: str) -> list[Case]:
    """Returns the hand-made cases of `kind`."""
    torch.manual_seed(0)
    return TABLES[kind]()
