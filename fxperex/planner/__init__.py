"""Analysis + device profile -> Plan: a strategy for every site, and why not the others."""

from fxperex.planner.make import make_plan
from fxperex.planner.plan import Budget, Choice, Plan, Recompute
from fxperex.planner.sizes import parse_memory

__all__ = ["Budget", "Choice", "Plan", "Recompute", "make_plan", "parse_memory"]
