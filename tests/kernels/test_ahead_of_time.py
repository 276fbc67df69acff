"""Kernels compile to machine code without a GPU, fit in its shared memory, and keep their tiles in
registers.

What is compiled is what `launch` would: every kernel, dtype and way of multiplying, with strides
that 16 divides and with odd ones, for the GPUs of five generations.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from launches import KERNELS, Launch, compiled, module_of, recorded, resources  # noqa: E402

from fxperex.kernels import Shape  # noqa: E402

SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may use
SPILL = 64  # bytes a thread may keep in local memory: an address or two, not a tile
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
WAYS = ((FP32, "ieee"), (FP32, "tf32"), (BF16, "ieee"), (FP16, "ieee"))
NAMES = {FP32: "fp32", BF16: "bf16", FP16: "fp16"}


def _empty(*shape: int, dtype: torch.dtype = FP32, order: tuple[int, ...] = ()) -> Tensor:
    """On the meta device; `order`: the dimensions from the outermost in memory to the innermost."""
    order = order or tuple(range(len(shape)))
    made = torch.empty([shape[i] for i in order], dtype=dtype, device="meta")
    return made.permute([order.index(i) for i in range(len(shape))])


def _linear(dtype: torch.dtype, precision: str, rows: int, t: int, d: int,
            p: int) -> Callable[[], Any]:
    """Norms alone of float32 without TF32, else stored gradients."""
    store = None if (dtype, precision) == WAYS[0] else dtype
    a, g = _empty(rows, 1, t, d, dtype=dtype), _empty(rows, 1, t, p, dtype=dtype)
    return lambda: module_of("linear").launch(a, g, store, precision)


def _conv(dtype: torch.dtype, precision: str, x: tuple[int, ...], outputs: int, shape: Shape,
          last: bool) -> Callable[[], Any]:
    store = None if (dtype, precision) == WAYS[0] else dtype
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in
             zip(x[3:], shape.kernel, shape.stride, shape.dilation, shape.before, strict=True)]
    order = (0, 1, *range(3, len(x)), 2) if last else ()
    operands = _empty(*x, dtype=dtype, order=order), _empty(x[0], 1, outputs, *sizes, dtype=dtype,
                                                            order=order)
    if shape.groups == x[2]:
        return lambda: module_of("depthwise").launch(*operands, shape, store)
    return lambda: module_of("conv").launch(*operands, shape, store, precision)


def _affine(dtype: torch.dtype, rows: int, channels: int, positions: int,
            per: int) -> Callable[[], Any]:
    """`per` 0: a layer norm, whose channels lie innermost."""
    x = _empty(rows, channels, positions, dtype=dtype, order=() if per else (0, 2, 1))
    statistics = _empty(rows, channels // per if per else positions)
    return lambda: module_of("affine").launch(x, x, statistics, statistics, per)


def _gram(dtype: torch.dtype, rows: int, t: int, d: int, p: int) -> Callable[[], Any]:
    a, g = _empty(rows, 1, t, d, dtype=dtype), _empty(rows, 1, t, p, dtype=dtype)
    return lambda: module_of("gram").launch(a, g)


def _embedding(dtype: torch.dtype, width: int) -> Callable[[], Any]:
    ids, g = _empty(4, 200, dtype=torch.int64), _empty(4, 200, width, dtype=dtype)
    return lambda: module_of("embedding").launch(ids, g)


def _weighted(dtype: torch.dtype, size: int) -> Callable[[], Any]:
    operands = _empty(8, size,
                      dtype=dtype), _empty(8, dtype=torch.float64), _empty(8, dtype=torch.bool)
    return lambda: module_of("weighted").launch(*operands)


def _chacha() -> Any:
    return module_of("chacha").launch(_empty(11, dtype=torch.int32), 10**6 + 1, 0)


THREE, SEVEN = Shape([3, 3], [1, 1], [1, 1], [1, 1], 1), Shape([7, 7], [2, 2], [1, 1], [3, 3], 1)
Case = tuple[str, Callable[[], Any],
             bool]  # its name, the launch, whether its products run on tensor cores


def _products() -> list[Case]:
    """Large weights whose positions one program walks, and small ones whose positions are split
    over programs.
    """
    cases: list[Case] = []
    for dtype, precision in WAYS:
        name, cores = f"{NAMES[dtype]}-{precision}", (dtype, precision) != WAYS[0]
        cases += [(f"linear-{name}", _linear(dtype, precision, 64, 1024, 768, 3072), cores),
                  (f"linear-odd-{name}", _linear(dtype, precision, 64, 1023, 769, 50257), cores),
                  (f"linear-split-{name}", _linear(dtype, precision, 8, 1024, 768, 16), cores),
                  (f"conv-{name}", _conv(dtype, precision, (64, 1, 256, 16, 16), 512, THREE,
                                         True), cores),
                  (f"conv-odd-{name}",
                   _conv(dtype, precision, (64, 1, 255, 15, 15), 511, THREE, False), cores),
                  (f"conv-split-{name}",
                   _conv(dtype, precision, (8, 1, 3, 224, 224), 64, SEVEN, False), cores)]
    return cases


def _passes() -> list[Case]:
    cases: list[Case] = [("chacha", _chacha, False)]
    for dtype, name in NAMES.items():
        for odd in (0, 1):
            word = f"{'odd-' * odd}{name}"
            kernel = (THREE if odd else SEVEN)._replace(groups=64 + odd)
            image = (8, 1, 64 + odd, 32, 32)
            cases += [(f"depthwise-{word}", _conv(dtype, "ieee", image, 64 + odd, kernel,
                                                  not odd), False),
                      (f"affine-group-{word}", _affine(dtype, 8, 6 * (16 + odd), 256 + odd,
                                                       6), False),
                      (f"affine-layer-{word}", _affine(dtype, 8, 768 + odd, 256 + odd, 0), False),
                      (f"embedding-{word}", _embedding(dtype, 128 + odd), False),
                      (f"weighted-{word}", _weighted(dtype, 2**20 + odd), False),
                      (f"gram-{word}", _gram(dtype, 8, 512 + odd, 768 + odd, 3072 + odd), False)]
    return cases


CASES = [*_products(), *_passes()]
# A second generation in the ordinary run: what failed there before, and one of each product.
AGAIN = {"gram-bf16", "gram-odd-fp16", "linear-fp32-tf32", "linear-odd-bf16-ieee", "conv-bf16-ieee"}


def _check(launch: Launch, sm: int, cores: bool, folder: Path) -> None:
    assert launch.options["enable_fp_fusion"], "Triton's default differs between its versions"
    kernel = compiled(launch, sm)
    assert kernel.metadata.shared <= SHARED[sm] * 1024, (launch.options, launch.arguments)
    used = resources(kernel.asm["cubin"], folder)
    assert used["REG"] <= 255 and used["STACK"] + used["LOCAL"] <= SPILL, (used, launch.options)
    if cores or (launch.name == "gram" and sm in (80, 90)):
        assert re.search(r"tcgen05\.mma|wgmma|mma\.sync",
                         kernel.asm["ptx"]), "products must run on tensor cores"


def _parameters() -> list[Any]:
    return [
        pytest.param(run, cores, sm, id=f"{name}-{sm}",
                     marks=() if sm == 90 or (sm == 80 and name in AGAIN) else pytest.mark.nightly)
        for sm in SHARED
        for name, run, cores in CASES
    ]


@pytest.mark.parametrize(("run", "cores", "sm"), _parameters())
def test_compiles_and_fits(run: Callable[[], Any], cores: bool, sm: int, tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    """In the configuration that is tried first; every one that may be tried, nightly below."""
    _check(recorded(monkeypatch, sm, run)[0], sm, cores, tmp_path)


SIDES = ((1, 1), (15, 17), (64, 33), (16, 768), (100, 65), (769, 512))
LENGTHS = (1, 20, 50, 1023)


def _sweep() -> list[Case]:
    """Products of every size of tile, over few and many positions."""
    cases: list[Case] = []
    for (dtype, precision), (d, p), t in itertools.product(WAYS, SIDES, LENGTHS):
        name, cores = f"{NAMES[dtype]}-{precision}-{d}-{p}-{t}", (dtype, precision) != WAYS[0]
        pixels = math.ceil(t**0.5)
        shape = Shape([3, 1], [1, 1], [1, 1], [1, 0], 1)
        image = (64, 1, d, pixels, pixels)
        cases += [(f"linear-{name}", _linear(dtype, precision, 64, t, d, p), cores),
                  (f"gram-{name}", _gram(dtype, 64, t, d, p), False),
                  *((f"conv-{last}-{name}", _conv(dtype, precision, image, p, shape, last), cores)
                    for last in (False, True) if d > 1)]
    return cases


SWEEP = _sweep()


@pytest.mark.parametrize("sm", SHARED)
def test_few_configurations_are_tried(sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, run, _ in [*CASES, *SWEEP]:
        launches = recorded(monkeypatch, sm, run)
        assert 1 <= len(launches) <= 4, name
        steps = [(v.arguments.get("BLOCK_T"), v.arguments.get("BLOCK_K"), *v.options.values())
                 for v in launches]
        assert len(set(steps)) == len(steps), f"{name}: one configuration tried twice"


@pytest.mark.nightly
@pytest.mark.parametrize("sm", SHARED)
def test_every_configuration_compiles(sm: int, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_so_far: set[str] = set()
    for _, run, _ in [*CASES, *SWEEP]:
        for launch in recorded(monkeypatch, sm, run):
            kernel = compiled(launch, sm)
            if kernel.hash not in compiled_so_far:
                compiled_so_far.add(kernel.hash)
                _check(launch, sm, False, tmp_path)


def test_kernels_go_to_the_gpu_of_their_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to the current one, which another part of the program may have set."""
    current: list[Any] = []

    @contextlib.contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        current.append(x.device)
        yield
        current.pop()

    def during() -> None:
        assert current == [torch.device("meta")]

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    names = {
        launch.name
        for _, run, _ in CASES
        for launch in recorded(monkeypatch, 90, run, during)
    }
    assert names == set(KERNELS) and not current


@pytest.mark.parametrize("name", ["linear", "conv", "gram"])
def test_what_was_tuned_is_kept_on_disk(name: str) -> None:
    tuned = getattr(module_of(name), KERNELS[name])
    assert tuned.cache_results and len(tuned.configs) > 1 and {"T", "D", "P"} <= set(tuned.keys)
