"""Analysis + device profile -> Plan: a strategy for every site, and why not the others."""

from fxperex.plan.byte_sizes import parse_memory
from fxperex.plan.choice import Budget, Choice, Recompute
from fxperex.plan.plan import Plan
from fxperex.planner.planner import make_plan

__all__ = ["Budget", "Choice", "Plan", "Recompute", "make_plan", "parse_memory"]
