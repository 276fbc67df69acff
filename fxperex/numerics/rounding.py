"""How far rounding moves what one example adds to a sum, and the norm bound that covers it.

**The claim.** What one example adds, summed on its own, is no longer than `C (1 + SLACK)`.
Adding other examples to it is floating-point addition: see `docs/privacy.md`, row 30.

**Strategies that store** read the norm from the numbers that they sum. The sum rounds the factor
and one product a number, `2 u` with `u = 2^-24`. The norm is read in blocks of 64 float32 squares,
in any order at most `34 u` low; `raised` gives `24 u` of that back, and
`(1 + 34 u)(1 + 2 u) / (1 + 24 u) <= 1 + 12.1 u < 1 + SLACK`, since `SLACK = 16 u`.

**Strategies that do not store** scale output gradients and let one product add up their outer
products with the inputs. A number of that sum is `sum_t a_t g_t` over at most T terms. Each term
meets the factor's rounding, that of the scaled gradient, that of its product (a bilinear form has
three), and at most T - 1 additions, in whatever order and tree: `K = T + 2` or `T + 4`. Where the
product rounds its operands too, each by a factor within `1 +- r` (`rounds`), the term comes out as
`a_t g_t f (1 + e)` with `|e| <= rho = (1 + r)^2 / (1 - K u) - 1`. So the example adds at most
`f (n + rho S)`, with `n` its true norm and `S = sum_t |a_t| |g_t|`, and `certified` raises n to

    N = max(n, (n + rho S) / (1 + s)), s = 3 SLACK / 4;  f <= C / N  gives  f (n + rho S) <= C (1 +
    s)

for every n, S and K. No bound in n and S alone is tighter. Norms that a float32 product gave are
themselves `rho S` low at most; Gram matrices in float64 are `k 2^-53 S^2` low in square. Sites add
up by squares, so the inequality holds for all of them together. Scaled gradients must stay normal
numbers: inputs longer than 2^64 make the bound infinite, and the example is dropped; what shorter
ones lose to underflow is below 2^-64 in length, nothing to a clip bound of 1e-12 or more.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from fxperex.config import LONGEST, SLACK, accumulator
from fxperex.errors import StateError
from fxperex.numerics.norms import BLOCK, wide
from fxperex.registry import kinds
from fxperex.sites import Site

# What raises float32 norms that were read from squares: their blocks may have lost 34 u.
READING = 24 * 2.0**-24
# What a product's operands are rounded by. TF32 keeps ten bits after the leading one, and GPUs may
# cut the others off.
PRECISIONS = {"tf32": 2.0**-10, "bf16": 2.0**-8}
# The names of oneDNN's own setting in the environment, which PyTorch's flags do not show.
ENVIRONMENT = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
MODES = {"BF16": "bf16", "F16": "bf16", "ANY": "bf16", "TF32": "tf32"}
LOST = 2.0**-74  # length below which a float32 square may vanish


def operands(device: torch.device) -> tuple[float, float]:
    """Returns how far float32 (products, convolutions) round operands, as torch is set now."""
    if device.type == "cpu":
        modes = [os.environ.get(name, "").upper() for name in ENVIRONMENT]
        forced = max(PRECISIONS.get(MODES.get(mode, ""), 0.0) for mode in modes)
        backends = torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
        product, convolution = (max(PRECISIONS.get(backend.fp32_precision, 0.0), forced)
                                for backend in backends)
        return product, convolution
    product = PRECISIONS.get(torch.backends.cuda.matmul.fp32_precision, 0.0)
    # Without cuDNN a convolution is a product.
    convolution = PRECISIONS.get(torch.backends.cudnn.conv.fp32_precision, 0.0)
    return product, max(convolution, product)


def refuse_coarser(before: tuple[float, float], device: torch.device) -> None:
    """Raises StateError if `operands(device)` are now rounded more than `before`, when the step was
    made.
    """
    current = operands(device)
    if any(error > limit for error, limit in zip(current, before, strict=True)):
        raise StateError("float32 products and convolutions may now round their operands by "
                         f"{current}, relative; this step was made for {before}. Set TF32 and "
                         "matmul precision before transform")


def rounds(site: Site) -> float:
    """Returns by how much at most the product that makes the site's sum rounds its operands.

    Relative; 0.0 for none. 16-bit operands are widened to float32 first, so they are asked like
    float32 ones. With `operands` the one place that knows of TF32 and of bfloat16 products.
    """
    if site.dtype == torch.float64:
        return 0.0
    product, convolution = operands(site.device)
    return max(0.0 if kinds()[use.kind].sparse else convolution if _by_convolution(use) else product
               for use in site.each)


def _by_convolution(use: Site) -> bool:
    return kinds()[use.kind].by_convolution(use)


def unbounded(site: Site) -> str | None:
    """Returns the reason why rounding of the site's sum has no bound, None if `rho` bounds it."""
    if site.device.type not in ("cpu", "cuda", "meta"):
        return (f"how products on {site.device.type} round is not known, so no norm covers the "
                "sum's rounding")
    convolves = any(_by_convolution(use) for use in site.each)
    if site.device.type == "cuda" and torch.backends.cudnn.enabled and convolves:
        return ("cuDNN may form this convolution's sum by transforms (Winograd, FFT), whose "
                "rounding no norm here covers: a strategy that stores reads what it sums")
    if site.dims is not None and site.dims.T >= 2**22 and site.dtype != torch.float64:
        return f"a float32 sum over {site.dims.T} positions may lose all its digits"
    return None


def rho(site: Site, dtype: torch.dtype, scaled: bool = True, terms: Any = None) -> Any:
    """Returns rho: a sum of `dtype` operands rounds what an example adds by at most `rho S`.

    `scaled`: its output gradients are multiplied by clip factors first. `terms`: how many an
    example adds up, a number or a tensor, whose shape rho then has; by default the site's T
    positions.
    """
    assert site.dims is not None
    count = site.dims.T if terms is None else terms
    rounded = rounds(site) if dtype != torch.float64 else 0.0
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    # Tensor cores cut off what they shift out, and not at the last bit of float32.
    unit *= 4 if rounded and site.device.type != "cpu" else 1
    single = all(kinds()[use.kind].one_product for use in site.each)
    count = count + (2 if scaled else 0) + (0 if single else 2)
    return (1 + rounded) ** 2 / (1 - count * unit) - 1


def certified(squared: Tensor, spread: Tensor, rho: float | Tensor, read: float | Tensor = 0.0,
              gram: float = 0.0) -> Tensor:
    """Returns `N^2` `[B]`, float64: squared norms raised to cover what rounding adds to the sum.

    `squared`: `n^2` `[B]`, at most `gram S^2` low, or n at most `read S` low; `spread`: `S` `[B]`.
    """
    norm = (squared + gram * spread.square()).sqrt() + read * spread
    return torch.maximum(norm, (norm + rho * spread) / (1 + 0.75 * SLACK)).square()


def spread(a: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns S `[B]` of the lengths `|a_t|`, `|g_t|` `[B, G, T]`, float64.

    Infinite beside inputs that are too long. Groups reach different numbers of the
    sum, so theirs add up by squares.
    """
    total = (a * g).sum(2).square().sum(1).sqrt()
    if dtype == torch.float64:
        return total
    return torch.where((a > LONGEST).any(2).any(1), torch.inf, total)


def lengths(x: Tensor, dim: int) -> Tensor:
    """Returns lengths of vectors along `dim`, float64, from squares in x's precision; never low."""
    length = torch.linalg.vector_norm(wide(x), dim=dim, dtype=accumulator(x.dtype))
    return upper(length, x.shape[dim])


def upper(found: Tensor, count: int) -> Tensor:
    """Returns float64 bounds on lengths of `count` float32 numbers, added up in any order."""
    if found.dtype == torch.float64:
        return found
    return found.double() * (1 + (count + 3) * 2.0**-24) + count**0.5 * LOST


def upper_squares(squared: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Returns upper bounds on what `numerics.sq_norm` read from `count` numbers of `dtype`."""
    if dtype == torch.float64:
        return squared
    # The additions of a block and of a vector's lanes, and the squares themselves.
    return squared * (1 + (min(count, BLOCK) + 4) * 2.0**-24) + count * LOST**2


def raised(squared: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns squared norms `[B]` of stored gradients, raised by what reading them may have lost.

    Where products on a CPU round their operands, so may the one that sums what is stored.
    """
    if dtype == torch.float64:
        return squared
    rounded = operands(squared.device)[0] if squared.device.type == "cpu" else 0.0
    return squared * ((1 + READING) * (1 + rounded)) ** 2
