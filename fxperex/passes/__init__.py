"""One file = one pass over the step graph: before -> after, and its precondition. `verify` runs after them."""

from fxperex.passes.layout import channels_last
from fxperex.passes.recompute import recompute
from fxperex.passes.schedule import Schedule, raise_norms, schedule

__all__ = ["Schedule", "channels_last", "raise_norms", "recompute", "schedule"]
