"""Forward values computed again under a budget: the same bits in less memory, and never what draws
random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import LIMIT, curved
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxperex
from fxperex.errors import ConfigError, CoverageError
from fxperex.graph.effects import random, writes
from fxperex.graph.provenance import PART, Part, tagged
from fxperex.memory.liveness import listing, peak
from fxperex.planner import Plan, Recompute
from fxperex.rewrite.passes import recompute
from fxperex.runtime.module import PerExampleModule
from fxperex.testing import clipped, error, loop

WIDE = torch.Size([4, 1000])


def _chain(kind: str = "") -> tuple[fx.GraphModule, Tensor]:
    """Two wide forward values that the "backward" reads last, after a peak in which they need not
    live.
    """

    def run(x: Tensor) -> Tensor:
        with tagged(PART, Part.FORWARD):
            a = torch.rand_like(x) if kind == "random" else x * 2
            b = a.exp()
            view = b.view(1000, 4)
            if kind == "written":
                b.add_(1)
            loss = view.sum()
        with tagged(PART, Part.BACKWARD):
            most = (x + loss).cos().sin().sum()
            return (view * most).sum() + (a * most).sum()

    return make_fx(run, tracing_mode="fake")(torch.randn(WIDE)), torch.randn(WIDE)


def test_values_go_and_come_back_in_front_of_their_first_reader() -> None:
    graph, x = _chain()
    want, before = graph(x), peak(listing(graph.graph)[0]).bytes
    kept = [n.name for n in graph.graph.nodes if n.meta.get("part") == "forward"]
    assert recompute(graph, [n for n in kept if n in {"mul", "exp"}]) == 3  # and the view
    order = [n.name for n in graph.graph.nodes if n.op == "call_function"]
    assert order.index("sin") < order.index("mul_3") < order.index("exp_1")
    assert torch.equal(want, graph(x))
    assert before - peak(listing(graph.graph)[0]).bytes >= 0.9 * 4 * WIDE.numel()


@pytest.mark.parametrize("kind", ["random", "written"])
def test_what_would_not_give_the_same_bits_is_refused(kind: str) -> None:
    graph, _ = _chain(kind)
    name = next(n.name
                for n in graph.graph.nodes
                if "rand" in n.name or (kind == "written" and n.name == "exp"))
    with pytest.raises(CoverageError, match=f"{name}.* cannot be recomputed"):
        recompute(graph, [name])


def test_a_value_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match=r"recomputes 'nowhere'.*plan again"):
        recompute(_chain()[0], ["nowhere"])


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(6, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0]).tanh()


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(24, 24), nn.Linear(24, 24)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.two(torch.nn.functional.gelu(self.one(x))).tanh()
        return x


def _cnn() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(3):
        layers += [nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 144, 4))


def _encoder(dropout: float = 0.0) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=True,
                                       norm_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _mlp(depth: int = 8, dropout: float = 0.0) -> nn.Module:
    blocks = [
        nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16), nn.Dropout(dropout))
        for _ in range(depth)
    ]
    return nn.Sequential(*blocks)


def _tight(model: nn.Module, batch: tuple[Tensor, ...], **how: object) -> PerExampleModule:
    """The step under the smallest budget there is."""
    with pytest.raises(ConfigError, match="smallest budget that does is") as refused:
        fxperex.transform(model, batch, forward=curved, memory=1, backend="eager",
                          **how)  # type: ignore[arg-type]
    told = str(refused.value).split("smallest budget that does is ")[1].split(",")[0]
    made = fxperex.transform(model, batch, forward=curved, memory=told, backend="eager",
                             **how)  # type: ignore[arg-type]
    assert made.plan.peak is not None and made.plan.peak <= made.plan.budget.memory  # type: ignore[union-attr]
    return made


IMAGES, TOKENS = torch.randn(4, 3, 12, 12), torch.randn(4, 16, 16)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "cnn": (_cnn, IMAGES), "encoder": (_encoder, TOKENS),
    "lstm": (_Recurrent, torch.randn(4, 40, 6)), "tied": (_Tied, torch.randn(4, 32, 24)),
    "mlp": (_mlp, torch.randn(4, 64, 16))
}


def _nodes(private: PerExampleModule) -> list[fx.Node]:
    return [n for n in private.step_graph.graph.nodes if n.meta.get("part") == "recomputed"]


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.nightly if name == "lstm" else ()) for name in MODELS])
def test_against_the_loop_and_bit_for_bit_against_the_plan_that_keeps_all(name: str) -> None:
    make, x = MODELS[name]
    model = make().double()
    batch = (x.double(),)
    truth = loop(model, curved, batch)
    clip = 0.7 * float(clipped(truth, 1.0)[1].median())
    total, norms = clipped(truth, clip)
    private = _tight(model, batch, clip=clip)
    assert private.plan.recompute is not None and _nodes(private)
    found = private.step(*batch)
    assert error(found.norms, norms) <= LIMIT[torch.float64]
    scale = 1e-3 * float(norms.max())
    sums = {n: model.get_parameter(n).grad for n in total}
    assert all(error(sums[n], want, scale) <= LIMIT[torch.float64] for n, want in total.items())
    plain = fxperex.transform(model, batch, forward=curved, backend="eager", clip=clip,
                              strategy=_keeping(private.plan))
    assert not _nodes(plain)
    result, kept = plain.sums(*batch)
    assert torch.equal(result.norms, found.norms)
    assert all(torch.equal(a, b) for a, b in zip(kept, private.sums(*batch)[1], strict=True))


def _keeping(plan: Plan) -> Plan:
    return replace(plan, recompute=None)


@pytest.mark.parametrize("strategy", ["multi", "vmap"])
@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_one_example_at_a_time_reads_the_copies_too(name: str, strategy: str) -> None:
    make, x = MODELS[name]
    model = make()
    # By name, so that the other sites are the planner's: asked for everywhere, `vmap` alone may set
    # the peak.
    private = _tight(model, (x,), strategy={"?.weight": strategy} if name == "cnn" else strategy)
    assert _nodes(private) and strategy in {c.strategy for c in private.plan.choices}
    plain = fxperex.transform(model, (x, ), forward=curved, backend="eager",
                              strategy=_keeping(private.plan))
    (found, ours), (want, theirs) = private.sums(x), plain.sums(x)
    assert torch.equal(found.norms, want.norms) and all(
        torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.nightly
def test_a_saved_step_recomputes_too(tmp_path: Path) -> None:
    model, batch = _mlp(4), (torch.randn(4, 64, 16),)
    private = _tight(model, batch)
    private.save(tmp_path / "step.pt2")
    found, want = fxperex.load(tmp_path / "step.pt2", model).step(*batch), private.sums(*batch)
    assert error(found.norms, want[0].norms) < 1e-5
    assert all(
        error(model.get_parameter(n).grad, w) < 1e-5
        for n, w in zip(private.parameters, want[1], strict=True))


@pytest.mark.parametrize("strategy", ["auto", "crb", "unfold", "ghost"])
@pytest.mark.parametrize("name", ["cnn", "mlp", "encoder"])
def test_the_peak_is_what_the_plan_says(name: str, strategy: str) -> None:
    make, x = MODELS[name]
    private = _tight(make(), (x.repeat(4, *[1] * (x.dim() - 1)),), strategy=strategy)
    assert private.plan.peak is not None
    # The scratch memory that `ghost` is said to need is an upper bound, and in small models a large
    # part of the peak.
    most = 1.25 if strategy == "ghost" else 1.1
    assert 0.9 < private.plan.peak / private.peak < most, (private.plan.peak, private.peak)


def test_a_deep_model_fits_where_strategies_alone_do_not() -> None:
    model, batch = _mlp(24), (torch.randn(8, 256, 16),)
    free = fxperex.transform(model, batch, forward=curved, backend="eager", strategy="crb")
    tight = fxperex.transform(model, batch, forward=curved, backend="eager", strategy="crb",
                              memory=int(0.5 * free.peak))
    # what plans promise
    assert tight.plan.recompute is not None and tight.peak <= 0.5 * 1.1 * free.peak
    keeping = fxperex.transform(model, batch, forward=curved, backend="eager",
                                strategy=_keeping(tight.plan))
    assert keeping.peak > 0.9 * free.peak


@pytest.mark.parametrize("make", [_mlp, _encoder])
def test_random_numbers_are_drawn_once_and_alike(make: Callable[..., nn.Module]) -> None:
    model, batch = make(dropout=0.3), (torch.randn(6, 32, 16),)
    private = _tight(model, batch)
    assert _nodes(private) and not any(random(n) or writes(n) for n in _nodes(private))
    plain = fxperex.transform(model, batch, forward=curved, backend="eager",
                              strategy=_keeping(private.plan))
    found = []
    for step in (private, plain):
        torch.manual_seed(3)
        found.append(step.sums(*batch))
    assert torch.equal(found[0][0].norms, found[1][0].norms)
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


class _Counting(nn.Module):
    """Writes a buffer at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.body = _mlp(4)

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        return self.body(x)


def test_buffers_clip_groups_autocast_and_chosen_rows() -> None:
    model, batch = _Counting(), (torch.randn(8, 64, 16),)
    private = _tight(model, batch, clip=fxperex.clipping.PerLayer(1.0), autocast=torch.bfloat16,
                     physical_batch="auto")
    assert _nodes(private)
    plain = fxperex.transform(model, batch, forward=curved, backend="eager",
                              strategy=_keeping(private.plan), clip=fxperex.clipping.PerLayer(1.0),
                              autocast=torch.bfloat16)
    ours, theirs = private.sums(*batch), plain.sums(*batch)
    assert torch.equal(ours[0].factors, theirs[0].factors) and model.steps > 0
    assert all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))


def test_no_budget_never_recomputes() -> None:
    free = fxperex.transform(_mlp(), (torch.randn(4, 64, 16), ), forward=curved, backend="eager",
                             physical_batch="auto")
    assert free.plan.recompute is None and not _nodes(free)


def test_the_plan_tells_goes_through_json_and_back_into_transform() -> None:
    model, batch = _mlp(), (torch.randn(4, 64, 16),)
    private = _tight(model, batch)
    again = private.plan.recompute
    assert isinstance(again, Recompute) and again.seconds > 0 and again.bytes > 0
    assert f"recomputed: {len(again.nodes)} values" in str(private.plan)
    assert "# recomputed forward" in private.step_graph.print_readable(False)
    read = Plan.from_json(private.plan.to_json())
    assert read == private.plan
    second = fxperex.transform(model, batch, forward=curved, backend="eager", strategy=read)
    assert second.plan.recompute == again and second.peak == private.peak


@pytest.mark.nightly
def test_inductor_keeps_the_copies_apart() -> None:
    model, batch = _mlp(), (torch.randn(16, 64, 16),)
    private = _tight(model, batch, strategy="ghost")
    copied = sum("addmm" in str(n.target) for n in _nodes(private))
    counts, results = [], []

    def count(graph: fx.Graph) -> None:
        counts.append(
            sum(
                any(op in str(n.target)
                    for op in ("addmm", "linear_pointwise", "mkl_linear"))
                for n in graph.nodes))

    for plan in (private.plan, _keeping(private.plan)):
        with torch._inductor.config.patch(post_grad_custom_post_pass=count, fx_graph_cache=False):
            step = fxperex.transform(model, batch, forward=curved, backend="inductor",
                                     strategy=plan)
        assert step.backend == "inductor"
        results.append(step.sums(*batch))
    assert copied and counts[0] - counts[1] == copied, (counts, copied)
    assert torch.allclose(results[0][0].norms, results[1][0].norms, rtol=1e-5)
