"""The rule table: ATen op name -> where the batch axis goes. One file per family of operations."""

from fxperex.analysis.rules.table import RULES, rule  # isort: skip
from fxperex.analysis.rules import (  # noqa: F401
    contract,
    index,
    layers,
    matrices,
    pieces,
    pointwise,
    random,
    reduce,
    view,
    write,
)

__all__ = ["RULES", "rule"]
