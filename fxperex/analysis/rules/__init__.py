"""The rule table: ATen op name -> where the batch axis goes. One file per family of operations."""

from fxperex.analysis.rules.table import RULES, rule  # isort: skip
from fxperex.analysis.rules import contract, index, layers, pointwise, random, reduce, view  # noqa: F401

__all__ = ["RULES", "rule"]
