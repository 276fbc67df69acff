"""What runs without a GPU: the ops' schemas and fakes, their ATen references, and the reasons why
not Triton.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from support import against_the_loop
from torch import Tensor, nn

import fxperex
from fxperex import kernels, registry
from fxperex.clipping import as_rule
from fxperex.cost_model import sizes
from fxperex.errors import ConfigError
from fxperex.kernels import device, linear
from fxperex.kernels.embedding import run_numbers
from fxperex.kernels.gram import reference
from fxperex.kernels.weighted import FUSED, by_factors
from fxperex.numerics import norms
from fxperex.rewrite.rewriter import rewrite
from fxperex.testing import error
from fxperex.transform import outline

CPU = torch.device("cpu")
SHAPE: tuple[Any, ...] = ([3, 2], [2, 1], [1, 2], [1, 1], 2)


def _calls() -> dict[Any, tuple[Any, ...]]:
    a, g = torch.randn(3, 2, 7, 5), torch.randn(3, 2, 7, 4)
    x, y = torch.randn(3, 2, 4, 7, 6), torch.randn(3, 2, 6, 4, 6)
    rows = torch.randn(3, 6, 9)
    return {
        kernels.linear_sq_norm: (a, g), kernels.linear_gradients: (a.bfloat16(), g.bfloat16(),
                                                                   "ieee"),
        kernels.conv_sq_norm: (x, y, *SHAPE), kernels.conv_gradients: (x, y, *SHAPE, "ieee"),
        kernels.gram_sq_norm: (a, g), kernels.embedding_sq_norm: (torch.randint(4, (3, 7)), g[:,
                                                                                              0]),
        kernels.affine_gradients: (rows, rows, torch.randn(3, 2), torch.rand(3, 2), 3),
        kernels.weighted_sum: (a, torch.rand(3,
                                             dtype=torch.float64), torch.tensor([True, False,
                                                                                 True])),
        kernels.patches: (x[:, 0], [3, 2], [2, 1], [1, 2], [1, 1], [1, 1],
                          True), norms.long_blocks: (torch.randn(3, 1600), ),
        kernels.products_of_patches: (x[:, 0], y[:, 0].flatten(2), [3, 2], [2, 1], [1, 2], [1, 1],
                                      [1, 1], 2, 2, False),
        kernels.chacha20: (torch.arange(11, dtype=torch.int32), 13, 2)
    }


@pytest.mark.parametrize("op", _calls(), ids=lambda op: op._name)
def test_schema_and_fake(op: Any) -> None:
    torch.library.opcheck(op, _calls()[op], test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("length", [1, 255, 256, 257, 600])
def test_gram_by_tiles(length: int) -> None:
    a, g = torch.randn(2, 1, length, 3).double(), torch.randn(2, 1, length, 4).double()
    truth = torch.einsum("bgtp,bgtd->bgpd", g, a).square().sum((1, 2, 3))
    assert error(reference(a, g), truth) <= 1e-12


def test_run_numbers_count_distinct_tokens() -> None:
    ids = torch.tensor([[7, 2, 7, 9, 2], [1, 1, 1, 1, 1]])
    assert run_numbers(ids).tolist() == [[1, 0, 1, 2, 0], [0, 0, 0, 0, 0]]


def test_an_embedding_of_long_rows_needs_no_square() -> None:
    """T = 20,000: a T x T matrix would take 3.2 GB an example."""
    model, ids = nn.Embedding(50, 3), torch.randint(50, (2, 20_000))
    private = fxperex.transform(model, (ids, ), forward=lambda m, i: m(i).square().sum((1, 2)),
                                strategy="ghost", backend="eager")
    counts = torch.stack([torch.bincount(row, minlength=50) for row in ids]).double()
    truth = (2 * counts[:, :, None] * model.weight.double()).square().sum((1, 2)).sqrt()
    share = private.step(ids).norms / truth.detach() - 1
    # A row adds up its own tokens alone: of norm and sum each `K 2^-24` at most, not `T 2^-24`.
    additions = 2 * (float(counts.max()) + 2) * 2.0**-24
    assert float(share.min()) >= -1e-7 and float(share.max()) <= additions + 1e-6


def test_the_cpu_says_why() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 5, 3)
    forward = lambda m, v: m(v).square().sum((1, 2))  # noqa: E731
    private = fxperex.transform(model, (x, ), forward=forward, strategy="fused_stored",
                                backend="eager")
    assert "need a CUDA GPU" in str(private.plan)
    with pytest.raises(ConfigError, match="need a CUDA GPU"):
        fxperex.transform(model, (x, ), forward=forward, strategy={"weight": "fused_stored"},
                          backend="eager")


def test_every_missing_piece_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert "need a CUDA GPU" in (kernels.unavailable(CPU) or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.unavailable(cuda) is None  # of a plan for a GPU elsewhere
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "too old: compute capability 7.5" in (kernels.unavailable(cuda) or "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert kernels.unavailable(cuda) is None
    monkeypatch.setattr(device, "_installed", lambda: False)
    assert "not installed" in (kernels.unavailable(cuda) or "")


def test_offsets_beyond_32_bits_are_left_to_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "unavailable", lambda _: None)
    small: Tensor = torch.zeros(2, 3)
    assert device.runs(small) and not device.runs(small.double())
    assert not device.runs(torch.empty(2, 70_000, 70_000, device="meta"))


def test_an_empty_batch_has_empty_gradients() -> None:
    """No kernel is launched for it, and no reference divides by its rows."""
    a, g, ids = torch.empty(0, 1, 5, 3), torch.empty(0, 1, 5,
                                                     4), torch.zeros(0, 5, dtype=torch.long)
    x, y, shape = torch.empty(0, 1, 3, 5, 5), torch.empty(0, 1, 4, 5,
                                                          5), ([3, 3], [1, 1], [1, 1], [1, 1], 1)
    linear_grads, conv_grads = kernels.linear_gradients(a, g, "ieee"), kernels.conv_gradients(
        x, y, *shape, "ieee")
    assert linear_grads[0].shape == (0, 1, 4, 3) and conv_grads[0].shape == (0, 4, 3, 3, 3)
    norms = [
        linear_grads[1], conv_grads[1],
        kernels.linear_sq_norm(a, g),
        kernels.conv_sq_norm(x, y, *shape),
        kernels.gram_sq_norm(a, g),
        kernels.embedding_sq_norm(ids, g[:, 0])
    ]
    assert all(n.shape == (0,) for n in norms)
    nobody = torch.empty(0), torch.ones(0, dtype=torch.bool)
    assert torch.equal(by_factors(conv_grads[0], *nobody), torch.zeros(4, 3, 3, 3))
    assert torch.equal(kernels.weighted_sum(linear_grads[0], *nobody), torch.zeros(1, 4, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "unavailable", lambda _: None)
        assert device.runs(torch.empty(1, 2)) and not device.runs(torch.empty(0, 2))


def test_scale_and_shift_of_a_norm_are_one_pass() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(2),
                              nn.LayerNorm(16), nn.Tanh(), nn.InstanceNorm1d(8, affine=True),
                              nn.BatchNorm1d(8).eval(), nn.RMSNorm(16))
        x = torch.empty(4, 3, 6, 6)
    made = outline(model, (x,), forward=lambda m, v: m(v).square().sum((1, 2)), strategy="affine",
                   device=torch.device("cuda"))
    graph = rewrite(made.capture, made.analysis, made.plan, as_rule(1.0)).graph
    calls = [n for n in graph.nodes if n.target is torch.ops.fxperex.affine_gradients.default]
    assert len(calls) == 5 and sum(c.strategy == "affine" for c in made.plan.choices) == 9


def test_importing_the_library_imports_no_package_that_torch_has_not() -> None:
    code = ("import sys, torch; before = set(sys.modules); import fxperex; "
            "new = {m.split('.')[0] for m in set(sys.modules) - before if m[0] != '_'}; "
            "sys.exit(bool(new - {'fxperex', 'torch'} - sys.stdlib_module_names))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "size", [7, FUSED // 4])  # elements: three rows of either dtype are worth an operation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_do_not_count_may_hold_anything(size: int, dtype: torch.dtype) -> None:
    grads, factors = torch.randn(3, size).to(dtype), torch.rand(3, dtype=torch.float64)
    everyone = by_factors(grads, factors, torch.ones(3, dtype=torch.bool))
    assert error(everyone, (factors[:, None] * grads.double()).sum(0)) <= 1e-6
    grads[1] = torch.nan
    found = by_factors(grads, factors, torch.tensor([True, False, True]))
    assert error(found, (factors[::2, None] * grads[::2].double()).sum(0)) <= 1e-6


@pytest.mark.parametrize("piece", [16, 300, 1200, 2**21], ids=lambda n: f"{n} bytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_streamed_in_pieces_of_any_size(piece: int, dtype: torch.dtype,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "STREAMED", piece)
    a, g = torch.randn(5, 2, 7, 6, dtype=dtype), torch.randn(5, 2, 9, 7,
                                                             dtype=dtype).transpose(2, 3)
    truth = torch.einsum("bgtp,bgtd->bgpd", g.double(), a.double()).square().sum((1, 2, 3))
    assert error(kernels.linear_sq_norm(a, g), truth) <= (1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 1)), ((2, 3), (1, 1)),
                                                  ((1, 2), (2, 1))])
def test_patches_in_both_layouts_are_those_of_unfold(stride: tuple[int, int],
                                                     dilation: tuple[int, int]) -> None:
    x, kernel = torch.randn(3, 5, 7, 8), (3, 2)
    wide = torch.nn.functional.pad(x, (1, 2, 0, 1))
    truth = torch.nn.functional.unfold(wide, kernel, dilation=dilation, stride=stride)
    options = kernel, stride, dilation, (0, 1), (1, 2)
    assert torch.equal(kernels.patches(x, *options, False), truth)
    last = truth.unflatten(1, (5, 6)).permute(0, 3, 2, 1).flatten(2)
    assert torch.equal(kernels.patches(x, *options, True), last)
    g = torch.randn(3, 4, truth.shape[2])
    for flag, patches in ((False, truth.transpose(1, 2)), (True, last)):
        made = kernels.products_of_patches(x, g, *options, 1, 2, flag)
        assert error(made[:, 0], g @ patches) <= 1e-5


def test_sums_of_gradients_that_lie_in_another_order_are_contiguous() -> None:
    for many in (2, 200):  # by plain operations, and by the kernel
        grads = torch.randn(3, many, 3, 5, 8).movedim(-1, 2)
        factors, valid = torch.rand(3, dtype=torch.float64), torch.tensor([True, True, False])
        made = by_factors(grads, factors, valid)
        assert made.is_contiguous() and made.shape == grads.shape[1:]
        assert error(made, torch.einsum("b,bpcij->pcij", factors * valid, grads.double())) <= 1e-6
        assert error(norms.sq_norm(grads), grads.double().square().sum((1, 2, 3, 4))) <= 1e-6


@pytest.mark.parametrize("kind", ["conv", "conv_transpose"])
def test_patches_in_pieces_are_the_same_gradients(kind: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample whose patches are copied, as if they were too large to form at once."""
    monkeypatch.setattr(sizes, "FRESH", 1)
    monkeypatch.setattr(sizes, "PIECE", 1)
    pieced = 0
    for model, batch in registry.kinds()[kind].samples():
        private = against_the_loop(model.double(), tuple(x.double() for x in batch), ["unfold"])[0]
        pieced += sum(
            "products_of_patches" in str(n.target) for n in private.step_graph.graph.nodes)
    assert pieced >= 6


def test_large_patches_are_formed_in_pieces_of_even_size() -> None:
    model, x = nn.Conv2d(8, 4, 5, padding=2), torch.empty(64, 8, 64, 64)
    plan = outline(model, (x, ), forward=lambda m, v: m(v).square().sum((1, 2, 3)),
                   strategy="unfold").plan
    site = next(c.site for c in plan.choices if c.site.name == "weight")
    assert sizes.images_per_chunk(site) == 4
    assert sizes.patches_bytes(site) == 64 * 8 * 25 * 64**2 * 4
    cost = next(c.cost for c in plan.choices if c.site.name == "weight")
    assert cost.transient < sizes.patches_bytes(site) / 8
    assert all(w.calls == 16 for w in cost.work if w.kernel in {"im2col", "bmm_patches"})
