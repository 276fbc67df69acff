"""Clipping rules: from one example's gradient norms to its factors, and the sensitivity that noise
must cover.

A rule sees the norms `[K]` of the parameter groups it asked for, of one example at a time: `apply`
maps it over the examples with `torch.func.vmap`, so no rule can let one example move another's
factor. Whatever a rule answers, `apply` holds `|clipped gradient| <= sensitivity`: a declared bound
is enforced inside the step graph, not trusted.
"""

from fxperex.clipping.adaptive import Adaptive
from fxperex.clipping.flat import Automatic, Flat, Normalised, as_rule
from fxperex.clipping.function import PROBES, Function
from fxperex.clipping.groups import PerGroup, PerLayer
from fxperex.clipping.rule import LARGEST_FACTOR, Clip

__all__ = ["LARGEST_FACTOR", "PROBES", "Adaptive", "Automatic", "Clip", "Flat", "Function",
           "Normalised", "PerGroup", "PerLayer", "as_rule"]
