"""The pass that moves norms up: what it does, what it must not touch, and that the step computes
the same in no more memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import curved, under
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.models import resnet

from fxperex.graph.provenance import MADE, Made, Role
from fxperex.memory.liveness import listing, peak
from fxperex.rewrite import rewriter
from fxperex.rewrite.passes import PASSES, Schedule, schedule
from fxperex.rewrite.verify import verify

WIDE = torch.Size([4, 1000])


def _trace(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    return make_fx(function,
                   tracing_mode="fake")(*inputs)  # fake values keep who shares whose memory


def _names(graph: fx.GraphModule) -> list[str]:
    return [n.name for n in graph.graph.nodes if n.op == "call_function"]


def _norms_last() -> fx.GraphModule:
    """Three wide values, made one by one; then the norm of each, marked as a site's."""

    def run(x: Tensor) -> tuple[Tensor, ...]:
        a = x + 1
        b = a * 2
        c = b.exp()
        return a.sum(1), b.sum(1), c.sum(1)

    graph = _trace(run, torch.randn(WIDE))
    for i, node in enumerate(n for n in graph.graph.nodes if "sum" in n.name):
        node.meta[MADE] = Made(f"site{i}", "crb", Role.NORM)
    return graph


def test_norms_move_up_and_their_inputs_die() -> None:
    graph, x = _norms_last(), torch.randn(WIDE)
    want = graph(x)
    made = schedule(graph)
    assert made.moved == ("site0", "site1", "site2")
    assert _names(graph) == ["add", "sum_1", "mul", "sum_2", "exp", "sum_3"]
    wide = WIDE.numel() * 4
    assert made.before - made.after >= wide * 0.9 and peak(listing(
        graph.graph)[0]).bytes == made.after
    assert all(torch.equal(a, b) for a, b in zip(want, graph(x), strict=True))


def test_a_move_that_would_cost_memory_is_not_made() -> None:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        narrow = x[:, :1] + 1
        most = (x * 3).exp().sum(1)  # two wide values at once: the peak
        return most, narrow.expand(
            WIDE).sin()  # wide and an output: early, it would live through the peak

    graph = _trace(run, torch.randn(WIDE))
    for node in graph.graph.nodes:
        if node.name in {"expand", "sin"}:
            node.meta[MADE] = Made("site", "unfold", Role.GRAD)
    order = _names(graph)
    made = schedule(graph)
    assert made.moved == () and made.before == made.after and _names(graph) == order


@pytest.mark.parametrize("kind", ["random", "written"])
def test_nodes_whose_order_counts_stay(kind: str) -> None:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        a = x + 1
        first = torch.rand_like(x)
        if kind == "written":
            a.add_(first)
        return first.sum(1), torch.rand_like(a) if kind == "random" else a.sum(1)

    graph = _trace(run, torch.randn(WIDE))
    last = [n for n in graph.graph.nodes if n.op == "call_function"][-1]
    last.meta[MADE] = Made("site", "crb", Role.NORM)
    order = _names(graph)
    assert schedule(graph).moved == () and _names(graph) == order


def test_the_first_sites_go_together_and_the_others_only_where_they_cost_nothing() -> None:
    graph = _norms_last()
    assert schedule(graph, {"site2"}).moved[0] == "site2"


def test_a_norm_waits_for_no_second_name_and_makes_nothing_before_its_gradient() -> None:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        a = x + 1
        gradient = (x * 2).exp()
        last = (gradient * 3).sin()
        again = torch.ops.aten.alias.default(a)
        total = (again.cos() * gradient).sum(
            1)  # the site's: a value of its input alone, then one of both
        return total, last

    graph = _trace(run, torch.randn(WIDE))
    for node in graph.graph.nodes:
        if node.name in {"cos", "mul_2", "sum_1"}:
            node.meta[MADE] = Made("site", "crb", Role.NORM)
    assert _names(graph)[-4:] == ["alias", "cos", "mul_2", "sum_1"]
    assert schedule(graph).moved == ("site",)
    assert _names(graph) == ["add", "alias", "mul", "exp", "cos", "mul_2", "sum_1", "mul_1", "sin"]


def _vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2)
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Dropout(0.5),
                         nn.Linear(128, 10))


def _resnet() -> nn.Module:
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10, width_per_group=64,
                                norm_layer=lambda c: nn.GroupNorm(8, c))


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(1024, 32),
                         nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(),
                         nn.Linear(96, 10))


@pytest.mark.parametrize("make", [_vgg, _resnet, _transformer])
def test_a_step_computes_the_same_in_no_more_memory(make: Callable[[], nn.Module],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = torch.randn(4, 3, 32, 32), torch.tensor([True, True, False, True])
    monkeypatch.setattr(rewriter, "PASSES",
                        [p for p in PASSES if p.name != "schedule_norms"])
    for name, private in under(make(), (x,), curved, 1.0, ("auto", "unfold")):
        graph, inputs = private.step_graph, private.step_inputs((x,), mask)
        torch.manual_seed(5)
        want = graph(*inputs)
        made: Schedule = schedule(graph,
                                  {c.site.name
                                   for c in private.plan.choices
                                   if not c.cost.rereads})
        assert made.after == peak(listing(graph.graph)[0]).bytes <= made.before, name
        verify(graph, 4, [tuple(p.shape) for p in private.parameters.values()], "graph")
        torch.manual_seed(5)
        assert all(torch.equal(a, b) for a, b in zip(want, graph(*inputs), strict=True)), name
