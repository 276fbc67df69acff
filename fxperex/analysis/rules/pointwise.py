"""Element by element: the axis passes on, and all operands must agree on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import SUMMED, Context, Mixes, Reduced, State, arguments, join
from fxperex.graph.aten import packet_name
from fxperex.sites import BatchAxis

LINEAR = {
    "aten.add", "aten.sub", "aten.neg", "aten.mul", "aten.div", "aten.clone", "aten.alias",
    "aten._to_copy", "aten.view", "aten.squeeze", "aten.to", "aten.reshape", "aten.sum",
    "aten.mean", "aten.rsub"
}
WHOLE = {torch.int64, torch.int32}  # hold every example's place; a smaller kind wraps or rounds


def meet(context: Context, operands: list[Any], rank: int) -> BatchAxis | None:
    """Returns the axis that broadcast operands share, in the output's dimensions; refuses
    disagreement.
    """
    axes = ((arg, context.axis_of(arg)) for arg in operands if isinstance(arg, fx.Node))
    return join(
        axis and axis.moved(axis.dim + rank - len(context.shape(arg))) for arg, axis in axes)


@rule("pointwise", "aten.where", "aten.masked_fill", "aten.lerp", "aten.addcmul", "aten.addcdiv",
      "aten.hardsigmoid", "aten.hardswish", "aten.gelu", "aten.silu", "aten.mish", "aten.copy",
      "aten.clamp", "aten._prelu_kernel", "aten.__and__", "aten.__or__", "aten.__xor__",
      "aten.selu", "aten.celu", "aten.float_power", "aten.isnan", "aten.isinf", "aten.logaddexp",
      "aten.fmod", "aten.remainder", "aten.hardtanh", "aten.leaky_relu", "aten.elu",
      "aten.softplus", "aten.log_sigmoid", "aten.threshold", "aten.relu6", "aten.softshrink",
      "aten.hardshrink", "aten.square", "aten.type_as", "aten.rsub")
def pointwise(context: Context) -> State:
    states = [context.state_of(n) for n in context.node.all_input_nodes]
    if any(isinstance(s, Reduced) for s in states):
        return reduced_tail(context, states)
    context.refuse_batch_numbers()
    return context.for_each_result(meet(context, context.tensors, len(context.out)))


def reduced_tail(context: Context, states: list[State]) -> State:
    """Linear operations on batch-reduced scalars stay losses; anything else has seen the batch."""
    name = packet_name(context.node.target)
    kinds = {s.kind for s in states if isinstance(s, Reduced)}
    linear = name in LINEAR and not any(isinstance(s, BatchAxis) for s in states)
    linear &= name != "aten.div" or isinstance(context.state_of(context.node.args[0]), Reduced)
    products = sum(isinstance(s, Reduced) for s in states) > 1 and name in {"aten.mul", "aten.div"}
    if not linear or products or context.out != ():
        raise Mixes(SUMMED)
    if arguments(context.node).get("alpha") != arguments(context.twin).get("alpha"):
        context.refuse_batch_numbers()
    if len(kinds) > 1:
        raise Mixes("it adds a mean over the batch to a sum over the batch; use one reduction for "
                    "all parts of a loss")
    return Reduced(kinds.pop())


def created(context: Context) -> BatchAxis | None:
    """A batch-sized tensor made from nothing, all rows of its one batch-sized dimension alike; None
    if it has none."""
    return written(context, 1)


def written(context: Context, size: int, times: int | None = None) -> BatchAxis | None:
    """A batch-sized dimension filled with `size` entries that have no batch, `times` each (once and
    then all again, if None); fresh if there is but one entry. None if no dimension is
    batch-sized."""
    scaling = context.scaling
    if not scaling:
        return None
    full = context.out[scaling[0]]
    if len(scaling) > 1 or full % context.rows:
        raise Mixes(f"it makes a tensor {list(context.out)} in which the batch size appears more "
                    "than once or not as a factor: a table of pairs of examples")
    if size > 1 and times is not None:
        return BatchAxis(scaling[0], size, times // context.rows)
    return BatchAxis(scaling[0], 1, full // context.rows, fresh=size == 1)


@rule("aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.rand", "aten.randn",
      "aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty", "aten.randint",
      "aten.scalar_tensor", reads="fill_value? low? high? s?")
def creation(context: Context) -> State:
    try:
        context.refuse_batch_numbers("fill_value", "low", "high", "s")
    except Mixes:
        raise Mixes("it fills a tensor with the batch size, so a gradient would depend on how "
                    "many examples there are") from None
    return created(context)


@rule("aten.arange", reads="start? end step?")
def arange(context: Context) -> State:
    state = created(context)
    if state is None:
        context.refuse_batch_numbers()
        return None
    numbers = [context.arg("start?", 0), context.arg("end"), context.arg("step?", 1)]
    if state.inner != 1 or numbers != [0, context.rows, 1]:
        raise Mixes("it counts over a multiple of the batch; count over the positions of one "
                    "example")
    return _places(context, BatchAxis(state.dim, rows=True))


def _places(context: Context, axis: BatchAxis) -> BatchAxis:
    dtype = context.node.meta["val"].dtype
    if axis.rows and dtype not in WHOLE:
        raise Mixes("it turns an example's place in the batch, torch.arange(len(x)), into "
                    f"{dtype}, which does not hold every place; keep it torch.long, and use it as "
                    "an index of the batch dimension only")
    return axis


@rule("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.rand_like",
      "aten.randn_like", "aten.fill", "aten.randint_like", "aten.uniform", "aten.normal_functional",
      "aten.exponential", "aten.log_normal", "aten.cauchy", "aten.geometric",
      reads="self value? high?")
def like(context: Context) -> State:
    if any(context.axis(name) is not None for name in ("value?", "high?")):
        raise Mixes("it fills a tensor with a value of the batch")
    axis = context.axis("self")
    return axis and BatchAxis(*axis.place, fresh=axis.fresh)


@rule("aten.clone", "aten.detach", "aten.alias", "aten._to_copy", "aten.to", "aten.contiguous",
      "aten.lift_fresh_copy", "aten.dropout", "aten.alpha_dropout", "aten.lift_fresh",
      "aten.positive", reads="self|input")
def same(context: Context) -> State:
    state = context.state("self|input")
    return _places(context, state) if isinstance(state, BatchAxis) else state
