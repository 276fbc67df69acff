"""Attacks on the library's own guarantee. If one succeeds beyond the claimed epsilon, the claim is
false.

A canary is an example that moves the sum as far as any can. The engine as shipped runs with it and
without it (`canaries`, `attack`), or once with many canaries, each included by the toss of a coin
(`one_run`). The attack guesses from what was released whether a canary was in. From its hits,
`bounds` computes an epsilon that the run has at least. An audit never proves privacy.
"""

from fxperex.privacy.audit.attack import ATTACKS, TIGHT, Attack, Verdict, audit
from fxperex.privacy.audit.one_run import OneRun, one_run
from fxperex.privacy.audit.setting import Setting

__all__ = ["ATTACKS", "TIGHT", "Attack", "OneRun", "Setting", "Verdict", "audit", "one_run"]
