"""Texts that grow with the kinds of blocks, not with their number; reprs; differences."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from test_step_text import deep
from torch import nn

import fxperex
from fxperex.errors import ConfigError
from fxperex.planner import Plan
from fxperex.report import terminal
from fxperex.report.explain import SITE, site_rows


@pytest.fixture(scope="module")
def private() -> fxperex.PerExampleModule:
    return deep(8)


def test_equal_sites_of_blocks_are_one_row(private: fxperex.PerExampleModule) -> None:
    rows = {cells[0]: cells for cells in site_rows(private.plan)}
    assert len(rows) == 6 < len(private.plan.choices)
    block = rows["blocks.{0..7}.up.weight x8"]
    took = sum(c.seconds for c in private.plan.choices if c.site.name.endswith("up.weight"))
    assert block[5] == f"{1e3 * took:.3f}" and block[8] == "blocks.{0..7}.up"
    text = private.explain()
    assert "blocks.{0..7}.down.bias x8" in text.partition("Parameters:")[2]
    assert len(text.splitlines()) < 40 and text.count("T positions") == 1


def test_top_prints_the_dearest_rows(private: fxperex.PerExampleModule) -> None:
    text = private.explain(top=2)
    assert "and 4 more rows," in text and "Parameters:" not in text
    dearest = max(site_rows(private.plan), key=lambda cells: float(cells[5].rstrip("*")))
    assert text.splitlines()[2].startswith(dearest[0])
    for top in (0, True, "2"):
        with pytest.raises(ConfigError, match="top must be"):
            private.explain(top=top)  # type: ignore[arg-type]


@pytest.mark.parametrize("rich", [True, False])
@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_terminal_is_never_too_narrow(private: fxperex.PerExampleModule, width: int, rich: bool,
                                        monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.table", None)
    terminal.show(private.plan, [])
    table = capsys.readouterr().out.partition("total ")[0]
    plain = re.sub("\x1b\\[[0-9;]*m", "", table).splitlines()
    assert max(map(len, plain)) <= width and "strategy" in plain[0]
    assert ("module" in plain[0]) == (width == 200)
    assert terminal.narrowed(SITE, site_rows(private.plan), 1000)[0] == SITE


def test_what_prints_says_what_it_is(private: fxperex.PerExampleModule) -> None:
    assert re.fullmatch(r"PerExampleModule\(_Deep: 34 sites \(.*\), 5 rows a step, backend eager\)",
                        repr(private))
    result = private.step(torch.randn(5, 6), torch.randint(0, 8, (5,)))
    assert re.fullmatch(r"StepResult\(5 examples: mean loss \S+, median norm \S+, \d clipped, "
                        r"0 dropped\)", repr(result))
    empty = private.step(torch.randn(0, 6), torch.randint(0, 8, (0,)))
    assert repr(empty) == "StepResult(no examples)"
    private.model.zero_grad()


def test_an_engine_and_its_sampler_print() -> None:
    from fxperex.privacy import PrivacyEngine

    model = nn.Linear(4, 2)
    data = torch.randn(32, 4), torch.randint(0, 2, (32,))
    private = fxperex.transform(model, tuple(x[:8] for x in data), nn.CrossEntropyLoss(),
                                backend="eager")
    with PrivacyEngine(private, torch.optim.SGD(model.parameters(), 0.1), data, expected_batch=8,
                       epochs=1, noise_multiplier=1.0, delta=1e-4) as engine:
        assert "step 0 of 4, PoissonSampler(4 steps, examples 32, rate 0.25" in repr(engine)
        claim = engine.guarantee()
        assert repr(claim) == str(claim) and claim._repr_html_().startswith("<pre>The parameters")


def test_a_difference_names_sites_and_operations(private: fxperex.PerExampleModule) -> None:
    x, y = torch.randn(5, 6), torch.randint(0, 8, (5,))
    ghost = fxperex.transform(private.model, (x, y), nn.CrossEntropyLoss(), backend="eager",
                              strategy={"blocks.*.up.weight": "multi"})
    text = private.diff(ghost)
    assert "blocks.{0..7}.up.weight x8" in text and "multi" in text and "operation" in text
    assert "down.weight" not in text
    same = private.diff(Plan.from_json(private.plan.to_json()))
    assert same == "every site has the same strategy"
    assert "the same operations" in private.diff(private)
    with pytest.raises(ConfigError, match="diff takes"):
        private.diff(ghost.plan.to_json())  # type: ignore[arg-type]
