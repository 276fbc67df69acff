"""Two proofs on a captured graph: examples never mix, and every parameter has its sites."""

from fxperex.analysis.batch_axis import Axes, prove
from fxperex.analysis.losses import per_example_loss
from fxperex.analysis.sites import Analysis, find_sites

__all__ = ["Analysis", "Axes", "find_sites", "per_example_loss", "prove"]
