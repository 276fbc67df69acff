"""Attacks on the library's own guarantee: if one succeeds beyond the claimed epsilon, the claim is
false.

A canary is the example that moves the sum as far as any can. The engine as shipped is run with it
and without it (`canaries`, `attack`), or once with many, each in by the toss of a coin (`one_run`);
from how well the canary can be told from what was released, `bounds` gives an epsilon that the run
certainly has. An audit never proves privacy.
"""

from fxperex.privacy.audit.attack import ATTACKS, TIGHT, Attack, Verdict, audit
from fxperex.privacy.audit.one_run import OneRun, one_run
from fxperex.privacy.audit.setting import Setting

__all__ = ["ATTACKS", "TIGHT", "Attack", "OneRun", "Setting", "Verdict", "audit", "one_run"]
