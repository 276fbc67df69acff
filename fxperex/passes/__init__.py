"""One file = one pass over the step graph: before -> after, and its precondition. `verify` runs after them."""

from fxperex.passes.layout import channels_last
from fxperex.passes.plainly import plainly
from fxperex.passes.recompute import recompute
from fxperex.passes.schedule import Schedule, raise_norms, schedule
from fxperex.passes.stack import stack_slices
from fxperex.passes.tidy import tidy
from fxperex.passes.views import join_views

__all__ = ["Schedule", "channels_last", "join_views", "plainly", "raise_norms", "recompute", "schedule", "stack_slices", "tidy"]
