"""The list of passes: what one needs was promised before, and a broken promise is named."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxperex
from fxperex.errors import CoverageError
from fxperex.rewrite import rewriter
from fxperex.rewrite.passes import IN_PLACE, PASSES, TRACED, Orders, Pass, apply

PLANS = {"all kept": Orders(), "some recomputed": Orders(recomputed=frozenset({"relu"}))}


@pytest.mark.parametrize("orders", PLANS.values(), ids=PLANS)
def test_what_a_pass_needs_was_promised_before_it(orders: Orders) -> None:
    facts = set(TRACED)
    for each in PASSES:
        if each.when(orders):
            assert each.needs <= facts, each.name
            facts |= each.promises


def test_every_pass_has_a_name_of_its_own_and_a_trial_runs_those_that_change_operations() -> None:
    assert len({p.name for p in PASSES}) == len(PASSES)
    assert [p.name for p in IN_PLACE] == ["views_to_reshapes", "stack_slices", "join_views",
                                          "remove_redundant"]


def _lose_a_sum(graph: fx.GraphModule, orders: Orders) -> int:
    output = graph.graph.output_node()
    output.args = (output.args[0][:-1],)  # type: ignore[index]
    return 1


def _forget_values(graph: fx.GraphModule, orders: Orders) -> int:
    next(n for n in graph.graph.nodes if n.op == "call_function").meta.clear()
    return 1


def _mend(graph: fx.GraphModule, orders: Orders) -> int:
    raise AssertionError("the fault was not seen before the next pass")


@pytest.mark.parametrize(("fault", "words"), [(_lose_a_sum, "parameters' shapes"),
                                              (_forget_values, "after the pass fault: not meta")])
def test_a_pass_that_breaks_the_graph_is_seen_before_the_next(fault: object, words: str,
                                                              monkeypatch: pytest.MonkeyPatch,
                                                              ) -> None:
    broken = [*PASSES, Pass("fault", fault), Pass("mend", _mend)]  # type: ignore[arg-type]
    monkeypatch.setattr(rewriter, "PASSES", broken)
    with pytest.raises(CoverageError, match=words):
        fxperex.transform(nn.Linear(3, 2), (torch.randn(4, 3),), backend="eager",
                          forward=lambda m, x: m(x).square().sum(1))


def test_a_view_after_the_views_are_gone_is_seen() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        return x.exp().reshape(-1)

    def fix_strides(graph: fx.GraphModule, orders: Orders) -> int:
        for node in graph.graph.find_nodes(op="call_function",
                                           target=torch.ops.aten.reshape.default):
            node.target = torch.ops.aten.view.default
        return 1

    graph = make_fx(run, tracing_mode="fake")(torch.ones(2, 3))
    apply(graph, IN_PLACE)
    faulty = [*itertools.islice(IN_PLACE, 1), Pass("fix_strides", fix_strides)]
    with pytest.raises(CoverageError, match="after the pass fix_strides: not no view"):
        apply(graph, faulty)
