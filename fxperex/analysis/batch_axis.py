"""Capture -> where the example axis is in every tensor, or BatchMixingError.

Abstract interpretation. A tensor's state is None (the batch cannot reach it), a `BatchAxis`, or
`Reduced`: a scalar that sums or averages over the batch, which only a loss may be. Every rule follows
positions, never sizes. An operation without a rule is an error: nothing is assumed.

Theorem. If every rule holds and the loss has the batch axis at 0, example i's loss does not depend on
example j's rows, hence neither does its gradient: one example moves the sum of clipped gradients by at
most the clipping bound.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxperex.analysis.rules import RULES
from fxperex.analysis.state import Context, Mixes, Reduced, State
from fxperex.capture import Capture, module_path, source_line
from fxperex.errors import BatchMixingError, MutationError
from fxperex.registry import BatchAxis

Axes = dict[str, Any]


@dataclass(frozen=True)
class _Where:
    node: fx.Node

    def __str__(self) -> str:
        path = module_path(self.node)
        return f"{source_line(self.node)}" + (f" (module {path})" if path else "")


def prove(capture: Capture) -> Axes:
    """Returns {node name: state}; raises BatchMixingError or MutationError naming op, module and line."""
    states: dict[fx.Node, State] = {}
    for node, twin in zip(capture.main.nodes, capture.twin.nodes, strict=True):
        if node.op == "placeholder":
            states[node] = BatchAxis(0) if capture.inputs[node.name][0] == "batch" else None
        elif node.op == "call_function":
            states[node] = _apply(Context(node, twin, states, capture.main.rows, capture.twin.rows))
        elif node.op == "output":
            _check_mutations(capture, node, states)
        else:
            raise BatchMixingError(f"node {node.name} ({node.op}) has no batch rule at {_Where(node)}")
    return {node.name: state for node, state in states.items()}


def _apply(context: Context) -> State:
    node = context.node
    try:
        if node.target is operator.getitem:
            whole = context.state(0)
            return whole[node.args[1]] if isinstance(whole, tuple) else whole
        if not context.touched:
            return None
        name = _name(node.target)
        if name in RULES:
            return RULES[name](context)
        if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
            return RULES["pointwise"](context)
        raise Mixes("this library has no batch rule for it, and assumes nothing. Register one with "
                    "fxperex.analysis.rules.rule, or write the line with other operations")
    except Mixes as refusal:
        raise BatchMixingError(f"{_name(node.target)} at {_Where(node)}: {refusal}. {_inputs(context)}") from None


def _name(target: Any) -> str:
    return str(target.overloadpacket) if isinstance(target, torch._ops.OpOverload) else str(target)


def _inputs(context: Context) -> str:
    told = []
    for arg in context.node.all_input_nodes:
        value, state = arg.meta.get("val"), context.states.get(arg)
        shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        axis = f"batch in dimension {state.dim}" if isinstance(state, BatchAxis) else (
            "already summed over the batch" if isinstance(state, Reduced) else "no batch")
        told.append(f"{arg.name} {shape}: {axis}")
    return "Found: " + "; ".join(told)


def _check_mutations(capture: Capture, output: fx.Node, states: dict[fx.Node, State]) -> None:
    for name, value in zip(capture.mutated, output.args[0], strict=False):  # type: ignore[arg-type]
        if isinstance(value, fx.Node) and states.get(value) is not None:
            raise MutationError(f"the forward pass writes batch statistics into buffer {name!r} at {_Where(value)}. "
                                "That releases data without noise: use .eval(), or a layer without running statistics.")
