"""One example moves the released sum by at most the declared bound: neighbours x adversarial rows x
strategies x rules.

The distance of two sums is taken in float64 of what was really released, whatever dtype it was
formed in. A replaced row may move it twice as far. Nothing here is a statistical test: every pair
must hold.
"""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from replay import MODELS, RELATIONS, ROWS, adversaries, batch, loss, neighbours, shares
from support import steps
from torch import Tensor, nn

from fxperex.clipping import (
    Adaptive,
    Automatic,
    Clip,
    Flat,
    Function,
    Normalised,
    PerGroup,
    PerLayer,
)
from fxperex.config import SLACK
from fxperex.numerics.norms import sq_norm
from fxperex.runtime.module import PerExampleModule

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
KINDS = len(adversaries(F32))
EACH = KINDS * len(RELATIONS)
RULES: dict[str, Clip] = {
    "flat": Flat(0.5),
    "per layer": PerLayer(0.4),
    "per group": PerGroup({"*.bias": 0.05, "*": 0.4}),
    "automatic": Automatic(0.5),
    "sharp": Automatic(0.5, 1e-30),
    "normalised": Normalised(0.5),
    "adaptive": Adaptive(0.3),
    "function": Function(lambda n: 0.5 / (1 + n * n).sqrt(), 0.5),
}
Case = tuple[str, torch.dtype, tuple[tuple[str, str], ...]]
CASES: list[Case] = [
    ("plain", F32, (("auto", "flat"), ("outer", "normalised"), ("ghost", "function"),
                    ("naive", "per layer"))),
    ("plain", F64, (("multi", "automatic"), )),
    ("plain", BF16, (("vmap", "per group"), )),
    ("image", F32, (("ghost", "flat"), ("crb", "per group"), ("unfold", "adaptive"), ("multi",
                                                                                      "sharp"))),
    ("image", BF16, (("unfold", "per layer"), )),
    ("image", F16, (("crb", "flat"), )),
    ("tokens", F32, (("ghost", "sharp"), ("direct", "per layer"), ("vmap", "function"))),
    ("tokens", F64, (("ghost", "adaptive"), )),
    ("tokens", BF16, (("ghost", "per group"), )),
    ("turned", F32, (("ghost", "adaptive"), )),
    ("turned", BF16, (("auto", "flat"), ("ghost", "normalised"))),
    ("turned", F16, (("unfold", "automatic"), )),
]
STRATEGIES = ("auto", "naive", "multi", "crb", "unfold", "ghost", "vmap", "outer", "direct")


def test_there_are_enough() -> None:
    assert sum(len(pairs) for _, _, pairs in CASES) * EACH >= 1200 and EACH == 65
    used = [pair for _, _, pairs in CASES for pair in pairs]
    assert {s for s, _ in used} == set(STRATEGIES) and {r for _, r in used} == set(RULES)
    assert {d
            for _, d, _ in CASES} == {F64, F32, BF16, F16} and {m
                                                                for m, _, _ in CASES} == set(MODELS)
    assert len(list(itertools.product(MODELS, (F64, F32, BF16, F16), STRATEGIES,
                                      (1, 2)))) * EACH >= 12_000


@pytest.mark.parametrize("case", CASES,
                         ids=lambda case: f"{case[0]}-{case[1]}".replace("torch.", ""))
def test_neighbours_differ_by_the_bound_at_most(case: Case) -> None:
    name, dtype, pairs = case
    assert _replay(name, dtype, list(pairs), 0) == len(pairs) * EACH


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_neighbours_of_all_strategies(name: str, dtype: torch.dtype, seed: int) -> None:
    rules = [r for r in RULES if (name, r) != ("turned", "per group")
             ]  # its parameters have no two groups
    shift = seed + list(MODELS).index(name) + (F64, F32, BF16, F16).index(dtype)
    pairs = [(s, rules[(i + shift) % len(rules)]) for i, s in enumerate(STRATEGIES)]
    assert _replay(name, dtype, pairs, seed) == len(pairs) * EACH


def _replay(name: str, dtype: torch.dtype, pairs: list[tuple[str, str]], seed: int) -> int:
    torch.manual_seed(seed)
    model = MODELS[name]().to(dtype)
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = steps(model, batch(ROWS, dtype, seed), loss, [(s, RULES[r]) for s, r in pairs])
        for (strategy, private), (_, rule) in zip(made, pairs, strict=True):
            furthest = 0.0
            for relation, kind, data, other, times in neighbours(dtype, seed):
                far = _furthest(private, shares(private, data, other)) / times
                assert far <= 1 + SLACK, (name, dtype, strategy, rule, relation, kind,
                                          (far - 1) / SLACK)
                furthest, done = max(furthest, far), done + 1
            assert furthest >= 0.9, (name, dtype, strategy, rule, furthest
                                     )  # else the rows press against nothing
    return done


def _furthest(private: PerExampleModule, squares: dict[str, float]) -> float:
    """Distance of two sums over the bound: of all together, and of each group that has a bound of
    its own.
    """
    rule = private.clip
    parts = [(rule.sensitivity, sum(squares.values()))]
    groups = dict(zip(squares, rule.groups(list(squares)), strict=True))
    if isinstance(rule, PerGroup | PerLayer):
        count = 1 + max(groups.values())
        own = [b for _, b in rule.bounds] if isinstance(
            rule, PerGroup) else [rule.bound / math.sqrt(count)] * count
        parts += [
            (own[k], sum(v for n, v in squares.items() if groups[n] == k)) for k in range(count)
        ]
    return max(math.sqrt(square) / bound for bound, square in parts)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("strategy", ["ghost", "unfold", "multi", "vmap", "auto"])
def test_cancelling_tokens_stay_within_the_bound(strategy: str, dtype: torch.dtype) -> None:
    """`|clipped gradient| <= C (1 + 2^-20)` where tokens cancel, the true norm far below `sum_t
    |a_t||g_t|`.
    """
    torch.manual_seed(0)
    model = nn.Linear(24, 12, bias=False).to(dtype)
    weights = torch.randn(12, dtype=dtype)
    sizes = (64, 257, 2048) if strategy == "ghost" else (64,) if strategy == "multi" else (64, 2048)
    done = 0
    for length in sizes:
        base = torch.randn(1, 1, 24).expand(1, length, 24) * torch.tensor(
            [1.0, -1.0]).repeat(length)[:length, None]
        ((_, private), ) = steps(model, (base.to(dtype), ), lambda m, x: 1e3 *
                                 (m(x).float() * weights.float()).sum((1, 2)), [(strategy, 1.0)])
        for spread in (0.0, 1e-4, 1e-3, 1e-2, 1e-1):
            for seed in range(4):
                noise = torch.randn(1, length, 24, generator=torch.Generator().manual_seed(seed))
                (total,) = private.sums((base + spread * noise).to(dtype))[1]
                assert float(total.double().norm()) <= 1 + SLACK, (length, spread, seed)
                done += 1
    assert done == 20 * len(sizes)


def test_norms_of_equal_numbers_are_not_read_low() -> None:
    """A float32 sum of 1024 equal squares, taken one by one, reads 8 x 2^-20 low: every block must
    stay small.
    """
    values = torch.linspace(0.5, 2, 4001)[:, None]
    for size in (1, 64, 100, 1024, 4096, 5000, 8192 + 63):
        rows: list[Tensor] = [values.expand(-1, size), values.expand(-1, size).contiguous()]
        for row in rows:
            read, true = sq_norm(row).sqrt(), values.double()[:, 0] * math.sqrt(size)
            assert float((true / read).max()) <= 1 + 0.75 * SLACK, size


def test_norms_of_38_million_elements() -> None:
    x = torch.randn(1, 38_000_000, generator=torch.Generator().manual_seed(1)).mul_(1e-3)
    true = math.sqrt(sum(float(part.double().square().sum()) for part in x[0].split(1 << 20)))
    assert abs(float(sq_norm(x).sqrt()) / true - 1) <= 1e-8


def test_what_float32_cannot_square_is_dropped_or_held() -> None:
    """Of a gradient above 2^64 nothing is added, and none so short that its norm reads as zero
    passes any rule's bound.
    """
    model = nn.Linear(3, 2, bias=False)
    x = torch.tensor([[1e30, 0, 0], [1e18, 1e18, 0], [1e-24, 2e-24, 0], [1e38, 0, 0], [0, 0, 0]])
    scale = torch.tensor([1.0, 1.0, 1.0, 1e-20, 1.0])
    for strategy in ("naive", "ghost", "unfold"):
        for rule in (Flat(1e-3), Automatic(1.0, 1e-30), Adaptive(1e-20)):
            ((_, private), ) = steps(model, (x, scale), lambda m, a, s: s * m(a).sum(1),
                                     [(strategy, rule)])
            assert private.sums(x, scale)[0].dropped >= 1
            for row in range(len(x)):
                total = private.sums(x[row:row + 1], scale[row:row + 1])[1][0].double()
                assert float(total.norm()) <= rule.sensitivity * (1 + SLACK), (strategy, rule, row)
                assert row not in {0, 4} or not total.any()
