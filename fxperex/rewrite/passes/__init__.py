"""One file = one pass over the step graph: before -> after, and its precondition. `verify` runs
after them.
"""

from fxperex.rewrite.passes.channels_last import channels_last
from fxperex.rewrite.passes.inline_custom_ops import inline_custom_ops
from fxperex.rewrite.passes.join_views import join_views
from fxperex.rewrite.passes.recompute import recompute
from fxperex.rewrite.passes.remove_redundant import remove_redundant
from fxperex.rewrite.passes.schedule import Schedule, raise_norms, schedule
from fxperex.rewrite.passes.stack_slices import stack_slices

__all__ = [
    "Schedule", "channels_last", "inline_custom_ops", "join_views", "raise_norms", "recompute",
    "remove_redundant", "schedule", "stack_slices"
]
