"""The picture: every site in it, lanes in order, well-formed SVG, a page with numbers, a PNG that
is not blank.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html import escape
from pathlib import Path

import pytest
import torch
from torch import nn

import fxperex
from fxperex.errors import ConfigError
from fxperex.registry import ways
from fxperex.report.canvas import fitted, length
from fxperex.report.colors import color
from fxperex.report.draw import picture
from fxperex.report.lanes import MOST, folded_lanes, lanes

SVG = "{http://www.w3.org/2000/svg}"


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).tanh())


@pytest.fixture(scope="module")
def private() -> fxperex.PerExampleModule:
    model = nn.Sequential(nn.Linear(6, 8), *[_Block(8) for _ in range(14)], nn.Linear(8, 3))
    batch = torch.randn(5, 6), torch.randint(0, 3, (5,))
    return fxperex.transform(model, batch, nn.CrossEntropyLoss(), backend="eager")


def test_svg_names_every_site_in_its_colour(private: fxperex.PerExampleModule,
                                            tmp_path: Path) -> None:
    root = ET.fromstring(private.draw(tmp_path / "plan.svg").read_text())
    titles = {t.text: r.get("fill") for r in root.iter(f"{SVG}rect") for t in r.iter(f"{SVG}title")}
    for c in private.plan.choices:
        mine = [
            fill for text, fill in titles.items() if text and text.startswith(f"{c.site.name} (")
        ]
        assert mine == [color(c.strategy)], c.site.name


def test_modules_are_folded_until_they_fit(private: fxperex.PerExampleModule) -> None:
    made = lanes(private.capture.graph, private.plan)
    names = [lane.name for lane in made]
    assert names == [*map(str, range(16)), "loss"]  # blocks whole: their 42 parts would not fit
    assert len(made) <= MOST and sum(len(lane.choices)
                                     for lane in made) == len(private.plan.choices)
    assert made[5].ops["linear"] == 2 and made[5].reads == ["4"]


def test_nothing_runs_out_of_its_column(private: fxperex.PerExampleModule) -> None:
    canvas = picture(private.capture.graph, private.plan)
    assert canvas.width < 2200 and all(getattr(s, "x", 0.0) >= 0 for s in canvas.shapes)
    assert length(fitted("a" * 200, 100)) <= 100


def test_page_holds_picture_and_numbers(private: fxperex.PerExampleModule, tmp_path: Path) -> None:
    page = private.draw(tmp_path / "plan.html").read_text()
    assert "<svg" in page and all(c.site.name in page
                                  for c in private.plan.choices) and "trained" in page
    assert "<svg" in private._repr_html_() and "<table>" in private._repr_html_()


def test_a_plan_alone_shows_its_text(private: fxperex.PerExampleModule) -> None:
    assert private.plan._repr_html_() == f"<pre>{escape(str(private.plan))}</pre>"


def test_png_is_a_picture(private: fxperex.PerExampleModule, tmp_path: Path) -> None:
    from matplotlib import image as images

    image = images.imread(private.draw(tmp_path / "plan.png"))
    assert image.shape[0] > 500 and image.shape[1] > 1000 and 0.02 < (image[..., :3].min(2)
                                                                      < 0.95).mean() < 0.9


def test_strategies_have_colours_of_their_own() -> None:
    made = [color(name) for name in ways()]
    assert len(set(made)) == len(made)
    assert color("somebody's own") == color("somebody's own")


@pytest.mark.parametrize("name", ["plan.gif", "plan", "no/such/folder/plan.svg"])
def test_a_picture_that_cannot_be_is_refused(private: fxperex.PerExampleModule, name: str,
                                             tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="picture"):
        private.draw(tmp_path / name)


def test_equal_blocks_are_drawn_once_with_a_slice_for_each(
        private: fxperex.PerExampleModule, tmp_path: Path) -> None:
    rows = folded_lanes(private.capture.graph, private.plan)
    assert ("{1..14}.up", 14) in [(lane.name, lane.times) for lane in rows]
    assert len(rows) < 8 and sum(len(lane.choices) for lane in rows) == len(private.plan.choices)
    text = private.draw(tmp_path / "plan.svg").read_text()
    assert "14 x" in text and text.count('data-key="site ') == len(private.plan.choices)


def test_a_page_has_the_facts_of_every_site_and_no_address(
        private: fxperex.PerExampleModule, tmp_path: Path) -> None:
    page = private.draw(tmp_path / "plan.html").read_text()
    facts = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    choice = next(c for c in private.plan.choices if c.site.name == "7.up.weight")
    fact = facts["site 7.up.weight"]
    assert ["strategy", choice.strategy] in fact["rows"] and "7.up.weight" in fact["text"]
    assert "linear" in facts["module 7.up"]["text"] and page.count("<svg") == 2
    assert not re.findall(r"(?:src|href)=|https?://(?!www\.w3\.org/2000/svg)", page)


def test_json_has_both_graphs_with_edges_that_end_at_nodes(
        private: fxperex.PerExampleModule, tmp_path: Path) -> None:
    body = json.loads(private.draw(tmp_path / "plan.json").read_text())
    assert [graph["id"] for graph in body["graphs"]] == ["captured graph", "step graph"]
    for graph in body["graphs"]:
        names = {node["id"] for node in graph["nodes"]}
        edges = [e["sourceNodeId"] for node in graph["nodes"] for e in node["incomingEdges"]]
        assert edges and set(edges) <= names
    assert any(node["namespace"] == "7/up" for node in body["graphs"][0]["nodes"])
