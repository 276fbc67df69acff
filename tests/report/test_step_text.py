"""The step graph as text: named ends, repeated blocks once, a pattern of sites, an outline."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxperex
from fxperex.errors import ConfigError
from fxperex.graph.repeats import folded
from fxperex.graph.text import numbered, starred


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).tanh())


class _Deep(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.start = nn.Linear(6, 8)
        self.blocks = nn.Sequential(*[_Block() for _ in range(blocks)])
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.start(x) * self.scale)


def deep(blocks: int) -> fxperex.PerExampleModule:
    batch = torch.randn(5, 6), torch.randint(0, 8, (5,))
    return fxperex.transform(_Deep(blocks), batch, nn.CrossEntropyLoss(), backend="eager")


@pytest.fixture(scope="module")
def private() -> fxperex.PerExampleModule:
    return deep(8)


def test_what_comes_in_and_goes_out_has_a_name(private: fxperex.PerExampleModule) -> None:
    graph = private.step_graph.graph
    names = [node.name for node in graph.nodes if node.op == "placeholder"]
    assert {"weight_of_start", "bias_of_blocks_0_up", "scale", "batch_0", "mask"} <= set(names)
    outputs = [node.name for node in graph.output_node().args[0]]
    assert outputs[:4] == ["losses", "norms", "factors", "sum_of_start_weight"]
    assert len(set(outputs)) == len(outputs) == 3 + len(private.parameters)
    text = private.step_graph.print_readable(False, fold=False)
    assert "weight_of_start: float32[8, 6]  # parameter start.weight" in text
    assert "arg0_1" not in text + private.step_graph.code and "<built-in" not in text
    assert text.rstrip().endswith("sum_of_blocks_7_down_bias: float32[8]")


def test_named_graphs_compute_the_same_and_can_be_copied(private: fxperex.PerExampleModule) -> None:
    x, y = torch.randn(5, 6), torch.randint(0, 8, (5,))
    inputs = private.step_inputs((x, y))
    losses, norms, factors, *_ = private.step_graph(*inputs)
    result, _ = private.sums(x, y)
    assert losses.equal(result.losses) and norms.equal(result.norms.to(norms))
    torch.fx.GraphModule(private.step_graph, private.step_graph.graph).graph.lint()
    assert len(factors) == 5


def test_repeated_blocks_are_printed_once(private: fxperex.PerExampleModule) -> None:
    text = private.step_graph.print_readable(False)
    complete = private.step_graph.print_readable(False, fold=False)
    assert len(text.splitlines()) < 0.6 * len(complete.splitlines())
    assert "x blocks.{0..7} {" in text or "x blocks.{1..7} {" in text
    twice = deep(12).step_graph.print_readable(False)
    assert abs(len(twice.splitlines()) - len(text.splitlines())) <= 12  # deeper, hardly longer


def test_a_pattern_prints_the_nodes_of_its_sites(private: fxperex.PerExampleModule) -> None:
    text = private.step_graph.print_readable(False, site="blocks.3.*")
    assert "# blocks.3.up.weight" in text and "blocks.4" not in text and "start" not in text
    with pytest.raises(ConfigError, match=r"no site .* fits 'nothing.*'"):
        private.step_graph.print_readable(False, site="nothing.*")


def test_a_depth_prints_an_outline(private: fxperex.PerExampleModule) -> None:
    text = private.step_graph.print_readable(False, depth=1)
    assert "blocks" in text and "blocks.0" not in text and "nodes" in text
    assert len(text.splitlines()) < 60
    for depth in (0, True):
        with pytest.raises(ConfigError, match="depth must be"):
            private.step_graph.print_readable(False, depth=depth)


def test_the_captured_graph_prints_without_annotations(private: fxperex.PerExampleModule) -> None:
    text = private.capture.print_readable(print_output=False)
    assert "Annotation" not in text and "# File:" in text and "aten.linear" in text


def test_repetitions_unfold_to_what_was_folded() -> None:
    items = [*"ab", *"cdefgh" * 4, *"x", *"gh"]

    def unfolded(stretches: tuple) -> list[str]:  # type: ignore[type-arg]
        texts: list[str] = []
        for part in stretches:
            body = items[part.start:part.start + part.length]
            texts += body[len(body) - part.lead:] if part.lead else []
            texts += body * part.count
        return texts

    stretches = folded(items)
    assert unfolded(stretches) == items and any(part.count == 4 for part in stretches)
    partial = [*"efgh", *"abcdefgh" * 3]
    assert any(part.count == 3 for part in folded(partial))
    items = [*"cdefgh", *"abcdefgh" * 3]
    (part,) = folded(items)
    assert (part.count, part.lead) == (3, 6) and unfolded((part,)) == items


def test_numbers_of_blocks_are_written_as_a_range() -> None:
    assert numbered([f"h.{i}.fc" for i in range(12)]) == "h.{0..11}.fc"
    assert numbered(["h.1.fc", "h.4.fc"]) == "h.{1,4}.fc"
    assert starred("h.1.fc2.weight") == "h.*.fc2.weight"
