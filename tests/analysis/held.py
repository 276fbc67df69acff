"""Attacks on the proof that never got past it: name -> what is done to `h` `[B, B-free D]`; all
refused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attack = Callable[[Tensor], Tensor]


def _own(h: Tensor) -> Tensor:
    return torch.arange(len(h))


HELD: dict[str, Attack] = {
    "rot90": lambda h: torch.rot90(h, 2, [0, 1]),
    "strided": lambda h: h.as_strided((len(h), 6), (6, 1), 6) + h,
    "take": lambda h: h + h.take(_own(h))[:, None],
    "index_add": lambda h: h.index_add(0,
                                       torch.zeros(4).long(), h[:4]),
    "index_copy": lambda h: h.index_copy(0,
                                         torch.zeros(1).long(), h[:1]),
    "kthvalue": lambda h: h - h.kthvalue(2, 0)[0],
    "index_put": lambda h: h.index_put((torch.zeros(1).long(), ), torch.zeros(6, dtype=h.dtype)),
    "mode": lambda h: h - h.round().mode(0)[0],
    "cummax": lambda h: h.cummax(0)[0],
    "median": lambda h: h - h.median(0)[0],
    "logcumsumexp": lambda h: h.logcumsumexp(0),
    "group norm": lambda h: F.group_norm(h.t()[None], 2)[0].t(),
    "layer norm": lambda h: F.layer_norm(h.t(), (len(h), )).t(),
    "instance norm": lambda h: F.instance_norm(h.t()[None])[0].t(),
    "interpolate": lambda h: F.interpolate(h.t()[None], scale_factor=1.0, mode="linear")[0].t(),
    "conv over merged": lambda h: F.conv1d(h.reshape(1, 1, -1), torch.ones(1, 1, 3, dtype=h.dtype),
                                           padding=1).view_as(h),
    "pool over merged": lambda h: F.avg_pool1d(h.reshape(1, 1, -1), 3, 1, 1).reshape(h.shape),
    "einsum pairs": lambda h: torch.einsum("bi,cj->bj", h, h),
    "kron": lambda h: torch.kron(h, h)[::len(h)],
    "bmm": lambda h: torch.bmm(h[None].transpose(1, 2), h[None])[0] @ h.t(),
    "pdist": lambda h: h * F.pdist(h).sum(),
    "addbmm": lambda h: torch.addbmm(h.new_zeros(6, 6), h[:, :, None], h[:, None]) @ h.t(),
    "tensordot": lambda h: torch.tensordot(h, h, dims=([1], [1])),
    "cov": lambda h: h @ torch.cov(h.t()),
    "svd": lambda h: torch.linalg.svd(h, full_matrices=False)[0] @ h.new_ones(
        6 if len(h) > 6 else len(h), 1),
    "solve": lambda h: h @ torch.linalg.solve(h.t() @ h + torch.eye(6, dtype=h.dtype),
                                              torch.eye(6, dtype=h.dtype)),
    "fft": lambda h: torch.fft.fft(h, dim=0).real,
    "attention": lambda h: F.scaled_dot_product_attention(h, h, h),
    "linspace": lambda h: h * torch.linspace(0, 1, len(h), dtype=h.dtype)[:, None],
    "eye": lambda h: h * torch.eye(len(h), dtype=h.dtype).sum(1, keepdim=True),
    "tril": lambda h: torch.ones(len(h), len(h), dtype=h.dtype).tril() @ h,
    "half of it": lambda h: h * (len(h) // 2),
    "root of it": lambda h: h * len(h)**0.5,
    "numel": lambda h: h / h.numel(),
    "shape": lambda h: h + h.shape[0],
    "size(0)": lambda h: h - h.size(0),
    "one over it": lambda h: h * (1 / len(h)),
    "power": lambda h: h.abs()**len(h),
    "clamped": lambda h: h.clamp(max=float(len(h))),
    "filled": lambda h: h.masked_fill(h > 0, float(len(h))),
    "shared mask": lambda h: h * F.dropout(torch.ones(1, 6, dtype=h.dtype), 0.5, True),
    "ratio": lambda h: h.square().sum() / h.abs().sum() * h,
    "contrast": lambda h: (h @ h.t()).log_softmax(1).diagonal()[:, None],
    "rows flipped": lambda h: h.flip(0) * h,
    "rows rolled": lambda h: h.roll((1, 1), (0, 1)),
    "bincount": lambda h: h * torch.bincount(h.argmax(1), minlength=6),
    "histc": lambda h: h * torch.histc(h, 6),
    "gathered": lambda h: h.gather(0, h.argsort(0)),
    "others' rows": lambda h: h[(_own(h) + 1) % len(h)],
    "scattered": lambda h: torch.zeros_like(h).scatter_add(0, h.argsort(0), h),
}
