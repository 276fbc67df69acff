"""What people read: the table, the coverage report, and the readable step graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxperex
from fxperex.errors import ConfigError

LOSS = nn.CrossEntropyLoss()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.idle = nn.Parameter(torch.zeros(4))
        self.first.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


def private(strategy: str = "auto") -> fxperex.PerExampleModule:
    batch = torch.randn(5, 6), torch.randint(0, 3, (5,))
    return fxperex.transform(_Net(), batch, LOSS, strategy=strategy, backend="eager")


def test_explain_lists_every_parameter_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    told = private().explain()
    assert capsys.readouterr().out.strip() == told.strip()
    rows = {
        line.split()[0]: line
        for line in told.partition("Parameters:")[2].splitlines()
        if line.strip()
    }
    assert set(rows) >= {"first.weight", "first.bias", "second.weight", "second.bias", "idle"}
    assert "frozen" in rows["first.bias"] and "unused" in rows["idle"]
    for name in ("first.weight", "second.weight", "second.bias"):
        assert "trained" in rows[name]


def test_explain_has_sites_with_module_and_runner_up_and_alternatives() -> None:
    step = private()
    told = step.explain()
    line = next(x for x in told.splitlines() if x.startswith("second.weight"))
    assert "5,1,1,8,3" in line and line.rstrip().endswith("second") and " ms" in line
    for name in {s for c in step.plan.choices for s in c.costs} | {"naive", "this plan"}:
        assert f"\n{name} " in told.partition("If one strategy")[2]


def test_the_table_has_every_column_and_totals() -> None:
    step = private("ghost")
    head, _, *lines = step.explain().splitlines()
    assert head.split() == [
        "site", "node", "kind", "B,G,T,D,P", "strategy", "ms", "held", "runner-up", "module"
    ]
    line = next(x for x in lines if x.startswith("first.weight")).split()
    assert line[:5] == ["first.weight", "linear", "linear", "5,1,1,6,8", "ghost"] and float(
        line[5]) > 0
    assert any(
        x.startswith("total ") and "forward and backward" in x and "5 rows" in x for x in lines)
    assert any(x.startswith("peak memory ") and step.plan.device in x for x in lines)
    slow = private("multi")
    assert "not asked for" in slow.explain()  # a faster runner-up, and why it was not taken


def test_the_step_graph_reads_by_site() -> None:
    step = private("ghost")
    text = step.step_graph.print_readable(print_output=False)
    assert "# first.weight: ghost (norm)" in text and "# first.weight: ghost (weighted_sum)" in text
    clip = text.index("# clip factors and totals")
    assert text.index("(norm)") < clip < text.index(
        "(weighted_sum)") and "# forward and backward" not in text[clip:]
    assert text.index("# forward and "
                      "backward") < text.index("(norm)") < text.index("(weighted_sum)")


@pytest.mark.parametrize(("level", "seen", "unseen"),
                         [("0", [], ["=== "]), ("1", ["=== plan"], ["=== captured"]),
                          ("2", ["=== captured graph", "aten.linear"], ["=== step"]),
                          ("3", ["=== step graph", "second.bias: side by side (norm)"], []),
                          ("4", ["=== loss graph", "=== traced step",
                                 "=== step after schedule_norms"], [])])
def test_levels_of_the_environment_variable(level: str, seen: list[str], unseen: list[str],
                                            monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FXPEREX_SHOW", level)
    private()
    told = capsys.readouterr().err
    assert all(word in told for word in seen) and not any(word in told for word in unseen)


def test_a_level_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXPEREX_SHOW", "all")
    with pytest.raises(ConfigError, match="FXPEREX_SHOW"):
        private()
