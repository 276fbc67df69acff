"""Element by element: the axis passes on, and all operands must agree on it."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, Reduced, State
from fxperex.registry import BatchAxis

LINEAR = {"aten.add", "aten.sub", "aten.neg", "aten.mul", "aten.div", "aten.clone", "aten.alias", "aten._to_copy",
          "aten.view", "aten.squeeze", "aten.to", "aten.reshape", "aten.sum", "aten.mean", "aten.rsub"}


def meet(context: Context, operands: list[Any], rank: int) -> BatchAxis | None:
    """Returns the axis that broadcast operands share, in the output's dimensions; refuses disagreement."""
    found: BatchAxis | None = None
    for arg in operands:
        state = context.states.get(arg) if isinstance(arg, fx.Node) else None
        if isinstance(state, Reduced):
            raise Mixes("an input was already summed or averaged over the batch, so every example would see all")
        if not isinstance(state, BatchAxis):
            continue
        axis = state.moved(state.dim + rank - len(context.shape(arg)))
        found = axis if found is None else agree(found, axis)
    return found


def agree(one: BatchAxis, two: BatchAxis) -> BatchAxis:
    if one.place == two.place:
        return BatchAxis(*one.place, fresh=one.fresh and two.fresh)
    if one.fresh and one.dim == two.dim:
        return two
    if two.fresh and one.dim == two.dim:
        return one
    raise Mixes(f"one input has the examples in dimension {one.dim}, the other in {two.dim} "
                f"(or in another order inside it): every pair of examples would meet")


@rule("pointwise", "aten.where", "aten.masked_fill", "aten.lerp", "aten.addcmul", "aten.addcdiv", "aten.hardsigmoid",
      "aten.hardswish", "aten.gelu", "aten.silu", "aten.mish", "aten.copy", "aten.clamp", "aten._prelu_kernel", "aten.__and__",
      "aten.__or__", "aten.__xor__", "aten.selu", "aten.celu", "aten.float_power", "aten.isnan", "aten.isinf",
      "aten.logaddexp", "aten.fmod", "aten.remainder", "aten.hardtanh", "aten.leaky_relu", "aten.elu", "aten.softplus",
      "aten.log_sigmoid", "aten.threshold", "aten.relu6", "aten.softshrink", "aten.hardshrink", "aten.square", "aten.type_as",
      "aten.rsub")
def pointwise(context: Context) -> State:
    states = [context.states.get(n) for n in context.node.all_input_nodes]
    if any(isinstance(s, Reduced) for s in states):
        return reduced_tail(context, states)
    context.refuse_batch_numbers()
    operands = [a for a in pytree.tree_leaves((context.node.args, context.node.kwargs)) if isinstance(a, fx.Node)]
    return meet(context, operands, len(context.out)) or created(context)


def reduced_tail(context: Context, states: list[State]) -> State:
    """Linear operations on batch-reduced scalars stay losses; anything else has seen the batch."""
    name = str(context.node.target.overloadpacket)  # type: ignore[union-attr]
    kinds = {s.kind for s in states if isinstance(s, Reduced)}
    linear = name in LINEAR and not any(isinstance(s, BatchAxis) for s in states)
    linear &= name != "aten.div" or isinstance(context.state(0), Reduced)
    products = sum(isinstance(s, Reduced) for s in states) > 1 and name in {"aten.mul", "aten.div"}
    if not linear or products or context.out != ():
        raise Mixes("an input was already summed or averaged over the batch, so every example would see all")
    if len(kinds) > 1:
        raise Mixes("it adds a mean over the batch to a sum over the batch; use one reduction for all parts of a loss")
    return Reduced(kinds.pop())


def created(context: Context) -> BatchAxis | None:
    """A batch-sized tensor made from nothing: exchangeable rows in its one batch-sized dimension."""
    scaling = context.scaling
    if not scaling:
        return None
    size = context.out[scaling[0]]
    if len(scaling) > 1 or size % context.rows:
        raise Mixes(f"it makes a tensor {list(context.out)} in which the batch size appears more than once "
                    "or not as a factor: a table of pairs of examples")
    return BatchAxis(scaling[0], 1, size // context.rows, fresh=True)


@rule("aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.rand", "aten.randn", "aten.new_zeros",
      "aten.new_ones", "aten.new_full", "aten.new_empty", "aten.randint", "aten.scalar_tensor")
def creation(context: Context) -> State:
    name = str(context.node.target)
    if "full" in name or "randint" in name or "scalar_tensor" in name:
        at, other = [_values(n) for n in (context.node, context.twin)]
        if at != other:
            raise Mixes("it fills a tensor with the batch size, so a gradient would depend on how many examples there are")
    return created(context)


def _values(node: fx.Node) -> list[Any]:
    return [a for a in node.args if isinstance(a, int | float)]


@rule("aten.arange")
def arange(context: Context) -> State:
    made = created(context)
    if made is None:
        context.refuse_batch_numbers()
        return None
    numbers = [a for a in context.node.args if isinstance(a, int | float)]
    if made.inner != 1 or numbers not in ([context.rows], [0, context.rows], [0, context.rows, 1]):
        raise Mixes("it counts over a multiple of the batch; count over the positions of one example")
    return BatchAxis(made.dim, rows=True)


@rule("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.rand_like", "aten.randn_like",
      "aten.fill", "aten.randint_like", "aten.uniform", "aten.normal_functional", "aten.exponential",
      "aten.log_normal", "aten.cauchy", "aten.geometric")
def like(context: Context) -> State:
    if context.axis(1) is not None:
        raise Mixes("it fills a tensor with a value of the batch")
    axis = context.axis(0)
    return BatchAxis(*axis.place, fresh=axis.fresh) if axis else created(context)


@rule("aten.clone", "aten.detach", "aten.alias", "aten._to_copy", "aten.to", "aten.contiguous", "aten.lift_fresh_copy",
      "aten.dropout", "aten.alpha_dropout", "aten.lift_fresh", "aten.positive")
def same(context: Context) -> State:
    return context.state(0)
