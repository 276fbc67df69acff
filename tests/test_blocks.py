"""Blocks of a graph that repeat are found, and what differs in anything is not one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fxperex.graph.blocks import repetitions
from fxperex.transform import outline


class Layer(nn.Module):
    """A transformer's layer. Each argument makes one that is not equal to the ordinary one."""

    def __init__(self, width: int = 32, slope: float = 1.0, trained: bool = True) -> None:
        super().__init__()
        self.norm, self.slope = nn.LayerNorm(16), slope
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16).requires_grad_(trained)
        self.up, self.down = nn.Linear(16, width), nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.down(functional.elu(self.up(x), self.slope))


class Layers(nn.Module):
    """Tokens to logits through `layers`. peeks: the head also reads the middle of that layer."""

    def __init__(self, layers: list[nn.Module], peeks: int | None = None) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(10, 16), nn.Linear(16, 10)
        self.layers, self.peeks = nn.ModuleList(layers), peeks

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = x.relu() if i == self.peeks else x
        return self.head(x)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def captured(layers: list[nn.Module], **others: int) -> fx.Graph:
    tokens = torch.arange(24).reshape(4, 6) % 10
    model = Layers(layers, **others)
    return outline(model, (tokens, tokens), cross_entropy).capture.main.graph.graph


def paths(graph: fx.Graph, **others: Callable[[fx.Node], object]) -> list[list[str]]:
    return [[b.path for b in r.blocks] for r in repetitions(graph, **others)]  # type: ignore


def test_the_layers_of_a_transformer_are_one_block() -> None:
    graph = captured([Layer() for _ in range(3)])
    (repetition,) = repetitions(graph)
    assert [b.path for b in repetition.blocks] == ["layers.0", "layers.1", "layers.2"]
    assert repetition.saved == 2 * len(repetition.blocks[0].nodes)
    for block in repetition.blocks:  # a block reads the one before it, and its own parameters
        assert block.outputs == (len(block.nodes) - 1,)
        parameters = [n.name for n in block.inputs[1:]]
        assert all(block.path.replace(".", "_") in name for name in parameters)
    assert repetition.blocks[1].inputs[0] is repetition.blocks[0].nodes[-1]


def test_the_stages_of_a_resnet_repeat_where_their_shapes_do() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(norm_layer=lambda width: nn.GroupNorm(2, width),
                                        num_classes=10)
    batch = (torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))
    graph = outline(model, batch, nn.CrossEntropyLoss()).capture.main.graph.graph
    # The first blocks of later stages halve the picture: no two of them have the same shapes.
    assert ["layer1.0", "layer1.1"] in paths(graph)
    assert not any("layer2.0" in group for group in paths(graph))


@pytest.mark.parametrize("near_miss", [Layer(width=31), Layer(slope=0.5)],
                         ids=["a shape", "a constant"])
def test_a_layer_that_differs_in_one_thing_is_not_folded(near_miss: Layer) -> None:
    assert paths(captured([Layer(), near_miss, Layer()])) == [["layers.0", "layers.2"]]


def test_a_block_whose_output_is_used_in_another_way_is_still_the_same_block() -> None:
    assert paths(captured([Layer(), Layer(), Layer()], peeks=1)) == [
        ["layers.0", "layers.1", "layers.2"]]


def test_a_block_read_in_its_middle_is_not_folded() -> None:
    graph = captured([Layer(), Layer(), Layer()])
    (repetition,) = repetitions(graph)
    middle, final = repetition.blocks[1].nodes[3], next(iter(reversed(graph.nodes)))
    final.args = ((*final.args[0], middle),)  # type: ignore[misc]
    assert paths(graph) == [["layers.0", "layers.2"]]


class Thrice(nn.Module):
    """One layer, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(self.layer(x)))


def test_one_module_called_often_is_a_repetition_of_itself() -> None:
    assert paths(captured([Thrice()])) == [["layers.0.layer"] * 3]


def test_what_must_be_the_same_of_an_input_is_for_the_caller_to_say() -> None:
    frozen = Layer(trained=False)
    graph = captured([Layer(), frozen, Layer()])
    assert paths(graph) == [["layers.0", "layers.1", "layers.2"]]
    names = {"p_model_layers_1_out_weight", "p_model_layers_1_out_bias"}
    assert paths(graph, describe=lambda node: node.name in names) == [["layers.0", "layers.2"]]


def test_blocks_of_one_graph_share_no_node() -> None:
    pairs: list[nn.Module] = [nn.Sequential(Layer(), Layer()), nn.Sequential(Layer(), Layer())]
    (repetition,) = repetitions(captured(pairs))
    assert len(repetition.blocks) == 4  # four layers save more nodes than two pairs
    nodes = [n for b in repetition.blocks for n in b.nodes]
    assert len(nodes) == len(set(nodes))
