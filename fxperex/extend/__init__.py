"""The public face for extensions: what a strategy, layer kind, batch rule, clip rule, pass needs.

`fxperex/docs/extending.md` has one complete example of each.
"""

from fxperex.analysis.rules import rule as batch_rule
from fxperex.analysis.state import Context, Mixes, Reduced, State
from fxperex.clipping import Clip
from fxperex.contract import (
    ClosedForm,
    Factored,
    Flat,
    HasGram,
    LayerKind,
    Lookup,
    Sample,
    Strategy,
)
from fxperex.cost_model.sites import read_stored
from fxperex.cost_model.sizes import grads_bytes, inputs_bytes, outputs_bytes
from fxperex.costs import Cost, Work
from fxperex.extend.checks import CheckError, check_kind, check_pass, check_strategy
from fxperex.graph.aten import packet
from fxperex.kernels import by_factors
from fxperex.layers.joined import every_use, factored, gram_kind, kind_of
from fxperex.layers.shapes import clean, scaled, split, unbroadcast
from fxperex.layers.windows import Windowed
from fxperex.numerics.norms import sq_norm
from fxperex.registry import kinds, layer_kind, strategies, strategy
from fxperex.rewrite.passes import graph_pass
from fxperex.sites import BatchAxis, Dims, Site, SiteValues
from fxperex.strategies.stored import Stored

__all__ = [
    "BatchAxis", "CheckError", "Clip", "ClosedForm", "Context", "Cost", "Dims", "Factored",
    "Flat", "HasGram", "LayerKind", "Lookup", "Mixes", "Reduced", "Sample", "Site",
    "SiteValues", "State", "Stored", "Strategy", "Windowed", "Work", "batch_rule", "by_factors",
    "check_kind", "check_pass", "check_strategy", "clean", "every_use", "factored",
    "grads_bytes", "gram_kind", "graph_pass", "inputs_bytes", "kind_of", "kinds", "layer_kind",
    "outputs_bytes", "packet", "read_stored", "scaled", "split", "sq_norm", "strategies",
    "strategy", "unbroadcast"
]
