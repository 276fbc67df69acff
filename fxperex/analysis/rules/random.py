"""Random draws: every example has its own, and no example's values decide which numbers another one
gets.
"""

from __future__ import annotations

import torch

from fxperex.analysis.rules.pointwise import created, meet, pointwise
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, State, arguments


def refuse_shared_draw(context: Context) -> None:
    """For a node that the batch does not reach: it must not draw, for its draw would be every
    example's.
    """
    if torch.Tag.nondeterministic_seeded in getattr(context.node.target, "tags",
                                                    ()) and context.node.users and _draws(context):
        raise Mixes("it draws once for the whole batch, so all examples share what it drew. Draw "
                    "for every example: give it the batch's shape, torch.rand(len(x), ...); "
                    "StochasticDepth has mode='row'")


def _draws(context: Context) -> bool:
    name = str(context.node.target)
    if "scaled_dot_product_attention" in name:
        return bool(arguments(context.node)["dropout_p"])
    return "rrelu" not in name or bool(arguments(context.node)["training"])


@rule("aten.rrelu")
def rrelu(context: Context) -> State:
    if _draws(context):
        raise Mixes("it draws a slope for negative entries alone, so the numbers that an example "
                    "gets depend on the signs of all examples before it; use LeakyReLU, or "
                    ".eval() on it")
    return pointwise(context)


@rule("aten.poisson", "aten.binomial")
def rejection(context: Context) -> State:
    raise Mixes("how many random numbers it uses depends on its input, so the numbers that an "
                "example gets depend on all examples before it; draw outside the model and pass "
                "the result in with the batch")


@rule("aten.feature_dropout", reads="input")
def feature_dropout(context: Context) -> State:
    axis = context.axis("input")
    if axis is not None and axis.dim > 1:
        raise Mixes("it drops whole channels, dimension 1, of all examples at once; put the batch "
                    "first")
    return axis


@rule("aten.bernoulli", reads="self p?")
def bernoulli(context: Context) -> State:
    return meet(context, [context.arg("self"), context.arg("p?")], len(context.out))


@rule("aten.normal", reads="mean std")
def normal(context: Context) -> State:
    return meet(context, [context.arg("mean"), context.arg("std")], len(
        context.out)) or created(context)


@rule("aten.native_dropout", reads="input")
def native_dropout(context: Context) -> State:
    return context.for_each_result(context.axis("input"))
