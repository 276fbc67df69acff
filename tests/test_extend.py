"""The public face for extensions: a user's own is held to the loop, and what is wrong is said."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxperex
from fxperex import registry
from fxperex.analysis.rules.table import READS, RULES
from fxperex.devices.kernel_classes import KERNELS
from fxperex.errors import ConfigError, CoverageError
from fxperex.extend import (
    BatchAxis,
    CheckError,
    ClosedForm,
    Context,
    Cost,
    Dims,
    Factored,
    LayerKind,
    Sample,
    Site,
    SiteValues,
    State,
    Strategy,
    batch_rule,
    check_kind,
    check_pass,
    check_strategy,
    graph_pass,
    kinds,
    layer_kind,
    strategies,
    strategy,
)
from fxperex.layers.bias import Bias
from fxperex.layers.bilinear import Bilinear
from fxperex.rewrite.passes import users
from fxperex.strategies.unfold import Unfold
from fxperex.testing import Bare, clipped, error, loop

PAGE = Path(fxperex.__file__).parent / "docs" / "extending.md"
BLOCKS = re.findall(r"\n## (.+?)\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
LINEAR: list[Sample] = [(nn.Linear(5, 3, bias=False), (torch.randn(4, 2, 5),))]


@pytest.fixture(autouse=True)
def _tables_as_before() -> Iterator[None]:
    """Whatever a test registers is gone after it."""
    tables: list[dict[str, Any]] = [registry._KINDS, registry._STRATEGIES, RULES, READS, KERNELS,
                                    users._PASSES]
    former = [dict(entries) for entries in tables]
    yield
    for entries, before in zip(tables, former, strict=True):
        entries.clear()
        entries.update(before)


def test_every_block_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [title for title, _ in BLOCKS] == [
        "A strategy", "A batch rule", "A layer kind", "A clipping rule", "A pass", "A kernel class"]
    page = ModuleType("extending")
    monkeypatch.setitem(sys.modules, "extending", page)
    for title, code in BLOCKS:
        exec(compile(code, f"extending.md, {title}", "exec", dont_inherit=True), page.__dict__)
    assert not page.private.norms(torch.randn(4, 5)).isnan().any()


class Thirds(Unfold):
    """A strategy that is right; its subclasses are not."""


class Low(Thirds):
    def sq_norm(self, values: SiteValues) -> Tensor:
        return 0.8 * super().sq_norm(values)


class High(Thirds):
    def sq_norm(self, values: SiteValues) -> Tensor:
        return 2 * super().sq_norm(values)


class Counts(Thirds):
    """Rows that do not count are added all the same."""

    def weighted_sum(self, values: SiteValues, factors: Tensor, valid: Tensor) -> Tensor:
        return self.stored(values).sum(0).to(torch.float64) * 0.5


class Flattened(Thirds):
    def gradients(self, values: SiteValues) -> Tensor:
        return super().gradients(values).flatten(1)


class Raises(Thirds):
    def gradients(self, values: SiteValues) -> Tensor:
        raise KeyError("the user's own words")


class Nowhere(Thirds):
    def illegal(self, site: Site) -> str | None:
        return "it is Sunday"


class Unpriced(Thirds):
    def cost(self, site: Site) -> Cost:
        raise ZeroDivisionError("no time")


class Infinite(Thirds):
    def cost(self, site: Site) -> Cost:
        return replace(super().cost(site), bytes=float("inf"))


WRONG: dict[type[Strategy], str] = {
    Low: "norm of example .* of the true one.*pass the clip bound",
    High: "times the true one.*safe", Counts: "weighted sum of weight is off",
    Flattened: "shape|size", Raises: "failed at weight .*the user's own words",
    Nowhere: "legal at no site .*it is Sunday",
    Unpriced: "failed to say whether it serves weight .*no time", Infinite: "bytes = inf"}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda cls: cls.__name__)
def test_what_is_wrong_with_a_strategy_is_said(wrong: type[Strategy]) -> None:
    strategy("thirds")(wrong)
    with pytest.raises(CheckError, match=WRONG[wrong]):
        check_strategy("thirds", LINEAR)


def test_a_strategy_that_is_right_passes_in_both_dtypes() -> None:
    strategy("thirds")(Thirds)
    assert [place.rpartition(", ")[2] for place in check_strategy("thirds", LINEAR)] == [
        "torch.float64", "torch.float32"]


class Pairs(Bilinear):
    """The library's bilinear kind, and what can be wrong with one."""

    def samples(self) -> list[Sample]:
        return super().samples()[1:2]


class Unfolded(Pairs):
    def fold(self, values: SiteValues, grads: Tensor) -> Tensor:
        return super().fold(values, 2 * grads)


class Unreached(Pairs):
    def claims(self, node: fx.Node, arg: int) -> bool:
        return False


class Without(Pairs):
    def samples(self) -> list[Sample]:
        return []


@pytest.mark.parametrize(("wrong", "words"), [
    (Unfolded, "strategy '(fused|ghost|unfold)'.*it reads .*(fold|weighted_sum)"),
    (Unreached, r"reaches no site of kind 'pairs'.*aten.bilinear \(bilinear\)"),
    (Without, "has no samples")])
def test_what_is_wrong_with_a_layer_kind_is_said(wrong: type[LayerKind], words: str) -> None:
    layer_kind("pairs", order=1)(wrong)
    with pytest.raises(CheckError, match=words):
        check_kind("pairs")


class Defaults(Factored):
    """A linear layer with nothing but its factors: the sum is the contract's own."""

    def claims(self, node: fx.Node, arg: int) -> bool:
        return str(node.target) == "aten.linear.default" and arg == 1

    def dims(self, node: fx.Node, arg: int, rows: int, axis: BatchAxis) -> Dims:
        shape = node.args[0].meta["val"].shape
        P, D = node.args[1].meta["val"].shape
        return Dims(rows, 1, shape[:-1].numel() // rows, D, P)

    def factors(self, values: SiteValues) -> tuple[Tensor, Tensor]:
        B, x = values.site.rows, values.args[0]
        return (x.reshape(B, 1, -1, x.shape[-1]),
                values.grad.reshape(B, 1, -1, values.grad.shape[-1]))

    def fold(self, values: SiteValues, grads: Tensor) -> Tensor:
        return grads.squeeze(1)


def test_the_defaults_of_a_factored_kind_are_right() -> None:
    layer_kind("defaults", order=1)(Defaults)
    checked = check_kind("defaults", LINEAR)
    assert {"ghost", "unfold"} <= {place.rpartition(": ")[2] for place in checked}


def test_running_a_cell_again_replaces_what_it_registered() -> None:
    cell = """
@strategy("cell")
class Cell(Unfold):
    version = VERSION

@layer_kind("cell")
class CellKind(Bias):
    version = VERSION

@batch_rule("cell.op", reads="x")
def cell_rule(context):
    return VERSION
"""
    for version in (1, 2):
        exec(cell, {"__name__": "__main__", "VERSION": version, "Unfold": Unfold, "Bias": Bias,
                    "strategy": strategy, "layer_kind": layer_kind, "batch_rule": batch_rule})
        entries: list[Any] = [strategies()["cell"], kinds()["cell"]]
        assert [entry.version for entry in entries] == [version, version]
        assert RULES["cell.op"](None) == version  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"registered already, by __main__\.Cell"):
        strategy("cell")(Thirds)
    with pytest.raises(ConfigError, match=r"registered already, by __main__\.cell_rule"):
        batch_rule("other.op", "cell.op")(lambda context: None)
    assert "other.op" not in RULES


def test_a_class_that_is_not_complete_is_refused_when_it_is_registered() -> None:
    with pytest.raises(ConfigError, match="does not define claims"):
        layer_kind("empty")(ClosedForm)
    with pytest.raises(ConfigError, match=r"must be a subclass of fxperex\.extend\.Strategy"):
        strategy("empty")(Bias)
    with pytest.raises(ConfigError, match="a meaning of its own"):
        strategy("naive")(Thirds)


def test_a_file_in_the_folder_is_all_that_a_strategy_takes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "extra_ways"
    package.mkdir()
    (package / "__init__.py").write_text((Path(fxperex.__file__).parent / "strategies" /
                                          "__init__.py").read_text())
    (package / "mine.py").write_text(
        "from fxperex.registry import strategy\n"
        "from fxperex.strategies.unfold import Unfold\n"
        "strategy('mine')(type('Mine', (Unfold,), {}))\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("extra_ways")
    assert "mine" in strategies()


def test_kinds_and_strategies_are_in_the_order_that_is_written_down() -> None:
    strategy("early", order=5)(Thirds)
    layer_kind("late")(Pairs)
    for entries in (strategies(), kinds()):
        orders = [entry.order for entry in entries.values()]  # type: ignore[attr-defined]
        assert orders == sorted(orders)
    assert next(iter(strategies())) == "early" and list(kinds())[-2:] == ["late", "generic"]


@torch.library.custom_op("extended::gate", mutates_args=())
def gate(x: Tensor, w: Tensor) -> Tensor:
    return x * torch.sigmoid(w)


@gate.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return torch.empty_like(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    s = torch.sigmoid(w)
    return grad * s, (grad * x * s * (1 - s)).sum((0, 1))


gate.register_autograd(_backward, setup_context=lambda ctx, inputs, output:
                       ctx.save_for_backward(*inputs))


def _gated(m: nn.Module, x: Tensor) -> Tensor:
    return m(x).sum((1, 2))


def test_auto_serves_a_users_operation_that_torch_func_cannot_differentiate() -> None:
    @batch_rule("extended.gate", reads="x")
    def rule(context: Context) -> State:
        return context.axis("x")

    model, x = Bare(lambda w, x: gate(x, w), (5,)), torch.randn(6, 4, 5)
    private = fxperex.transform(model, (x,), forward=_gated, backend="eager")
    (choice,) = private.plan.choices
    assert choice.strategy == "multi" and "torch.func cannot" in choice.refused["vmap"]
    total, norms = clipped(loop(model, _gated, (x,)), 1.0)
    assert error(private.step(x).norms, norms) < 1e-5
    assert error(model.weight.grad, total["weight"]) < 1e-5
    with pytest.raises(ConfigError, match=r"torch\.func cannot differentiate extended\.gate"):
        fxperex.transform(model, (x,), forward=_gated, strategy={"*": "vmap"}, backend="eager")


def test_a_batch_rule_that_fails_is_named() -> None:
    @batch_rule("extended.gate")
    def rule(context: Context) -> State:
        return context.axis("x")

    model, x = Bare(lambda w, x: gate(x, w), (5,)), torch.randn(6, 4, 5)
    with pytest.raises(ConfigError, match=r"batch rule of extended.gate \(.*test_extend.py:.*'x'"):
        fxperex.transform(model, (x,), forward=_gated, backend="eager")


def test_a_strategy_that_fails_is_named_with_its_site() -> None:
    strategy("thirds")(Raises)
    with pytest.raises(CoverageError, match=r"strategy 'thirds' failed at weight .*own words"):
        fxperex.transform(nn.Linear(5, 3), (torch.randn(4, 5),), strategy={"weight": "thirds"},
                          forward=lambda m, x: m(x).sum(1), backend="eager")


def _no_change(graph: fx.GraphModule) -> int:
    return 0


def _forget_a_scale(graph: fx.GraphModule) -> int:
    """Every product gives back its first operand: clip factors are lost."""
    products = [n for n in graph.graph.nodes if n.target is torch.ops.aten.mul.Tensor]
    for node in products:
        same = node.meta["val"].shape == node.args[0].meta["val"].shape
        if same:
            node.replace_all_uses_with(node.args[0])
    return len(products)


def _lose_the_sums(graph: fx.GraphModule) -> int:
    output = graph.graph.output_node()
    output.args = (output.args[0][:3],)
    return 1


def _say_nothing(graph: fx.GraphModule) -> None:
    return None


@pytest.mark.parametrize(("wrong", "words"), [
    (_no_change, "changed no step graph of the samples"),
    (_forget_a_scale, "with the pass 'own'"),
    (_lose_the_sums, "with the pass 'own': .*internal"),
    (_say_nothing, "returned None; it must return the number of nodes"),
])
def test_what_is_wrong_with_a_pass_is_said(wrong: Any, words: str) -> None:
    graph_pass("own")(wrong)
    with pytest.raises(CheckError, match=words):
        check_pass("own", LINEAR)


def test_a_pass_that_breaks_the_graph_is_refused_by_transform() -> None:
    graph_pass("own")(_lose_the_sums)
    with pytest.raises(CoverageError, match="internal"):
        fxperex.transform(nn.Linear(3, 2), (torch.randn(4, 3),), backend="eager",
                          forward=lambda m, x: m(x).square().sum(1))


def test_a_pass_has_one_name_and_a_cell_that_runs_again_replaces_it() -> None:
    graph_pass("own")(_no_change)
    graph_pass("own")(_no_change)
    with pytest.raises(ConfigError, match=r"pass 'own' is registered already, by .*_no_change"):
        graph_pass("own")(_say_nothing)
    with pytest.raises(ConfigError, match="no pass 'another' is registered"):
        check_pass("another")
