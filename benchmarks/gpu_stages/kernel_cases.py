"""Every kernel at every shape: what it returns, the same in float64, and how far off it may be.

The shapes are those that the tests go through in Triton's interpreter, and odder ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fxperex import kernels
from fxperex.kernels.conv import reference
from gpu_stages.setting import Setting

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative error of what is stored: half a unit of the dtype, or TF32's of both operands.
STORED = {"float32": 1e-6, "tf32": 2.0**-9, "bfloat16": 2.0**-8, "float16": 2.0**-11}
SUMMED, EXACT = 1e-6, 1e-12  # of what is formed in float32, in float64
WAYS = ("plain", "transposed", "examples second", "strided")
# (what the kernel returns, the truth, the largest relative error)
Outcome = list[tuple[Tensor, Tensor, float]]
Cases = Iterator[tuple[str, Callable[[], Outcome]]]


def shapes(name: str, setting: Setting) -> list[Any]:
    """Returns the list `name` of `kernel_shapes` and its odd ones; for a rehearsal two of them."""
    lists = import_module("kernel_shapes")
    every = [*getattr(lists, name), *getattr(lists, f"{name}_ODD")]
    return every[:2] if setting.tiny else every


def numbers(dtype: str, setting: Setting, *size: int) -> Tensor:
    return torch.randn(*size).to(setting.device, DTYPES[dtype])


def squares(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().sum(1)


def precisions(dtype: str, setting: Setting) -> list[tuple[str, float]]:
    """Returns (how to multiply, how far what is stored may be off)."""
    loose = [("tf32", STORED["tf32"])] if dtype == "float32" and setting.on_gpu else []
    return [("ieee", STORED[dtype]), *loose]


def streamed(dtype: str, setting: Setting) -> float:
    """The limit of squares of what is not stored; a CPU's references form it in the dtype."""
    return SUMMED if setting.on_gpu or dtype == "float32" else 2 * STORED[dtype]


def laid(x: Tensor, way: str) -> Tensor:
    """Returns `x [B,G,T,D]` in other strides; "strided": every other number of a wider one."""
    if way == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if way == "examples second":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return torch.stack([x, x], -1)[..., 0] if way == "strided" else x


def product(a: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bgtp,bgtd->bgpd", g.double(), a.double())


def stored(kernel: Callable[..., tuple[Tensor, Tensor]], truth: Tensor, limit: float) -> Outcome:
    """Norms are those of what was stored."""
    grads, norms = kernel()
    return [(grads, truth, limit), (norms, squares(grads), SUMMED)]


def linear(dtype: str, setting: Setting) -> Cases:
    for shape in shapes("LINEAR", setting):
        groups, positions, *widths = shape
        for way in WAYS[:1] if setting.tiny else WAYS:
            a, g = (laid(numbers(dtype, setting, 3, groups, positions, n), way) for n in widths)
            truth = product(a, g)
            yield f"{shape} {way} streamed", partial(_only, partial(kernels.linear_sq_norm, a, g),
                                                     squares(truth), streamed(dtype, setting))
            for how, limit in precisions(dtype, setting):
                kernel = partial(kernels.linear_gradients, a, g, how)
                yield f"{shape} {way} {how}", partial(stored, kernel, truth, limit)


def conv(dtype: str, setting: Setting) -> Cases:
    for sizes, options in shapes("CONVS", setting):
        for channels_last in (False, True):
            x, g, shape = import_module("kernel_shapes").conv_case(sizes, options, channels_last)
            x, g = (v.to(setting.device, DTYPES[dtype]) for v in (x, g))
            truth = reference(x.double(), g.double(), shape)
            name = f"{sizes} {options} {channels_last}"
            yield f"{name} streamed", partial(_only, partial(kernels.conv_sq_norm, x, g, *shape),
                                              squares(truth), streamed(dtype, setting))
            for how, limit in precisions(dtype, setting):
                kernel = partial(kernels.conv_gradients, x, g, *shape, how)
                yield f"{name} {how}", partial(stored, kernel, truth, limit)


def gram(dtype: str, setting: Setting) -> Cases:
    for shape in shapes("GRAM", setting):
        groups, positions, *widths = shape
        a, g = (numbers(dtype, setting, 3, groups, positions, n) for n in widths)
        kernel = partial(kernels.gram_sq_norm, a, g)
        yield f"{shape}", partial(_only, kernel, squares(product(a, g)), EXACT)


def embedding(dtype: str, setting: Setting) -> Cases:
    for length, width, entries in shapes("EMBEDDING", setting):
        ids = torch.randint(entries, (3, length)).to(setting.device)
        g = numbers(dtype, setting, length, 3, width).transpose(0, 1)
        truth = kernels.embedding_sq_norm(ids, g.double())
        kernel = partial(kernels.embedding_sq_norm, ids, g)
        yield f"{length, width, entries}", partial(_only, kernel, truth, SUMMED)


def affine(dtype: str, setting: Setting) -> Cases:
    for per, channels_last, size in [(0, False, 37), (3, True, 37), (0, True, 1), (3, False, 1025)]:
        x, g = (numbers(dtype, setting, 3, 6, size) for _ in range(2))
        if channels_last:
            x, g = (v.transpose(1, 2).contiguous().transpose(1, 2) for v in (x, g))
        count = size if per == 0 else 2
        mean, rstd = (torch.rand(3, count).to(setting.device) + 0.5 for _ in range(2))
        yield f"{per, channels_last, size}", partial(_affine, x, g, mean, rstd, per)


def _affine(x: Tensor, g: Tensor, mean: Tensor, rstd: Tensor, per: int) -> Outcome:
    exact = kernels.affine_gradients(x.double(), g.double(), mean.double(), rstd.double(), per)
    values = kernels.affine_gradients(x, g, mean, rstd, per)
    return [(value, truth, SUMMED) for value, truth in zip(values, exact, strict=True)]


def weighted(dtype: str, setting: Setting) -> Cases:
    valid = torch.tensor([True, False, True, False, True]).to(setting.device)
    for shape in shapes("WEIGHTED", setting):
        grads = numbers(dtype, setting, 5, *shape)
        grads[1], grads[3] = float("nan"), float("inf")
        factors = torch.where(valid, torch.rand(5, dtype=torch.float64).to(setting.device), 0.0)
        truth = torch.einsum("b,b...->...", factors[valid], grads[valid].double())
        kernel = partial(kernels.weighted_sum, grads, factors, valid)
        yield f"{shape}", partial(_only, kernel, truth, SUMMED)


def _only(kernel: Callable[[], Tensor], truth: Tensor, limit: float) -> Outcome:
    return [(kernel(), truth, limit)]


FAMILIES: dict[str, Callable[[str, Setting], Cases]] = {
    "linear": linear, "conv": conv, "gram": gram, "embedding": embedding, "affine": affine,
    "weighted": weighted}
