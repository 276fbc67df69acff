"""Random programs whose rows stand in two orders: example by example beside position by position.

A program is its seed. It is written down as ATen operations while it runs, at two batch sizes side
by side, so a graph for the proof costs a few milliseconds. Values have one of five forms; `e` and
`t` have the same shape and another order:

| form | shape | order |
|---|---|---|
| b | [B, D] | |
| bt, tb | [B, T, D], [T, B, D] | |
| e | [B * T, D] | example by example |
| t | [T * B, D] | position by position |
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxperex.capture.program import Capture, Program

aten = torch.ops.aten
T, D = 3, 6  # D: more than rows, so a place may be looked up among features; a multiple of T
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Value:
    """What an operation made at every size, and the nodes that stand for it."""

    values: tuple[Any, ...]
    nodes: tuple[fx.Node, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values[0].shape)

    def part(self, tape: Tape, index: int) -> Value:
        """One of several results."""
        return tape(operator.getitem, self, index)


@dataclass(frozen=True)
class Rows:
    """A number: `times` the batch size, plus `more`."""

    times: int = 1
    more: int = 0


class Tape:
    """Graphs in the making, one for each of `batches`, and their inputs."""

    def __init__(self, weights: dict[str, Tensor], *batches: Pair) -> None:
        self.graphs = [fx.Graph() for _ in batches]
        self.rows = [len(x) for x, _ in batches]
        self.inputs: dict[str, tuple[str, Any]] = {}
        self.known: dict[str, Value] = {}
        for name, tensor in weights.items():
            self._input(name, ("parameter" if tensor.requires_grad else "buffer", name),
                        [tensor] * len(batches))
        for i, name in enumerate("xy"):
            self._input(name, ("batch", i), [batch[i] for batch in batches])

    def _input(self, name: str, kind: tuple[str, Any], values: list[Tensor]) -> None:
        nodes = tuple(g.placeholder(name) for g in self.graphs)
        for node, value in zip(nodes, values, strict=True):
            node.meta["val"] = value
        self.inputs[nodes[0].name], self.known[name] = kind, Value(tuple(values), nodes)

    def __getitem__(self, name: str) -> Value:
        return self.known[name]

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Value:
        """Runs an operation at every size and writes it down."""
        made, nodes = [], []
        for side, graph in enumerate(self.graphs):
            value = target(*self._at(args, side, "values"), **self._at(kwargs, side, "values"))
            node = graph.call_function(target, self._at(args, side, "nodes"),
                                       self._at(kwargs, side, "nodes"))
            node.meta["val"] = list(value) if isinstance(value, tuple) else value
            made.append(value)
            nodes.append(node)
        return Value(tuple(made), tuple(nodes))

    def _at(self, arg: Any, side: int, field: str) -> Any:
        if isinstance(arg, Rows):
            return arg.times * self.rows[side] + arg.more
        if isinstance(arg, Value):
            return getattr(arg, field)[side]
        if isinstance(arg, dict):
            return {k: self._at(v, side, field) for k, v in arg.items()}
        return type(arg)(self._at(v, side, field) for v in arg) if isinstance(arg, list
                                                                              | tuple) else arg

    def capture(self, loss: Value) -> Capture:
        """Returns the Capture of what was written down at two sizes."""
        programs = []
        for graph, node, rows in zip(self.graphs, loss.nodes, self.rows, strict=True):
            graph.output((node,))
            graph.eliminate_dead_code()
            programs.append(Program(SimpleNamespace(graph=graph), rows))  # type: ignore[arg-type]
        main, twin = programs
        return Capture(main, twin, self.inputs, {}, [], False, None, None)  # type: ignore[arg-type]


def weights() -> dict[str, Tensor]:
    """Parameters `w`, `u`, `v` and buffers `table`, `pos`, `one`, `mean`, `spread`, `mix`,
    float64.
    """
    source = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    return {
        "w": drawn(D, D).requires_grad_(), "u": drawn(T, D).requires_grad_(),
        "v": drawn(1, D).requires_grad_(), "table": drawn(T, D), "pos": drawn(T),
        "one": drawn(1, D), "mean": drawn(D), "spread": drawn(D).square(), "mix": drawn(D, D)
    }


Pool = dict[str, list[Value]]
Step = Callable[[Tape, random.Random, Pool], None]


def newest(rng: random.Random, pool: Pool, form: str) -> Value:
    """One of the form's values, the newer the likelier."""
    values = pool[form]
    return values[max(rng.randrange(len(values)), rng.randrange(len(values)))]


def build(seed: int, held: dict[str, Tensor], *batches: Pair) -> tuple[Tape, Value]:
    """Returns the Tape of the program `seed` and its losses `[B]`."""
    from order_risks import RISKY
    from order_steps import PLAIN, finish, start

    rng, tape = random.Random(seed), Tape(held, *batches)
    pool = start(tape)
    steps = [rng.choice(PLAIN) for _ in range(rng.randint(3, 9))]
    if rng.random() < 0.55:
        (risky,) = rng.choices(list(RISKY), list(RISKY.values()))
        steps.insert(rng.randint(len(steps) // 2, len(steps)), risky)
    for step in steps:
        step(tape, rng, pool)
    return tape, finish(tape, rng, pool)


class Shares(fx.Interpreter):
    """Runs a program so that a parameter's gradient is one example's share of it, as the library
    cuts it.

    Where a parameter enters, the gradient of the result passes to it from the slice of `example`
    alone, which the proof's state tells.
    """

    def __init__(self, capture: Capture, axes: dict[str, Any], example: int) -> None:
        super().__init__(nn.Module(), graph=capture.main.graph.graph)
        self.axes, self.rows, self.example = axes, capture.main.rows, example
        self.owned = {n for n in capture.main.nodes
                      if n.op == "placeholder" and capture.inputs[n.name][0] == "parameter"}

    def run_node(self, n: fx.Node) -> Any:
        entering = [a for a in n.all_input_nodes if a in self.owned]
        if n.op != "call_function" or not entering:
            return super().run_node(n)
        made, state = super().run_node(n), self.axes[n.name]
        if state is None:
            self.owned.add(n)
            return made
        held = {a: self.env[a] for a in entering}
        self.env.update({a: value.detach() for a, value in held.items()})
        fixed = super().run_node(n)
        self.env.update(held)
        line = torch.zeros(state.outer, self.rows, state.inner, dtype=torch.float64)
        line[:, self.example] = 1
        mask = line.reshape([-1 if d == state.dim else 1 for d in range(made.dim())])
        return mask * made + (1 - mask) * fixed
