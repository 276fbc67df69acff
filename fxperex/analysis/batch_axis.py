"""Capture -> where the example axis is in every tensor, or BatchMixingError.

Abstract interpretation. A tensor's state is None (the batch cannot reach it), a `BatchAxis`, or
`Reduced`: a scalar that sums or averages over the batch, which only a loss may be;
`fxperex.analysis.state` says what each promises. Every rule follows positions, never sizes. An
operation without a rule is an error: nothing is assumed.

Theorem. If every rule holds and the loss has the batch axis at 0, example i's loss does not depend
on example j's rows, hence neither does its gradient: one example moves the sum of clipped gradients
by at most the clipping bound.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxperex.analysis.rules import RULES
from fxperex.analysis.rules.random import refuse_shared_draw
from fxperex.analysis.rules.table import READS, Rule
from fxperex.analysis.state import SUMMED, Context, Mixes, Reduced, State, settled
from fxperex.capture.program import Capture, module_path
from fxperex.capture.source_lines import source_line
from fxperex.errors import BatchMixingError, ConfigError, MutationError
from fxperex.graph.aten import packet_name
from fxperex.sites import BatchAxis

Axes = dict[str, Any]

# Operations that may take the batch size as a number: it says a size, and the result's size is
# checked.
SIZED = {
    f"aten.{op}"
    for op in ("view", "reshape", "_unsafe_view", "_reshape_copy", "view_copy", "unflatten",
               "expand", "broadcast_to", "repeat", "repeat_interleave", "slice", "narrow", "arange",
               "zeros", "ones", "empty", "rand", "randn", "new_zeros", "new_ones", "new_empty",
               "full", "new_full", "randint", "split", "split_with_sizes", "slice_scatter", "add",
               "sub", "mul", "div", "rsub")
}
# Operations that may see `arange(len(x))`: they move it, or index the batch with it.
COUNTED = {
    f"aten.{op}"
    for op in ("index", "index_put", "_unsafe_index", "view", "reshape", "_unsafe_view",
               "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "_to_copy", "to",
               "clone", "alias", "detach",
               "contiguous", "lift_fresh_copy", "zeros_like", "ones_like", "new_zeros", "new_ones",
               "flatten", "unflatten", "slice")
}


@dataclass(frozen=True)
class _Where:
    node: fx.Node

    def __str__(self) -> str:
        path = module_path(self.node)
        return f"{source_line(self.node)}" + (f" (module {path})" if path else "")


def prove(capture: Capture) -> Axes:
    """Returns {node name: state}; raises BatchMixingError or MutationError naming op, module and
    line.

    The proof is made at both sizes of the capture and must come out the same: what holds only
    because some constant happens to equal the number of examples (`x.view(4, -1)` at a batch of 4)
    holds at one alone.
    """
    states: dict[fx.Node, State] = {}
    twins: dict[fx.Node, State] = {}
    rows, twin_rows = capture.main.rows, capture.twin.rows
    owned: set[fx.Node] = set()  # parameters, and what is made of them alone
    for node, twin in zip(capture.main.nodes, capture.twin.nodes, strict=True):
        if node.op == "placeholder":
            kind = capture.inputs[node.name][0]
            states[node] = twins[twin] = BatchAxis(0) if kind == "batch" else None
            owned.update([node] if kind == "parameter" else [])
        elif node.op == "call_function":
            copies = packet_name(node.target).startswith("aten.new_")
            entered = not copies and any(n in owned for n in node.all_input_nodes)
            context = Context(node, twin, states, rows, twin_rows, entered)
            states[node] = _apply(context)
            twins[twin] = _apply(Context(twin, node, twins, twin_rows, rows, entered))
            owned.update([node] if entered and states[node] is None else [])
            if states[node] != twins[twin]:
                raise _refusal(context, "the examples end in another place with one example more")
        elif node.op == "output":
            _check_mutations(capture, node, states)
        else:
            raise BatchMixingError(f"node {node.name} ({node.op}) has no batch rule at "
                                   f"{_Where(node)}")
    return {node.name: state for node, state in states.items()}


def _apply(context: Context) -> State:
    node = context.node
    try:
        if node.target is operator.getitem:
            base = context.state_of(node.args[0])
            return base[node.args[1]] if isinstance(base, tuple) else base
        name = packet_name(node.target)
        if name not in SIZED:
            context.refuse_batch_numbers()
        if not context.touched:
            context.refuse_batch_numbers()
            refuse_shared_draw(context)
            return None
        _check_inputs(context, name)
        rule = _rule(node, name)
        context.reads = READS.get(name, READS["pointwise"])
        state = _asked(rule, context)
        _check_output(context, name, state)
        return settled(state) if context.site else state
    except Mixes as refusal:
        raise _refusal(context, str(refusal)) from None


def _asked(rule: Rule, context: Context) -> State:
    try:
        return rule(context)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        code = getattr(rule, "__code__", None)
        place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
        raise ConfigError(f"the batch rule of {packet_name(context.node.target)}{place} failed at "
                          f"{_Where(context.node)}: {type(error).__name__}: {error}") from error


def _rule(node: fx.Node, name: str) -> Rule:
    if name in RULES:
        return RULES[name]
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        return RULES["pointwise"]
    raise Mixes("this library has no batch rule for it, and assumes nothing. Register one with "
                "fxperex.extend.batch_rule, or write the line with other operations")


def _check_inputs(context: Context, name: str) -> None:
    states = map(context.states.get, context.node.all_input_nodes)
    counts = any(isinstance(s, BatchAxis) and s.rows for s in states)
    if counts and name not in COUNTED:
        raise Mixes("it computes with an example's place in the batch, torch.arange(len(x)), "
                    "which changes with every other example; use it as an index of the batch "
                    "dimension only")


def _check_output(context: Context, name: str, state: State) -> None:
    """What every rule must leave true: the batch is where the sizes say, and nothing of it is
    forgotten.
    """
    value, twin_value = context.node.meta["val"], context.twin.meta["val"]
    if isinstance(value, torch.Tensor):
        value, twin_value, state = [value], [twin_value], (state,)  # type: ignore[assignment]
    states = state if isinstance(state, tuple) else (state,)
    for tensor, twin, place in zip(value, twin_value, states, strict=True):
        scaling = [
            d for d, (a, b) in enumerate(zip(tensor.shape, twin.shape, strict=True)) if a != b
        ]
        if scaling != ([place.dim] if isinstance(place, BatchAxis) else []) or (
                isinstance(place, BatchAxis)
                and tensor.shape[place.dim] != place.outer * context.rows * place.inner):
            raise Mixes(f"its result {list(tensor.shape)} has no fixed place for each example")
    inputs = [context.states.get(n) for n in context.node.all_input_nodes]
    if any(isinstance(s, Reduced)
           for s in inputs) and not all(isinstance(s, Reduced) for s in states):
        raise Mixes(SUMMED)
    if all(s is None for s in states) and any(s is not None
                                              for s in inputs) and not name.startswith("aten.new_"):
        raise Mixes("its result has lost the batch")


def _refusal(context: Context, why: str) -> BatchMixingError:
    node = context.node
    name = packet_name(node.target)
    return BatchMixingError(f"{name} at {_Where(node)}: {why}. {_inputs(context)}")


def _inputs(context: Context) -> str:
    described = []
    for arg in context.node.all_input_nodes:
        value, state = arg.meta.get("val"), context.states.get(arg)
        shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        axis = f"batch in dimension {state.dim}" if isinstance(state, BatchAxis) else (
            "already summed over the batch" if isinstance(state, Reduced) else "no batch")
        described.append(f"{arg.name} {shape}: {axis}")
    return "Found: " + "; ".join(described)


def _check_mutations(capture: Capture, output: fx.Node, states: dict[fx.Node, State]) -> None:
    for name, value in zip(capture.mutated, output.args[0], strict=False):  # type: ignore[arg-type]
        if isinstance(value, fx.Node) and states.get(value) is not None:
            raise MutationError(f"the forward pass writes batch statistics into buffer {name!r} "
                                f"at {_Where(value)}. That releases data without noise: use "
                                ".eval(), or a layer without running statistics.")
