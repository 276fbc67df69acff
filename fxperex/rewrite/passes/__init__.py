"""The passes over the step graph, in their order. One file = one pass: before -> after.

To add a pass, write its file and its row here. `channels_last` and `inline_custom_ops` are no rows:
the compiler applies them to its own copy of the graph.
"""

from fxperex.rewrite.passes.channels_last import channels_last
from fxperex.rewrite.passes.contract import (
    NO_ORDERS,
    NO_VIEWS,
    NORMS_EARLY,
    ORDER,
    TRACED,
    VALUES,
    Orders,
    Pass,
    apply,
)
from fxperex.rewrite.passes.inline_custom_ops import inline_custom_ops
from fxperex.rewrite.passes.join_views import join_views
from fxperex.rewrite.passes.prepare import remove_dead_code, views_to_reshapes
from fxperex.rewrite.passes.recompute import recompute, recompute_forward
from fxperex.rewrite.passes.remove_redundant import remove_redundant
from fxperex.rewrite.passes.schedule import Schedule, raise_norms, schedule, schedule_norms
from fxperex.rewrite.passes.stack_slices import stack_slices
from fxperex.rewrite.passes.users import graph_pass, user_passes


def keeps_all(orders: Orders) -> bool:
    """True if the plan keeps every forward value for the backward."""
    return not orders.recomputed


def keeps_less(orders: Orders) -> bool:
    """True if the plan computes some forward values a second time."""
    return bool(orders.recomputed)


PASSES: tuple[Pass, ...] = (
    Pass("remove_dead_code", remove_dead_code, moves=True),
    Pass("views_to_reshapes", views_to_reshapes, promises=frozenset({NO_VIEWS})),
    Pass("stack_slices", stack_slices, needs=frozenset({VALUES})),
    Pass("schedule_norms", schedule_norms, needs=frozenset({VALUES}),
         promises=frozenset({NORMS_EARLY, ORDER}), when=keeps_all, moves=True),
    Pass("raise_norms", raise_norms, needs=frozenset({VALUES}), promises=frozenset({NORMS_EARLY}),
         when=keeps_less, moves=True),
    Pass("recompute_forward", recompute_forward, needs=frozenset({VALUES, NORMS_EARLY}),
         promises=frozenset({ORDER}), when=keeps_less, moves=True),
    Pass("join_views", join_views, needs=frozenset({VALUES, NO_VIEWS})),
    Pass("remove_redundant", remove_redundant, needs=frozenset({VALUES, ORDER})),
)
# For the graph of one site, which a trial times: no pass that orders the whole step.
IN_PLACE = tuple(p for p in PASSES if not p.moves)

__all__ = [
    "IN_PLACE", "NORMS_EARLY", "NO_ORDERS", "NO_VIEWS", "ORDER", "PASSES", "TRACED", "VALUES",
    "Orders", "Pass", "Schedule", "apply", "channels_last", "graph_pass", "inline_custom_ops",
    "join_views", "raise_norms", "recompute", "remove_redundant", "schedule", "stack_slices",
    "user_passes"
]
