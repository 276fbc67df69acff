"""The planner: budgets, rows, foreign plans, measured choices; peak memory against the graph that
really runs.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support import curved
from torch import nn

import fxperex
from fxperex.devices import profile
from fxperex.errors import ConfigError
from fxperex.memory.liveness import Instruction, Listing, listing, peak, raised
from fxperex.plan.byte_sizes import budget_text, size
from fxperex.planner import Plan, parse_memory
from fxperex.planner.alternatives import alternatives
from fxperex.planner.fast_peak import Timeline
from fxperex.planner.memory import plan_peak
from fxperex.planner.search import fit, smallest
from fxperex.registry import strategies
from fxperex.rewrite.frame import Frame, trace_frame, trace_frames
from fxperex.sites import Dims
from fxperex.testing import clipped, error, loop
from fxperex.transform import Outline, outline

CPU = torch.device("cpu")
LOSS = nn.CrossEntropyLoss()


def net(width: int = 12) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU(),
                         nn.Conv2d(width, 16, 3, stride=2), nn.GELU(), nn.Flatten(),
                         nn.Linear(16 * 9, 40), nn.GELU(), nn.Linear(40, 10))


def twice() -> nn.Module:
    shared = nn.Linear(192, 192)
    return nn.Sequential(nn.Flatten(), shared, nn.GELU(), shared, nn.LayerNorm(192),
                         nn.Linear(192, 10))


def batch(rows: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 3, 8, 8), torch.randint(0, 10, (rows,))


def drafted(rows: int = 8, **options: object) -> Outline:
    return outline(net(), batch(rows), LOSS, **options)  # type: ignore[arg-type]


def test_liveness_by_hand() -> None:
    steps = (Instruction("a", {"a": 4.0}), Instruction("b", {"b": 2.0}, ("a",), transient=5.0),
             Instruction("c", {"c": 1.0}, ("b",)), Instruction("d", {"d": 1.0}, ("c", "a")))
    found = peak(Listing(steps, 10.0, frozenset({"d"})))
    assert (found.bytes, found.instruction) == (10.0 + 4 + 2 + 5, "b")
    assert found.buffers == (
        ("b", 5.0), ("a", 4.0), ("b", 2.0))  # b needs 5 beside its 2 while it is made


@pytest.mark.parametrize("strategy", ["auto", "unfold", "crb", "ghost", "vmap", "multi"])
def test_predicted_peak_is_that_of_the_step_graph(strategy: str) -> None:
    private = fxperex.transform(net(), batch(), LOSS, strategy=strategy, backend="eager")
    frame = trace_frame(private.captured, private.analysis, 8)
    predicted = plan_peak(frame, private.plan.choices).bytes
    assert 0.9 < predicted / private.peak < 1.12, (predicted, private.peak)


def test_what_hands_values_out_is_no_read_of_the_step() -> None:
    made = drafted()
    frame = trace_frame(made.capture, made.analysis, 8)
    assert frame.listing.instructions[-1].makes  # the last gradient, not a name of one
    assert frame.reads["2.weight"][0] and not frame.reads["2.bias"][
        0]  # a bias needs the output's gradient alone


@pytest.mark.parametrize(
    "peaks, moved",
    [
        ({"": (10, "a"), "ab": (9, "a"), "b": (7, "")
          }, "b"),  # within the limit together, better without the one that sets it
        ({"": (10, "a"), "ab": (9, "a"), "b": (9, "")}, "ab"),
        ({"": (10, "a"), "ab": (9, ""), "b": (7, "")}, "ab"),
        ({"": (10, "a"), "ab": (11, "b"), "b": (12, "b"), "a": (9, "")}, "a"),
        ({"": (10, "a"), "ab": (11, "b"), "b": (12, "b"), "a": (11, "")}, "")
    ])
def test_norms_are_moved_where_the_peak_does_not_grow(peaks: dict[str, tuple[float, str]],
                                                      moved: str) -> None:
    chosen, found = raised("ab", {"a", "b"}, lambda some: peaks["".join(some)])
    assert ("".join(chosen), found) == (moved, peaks[moved][0])


def test_peak_of_the_step_graph_is_what_torch_allocates() -> None:
    x, y = batch()
    private = fxperex.transform(net(), (x, y), LOSS, strategy="unfold", backend="eager")
    inputs = private.step_inputs((x, y))
    private.compiled(*inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as record:
        private.compiled(*inputs)
    events = sorted((e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"),
                    key=lambda e: e.start_ns())
    most = max(itertools.accumulate(e.nbytes() for e in events))
    made = listing(private.step_graph.graph)[0]
    assert abs(most / (peak(made).bytes - made.inputs) - 1) < 0.05


def test_frames_between_two_sizes_are_a_straight_line() -> None:
    made = drafted()
    frames = trace_frames(made.capture, made.analysis)
    exact, line = trace_frame(made.capture, made.analysis, 32), frames.at(32)
    assert peak(line.listing).bytes == pytest.approx(peak(exact.listing).bytes, rel=0.01)
    rates = profile(CPU)
    assert sum(map(rates.seconds,
                   line.costs)) == pytest.approx(sum(map(rates.seconds, exact.costs)), rel=0.02)


def _all_plans(frame: Frame, plan: Plan) -> list[tuple[float, float]]:
    """(seconds, peak) of every assignment."""
    sites = [c for c in plan.choices if len(c.costs) > 2]
    rest = [c for c in plan.choices if len(c.costs) <= 2]
    found = []
    for names in itertools.product(*(list(c.costs) for c in sites)):
        made = [c.using(n) for c, n in zip(sites, names, strict=True)] + rest
        order = {c.site.name: i for i, c in enumerate(plan.choices)}
        made.sort(key=lambda c: order[c.site.name])
        found.append((sum(c.seconds for c in made), plan_peak(frame, made).bytes))
    return found


def test_budget_against_every_assignment() -> None:
    small = nn.Sequential(*list(net())[:5], nn.Linear(16 * 9, 10))
    made = outline(small, batch(16), LOSS)
    plan = replace(
        made.plan,
        choices=tuple(c.using(min(c.times, key=c.times.__getitem__)) for c in made.plan.choices))
    frame = trace_frame(made.capture, made.analysis, 16)
    every = _all_plans(frame, plan)
    low, high = min(p for _, p in every), plan_peak(frame, plan.choices).bytes
    assert plan_peak(frame, smallest(frame, plan.choices)).bytes <= 1.001 * low < 0.9 * high
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        memory = int(low + share * (high - low)) + 1
        fitted = fit(frame, plan.choices, memory)
        assert fitted is not None and plan_peak(frame, fitted).bytes <= memory
        best = min(s for s, p in every if p <= memory)
        assert sum(c.seconds for c in fitted) <= 1.02 * best, share
    assert fit(frame, plan.choices, int(0.99 * low)) is None


@pytest.mark.parametrize("make", [net, twice])
def test_the_running_sum_is_the_peak_of_the_walk(make: Callable[[], nn.Module]) -> None:
    made = outline(make(), batch(16), LOSS)
    frame = trace_frame(made.capture, made.analysis, 16)
    line, draw = Timeline(frame, made.plan.choices), random.Random(0)
    for _ in range(60):
        choices = tuple(c.using(draw.choice(list(c.costs))) for c in made.plan.choices)
        found = plan_peak(frame, choices).bytes
        assert line.peak(choices) == found >= line.floor()
    assert line.floor() > frame.listing.inputs > 0


def test_a_budget_is_kept_and_its_price_told() -> None:
    model, data = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 64, 3),
                                nn.Flatten(), nn.Linear(64 * 36, 10)).double(), batch(16)
    data = (data[0].double(), data[1])
    free = fxperex.transform(model, data, LOSS, backend="eager", strategy={"*": "vmap"})
    slim = fxperex.transform(model, data, LOSS, backend="eager", memory=int(0.7 * free.peak))
    assert slim.peak <= 0.7 * free.peak
    assert slim.plan.budget is not None and slim.plan.budget.memory == int(0.7 * free.peak)
    assert "budget" in str(slim.plan) and "cost" in str(slim.plan)
    total, norms = clipped(loop(model, lambda m, x, y: LOSS(m(x), y), data), 1.0)
    model.zero_grad()
    assert error(slim.step(*data).norms, norms) < 1e-9
    for name, p in model.named_parameters():
        assert p.grad is not None and error(p.grad, total[name]) < 1e-9


def test_too_small_a_budget_names_the_smallest_that_holds() -> None:
    with pytest.raises(ConfigError, match="smallest budget that does is") as refused:
        drafted(memory="1KiB")
    told = str(refused.value).split("that does is ")[1].split(",")[0]
    assert "set by" in str(refused.value) and "parameters and batch" in str(refused.value)
    assert drafted(memory=told).plan.peak <= parse_memory(told)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="smallest budget"):
        drafted(memory=int(0.9 * parse_memory(told)))  # type: ignore[operator]


def test_rows_are_chosen_within_memory() -> None:
    free = drafted(64, physical_batch="auto").plan
    assert free.peak is not None and free.rows >= 8
    tight = drafted(64, physical_batch="auto", memory=int(0.2 * free.peak)).plan
    assert tight.rows < 64 and tight.peak is not None and tight.peak <= 0.2 * free.peak
    x, y = batch(64)
    private = fxperex.transform(net(), (x, y), LOSS, physical_batch="auto",
                                memory=int(0.2 * free.peak), backend="eager")
    assert private.step(x, y).norms.shape == (64,)


@pytest.mark.parametrize(
    "memory", ["lots", "0", "0GiB", "-1GiB", "1.2.3MB", "16 parsecs", -5, 0, True, "", "GiB"])
def test_a_budget_that_is_no_size_is_refused(memory: object) -> None:
    with pytest.raises(ConfigError, match="memory must be"):
        parse_memory(memory)  # type: ignore[arg-type]


def test_sizes_read_and_write() -> None:
    assert parse_memory("4GiB") == 4 * 2**30 and parse_memory(
        "1.5 MB") == 1_500_000 and parse_memory(7) == 7
    for count in (900, 5000, 3 * 2**20 + 1, 7.77 * 2**30):
        assert count <= parse_memory(
            budget_text(count)) <= 1.1 * count + 103  # type: ignore[operator]


def test_bytes_are_written_by_one_function() -> None:
    assert [size(count) for count in (0, 1023, 1536, 2**21, 3.25 * 2**30, 2**45)] == [
        "0 B", "1023 B", "1.5 KiB", "2.0 MiB", "3.2 GiB", "32768.0 GiB"]
    assert size(0.05 * 2**20, digits=2, gap="", smallest="MiB") == "0.05MiB"


def _flops(strategy: str, kernel: str, positions: int) -> float:
    """Returns the flops of `kernel` in the cost of `strategy`, for a linear layer of 768 x 768."""
    site = next(s for s in drafted().analysis.sites if s.kind == "linear")
    dims = Dims(8, 1, positions, 768, 768)
    cost = strategies()[strategy].cost(replace(site, shape=(768, 768), dims=dims))
    return sum(w.calls * w.amount for w in cost.work if w.kernel == kernel)


def test_the_thresholds_of_norm_and_of_both_passes_are_kept_apart() -> None:
    """A Gram norm takes fewer flops than storing for T < 384, fewer than the sum of what is stored
    for T < 20 (`T (p + D) < p D` and `T^2 (p + D) < p D`).
    """
    def fewer(positions: int) -> tuple[bool, bool]:
        gram = _flops("ghost", "gram", positions)
        return gram < _flops("unfold", "bmm", positions), gram < 2.0 * 8 * 768 * 768

    assert [fewer(t) for t in (19, 20, 383, 385)] == [
        (True, True), (True, False), (True, False), (False, False)]


def test_a_plan_goes_through_json_and_back_into_transform() -> None:
    model, data = net(), batch()
    plan = fxperex.transform(model, data, LOSS, strategy={"2.weight": "crb", "5.weight": "unfold"},
                             backend="eager").plan
    again = Plan.from_json(plan.to_json())
    assert again == plan
    private = fxperex.transform(model, data, LOSS, strategy=again, backend="eager")
    assert [c.strategy for c in private.plan.choices] == [c.strategy for c in plan.choices]
    with pytest.raises(ConfigError, match="physical_batch=8"):
        fxperex.transform(model, data, LOSS, strategy=again, physical_batch=4, backend="eager")


@pytest.mark.parametrize(("other", "words"), [
    (lambda: net(13), r"node conv2d \(0.weight.*shape \(13, 3, 3, 3\) here, and \(12, 3, 3, 3\) "
                      r"in the plan"),
    (lambda: nn.Sequential(*list(net())[:-1]), "this model does not have it"),
    (lambda: nn.Sequential(*net(), nn.Linear(10, 10)), "the plan does not have it"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), "node linear")])
def test_a_foreign_plan_is_refused_by_the_node_that_differs(other: object, words: str) -> None:
    plan = drafted().plan
    with pytest.raises(ConfigError, match=f"made for another model: .*{words}"):
        outline(other(), batch(), LOSS, strategy=plan)  # type: ignore[operator]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 9}', "null", '{"version": 1, '
                                                                             '"sites": 3}'])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="plan"):
        Plan.from_json(text)


def test_measuring_asks_only_where_the_model_cannot_tell(monkeypatch: pytest.MonkeyPatch,
                                                         tmp_path: object) -> None:
    monkeypatch.setenv("FXPEREX_CACHE", str(tmp_path))
    plan = drafted(strategy="measure").plan
    rates = profile(CPU)
    for c in plan.choices:
        asked = {k: v for k, v in c.times.items() if k in c.measured}
        assert len(asked) != 1
        if asked:
            assert c.strategy == min(asked, key=asked.__getitem__)
            predicted = {k: rates.seconds(cost) for k, cost in c.costs.items()}
            ceiling = min(predicted[k] * (1 + rates.error(c.costs[k])) for k in predicted)
            for k in set(predicted) - set(asked):
                assert predicted[k] / (1 + rates.error(c.costs[k])) > ceiling
    assert any(c.measured for c in plan.choices)
    # Remembered: the same question has the same answer, to the last bit, without a clock.
    monkeypatch.setattr("fxperex.planner.trial.Trial.measure", None)
    again = drafted(strategy="measure").plan
    assert [c.times for c in again.choices] == [c.times for c in plan.choices]


def test_equal_sites_are_timed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("FXPEREX_CACHE", str(tmp_path))
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr("fxperex.planner.trial.Trial.measure",
                        lambda self, site, name: asked.append((site.name, name)) or 1e-3)
    model = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(16, 16), nn.Tanh())),
                          nn.Linear(16, 16, bias=False))
    plan = outline(model, (torch.randn(4, 16),), forward=curved, strategy="measure").plan
    measured = [c for c in plan.choices if c.measured and c.site.kind == "linear"]
    assert [c.site.name for c in measured] == ["0.weight", "2.weight", "4.weight", "6.weight"]
    timed = [name for name, _ in asked if name.endswith("weight")]
    assert set(timed) == {"0.weight"} and len(timed) == len(measured[0].measured)
    again = [
        c.times for c in outline(model, (
            torch.randn(4, 16), ), forward=curved, strategy="measure").plan.choices
    ]
    assert again == [c.times for c in plan.choices] and len(timed) == len(
        [n for n, _ in asked if n.endswith("weight")])


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).tanh())


class _TwoKinds(nn.Module):
    """One matrix in a product and element by element: uses that cannot stand side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (nn.functional.linear(x, self.weight)[:, :, None] + x[:, None] * self.weight).tanh()


def test_tied_groups_are_planned_as_sums() -> None:
    made = outline(_TwoKinds(), (torch.randn(4, 6),), forward=curved)
    assert len(made.plan.choices) == 2
    for c in made.plan.choices:
        assert "several uses" in c.refused["outer"] or c.site.kind == "elementwise"
    # One gradient per parameter is kept, not one per use.
    assert made.plan.held == 4 * 6 * 6 * 4
    assert made.plan.seconds > 0


def test_the_product_beside_an_embedding_is_counted() -> None:
    """A table that is also the output layer: `direct` looks up the one gradient and multiplies for
    the other.
    """
    table, ids = torch.nn.Embedding(50, 8), torch.randint(50, (3, 6))
    made = outline(table, (ids, ), forward=lambda m, i: (m(i) @ m.weight.t()).square().sum((1, 2)),
                   strategy="direct").plan
    (choice,) = made.choices
    assert choice.strategy == "direct" and {use.kind
                                            for use in choice.site.parts
                                            } == {"embedding", "linear"}
    assert sum(w.amount for w in choice.cost.work if w.kernel == "bmm") == 2 * 3 * 6 * 8 * 50


def test_joined_uses_are_planned_as_one_site() -> None:
    model, ids = _Tied(), torch.randint(0, 50, (4, 6))
    total, norms = clipped(loop(model, curved, (ids,)), 1.0)
    private = fxperex.transform(model, (ids,), forward=curved, strategy="measure", backend="eager")
    (choice,) = private.plan.choices
    assert len(choice.site.parts) == 2 and "ghost" in choice.costs
    assert error(private.step(ids).norms, norms) <= 1e-5
    assert error(model.embed.weight.grad, total["embed.weight"]) <= 1e-5
    assert Plan.from_json(private.plan.to_json()) == private.plan


def test_alternatives_are_each_strategy_alone() -> None:
    made = drafted()
    found = {
        a.name: a
        for a in alternatives(made.plan, trace_frames(made.capture, made.analysis), profile(CPU))
    }
    assert found["this plan"].seconds == pytest.approx(made.plan.seconds)
    for name, one in found.items():
        assert one.legal <= one.sites == len(made.plan.choices)
        if name not in {"naive", "this plan"}:
            assert one.seconds == pytest.approx(
                made.plan.single(name)) and one.seconds >= 0.999 * made.plan.seconds
    assert found["naive"].peak < found["multi"].peak


def test_planning_needs_neither_weights_nor_device() -> None:
    with torch.device("meta"):
        model = net()
    data = torch.empty(8, 3, 8, 8, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
    on_cpu = outline(model, data, LOSS, device=CPU).plan
    assert [c.strategy for c in on_cpu.choices] == [c.strategy for c in drafted().plan.choices]
    on_gpu = outline(model, data, LOSS, device=torch.device("cuda")).plan
    assert "not-measured" in on_gpu.device or torch.cuda.is_available()
    weights = [c for c in on_gpu.choices if c.site.dims is not None]
    assert weights and all(
        "fused_stored" in c.costs
        for c in weights), "Triton kernels are planned for a GPU that is not here"


def test_a_plan_for_a_gpu_does_not_run_on_a_cpu() -> None:
    data = torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))
    plan = outline(net(), data, LOSS, strategy="fused_stored", device=torch.device("cuda")).plan
    with pytest.raises(ConfigError, match="need a CUDA GPU"):
        fxperex.transform(net(), data, LOSS, strategy=plan, backend="eager")


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "all"])
def test_rows_that_are_no_number_are_refused(rows: object) -> None:
    with pytest.raises(ConfigError, match="physical_batch must be"):
        drafted(physical_batch=rows)
