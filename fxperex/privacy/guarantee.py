"""The claim in words and as JSON: what holds for whom, what it rests on, what it does not cover."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from html import escape
from typing import Any

from fxperex.privacy import accountant
from fxperex.privacy.run import PrivateRun
from fxperex.privacy.sampling.units import Units
from fxperex.privacy.versions import versions

RELATIONS = {"add-or-remove": "one unit more or less",
             "zero-out": "one unit replaced by nothing, their number public",
             "replace": "one unit exchanged for another"}
RESTS_ON = (
    "every step drew its rows by the sampler named here and by nothing else",
    "the ledger is whole and was not put back to an older copy",
    "the operating system's random source is good and the run's secret stayed secret",
    "nothing else derived from the data was released: losses, norms, factors, batch sizes and "
    "errors are not private",
    "no other engine spent on the same rows: what several spend adds up",
)
ROWS = ("one row of the data set is one unit: a unit of several rows is not bounded "
        "(fxperex.privacy.Units bounds it)")
RANKS = ("{count} processes shared every step: the network between them is trusted, as sums "
         "without noise and the secret pass through it")
UNITS = ("one unit is all rows under one id, and the ids are right: {count} units, of each at "
         "most {most} rows take part")
CUT = ("no records were cut off the ledger's end: a cut before the last checkpoint, which was at "
       "step {step}, is noticed; a later one only by a counter kept elsewhere (counter=)")
LEFT_OUT = ("rows that the step raised for were left out of {count} steps: the parameters are as "
            "private as ever, but errors, run time and ledger tell that there were some")
NOT_COVERED = (
    "choosing hyper-parameters, stopping early or choosing a checkpoint by looking at private data",
    "statistics of the data used to prepare it (means, vocabularies), unless they came from "
    "public data",
    "timing and other side channels of the machine",
)
SUMS = ("rounding of the sum itself: each example adds at most the bound, but floating-point "
        "addition is not associative, so one example can move how the others' sum is rounded "
        "(arXiv 2207.10635)")
FLOATING_POINT = ("floating-point attacks on the noise (Mironov 2012): the noise is float64 on no "
                  "grid; noise=\"discrete\" has one")
COINS = ("a machine whose exp() is wrong by more than a relative 2^-41: the discrete noise is "
         "exactly the discrete Gaussian with any better one")
FAST = "an attacker who predicts Philox, which is not cryptographic"
SEEDED = ("anyone who knows or guesses the seed: the noise can be subtracted. This run is for "
          "science only")


@dataclass(frozen=True, repr=False)
class Guarantee:
    """`str()` is for people; `facts` and `to_json()` hold the same and more."""

    facts: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(self.facts, indent=1)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        f = self.facts
        s, m, account = f["sampler"], f["mechanism"], f["account"]
        lines = [
            f"The parameters released so far are ({f['epsilon']:.4g}, "
            f"{f['delta']:g})-differentially private for data sets that differ by "
            f"{RELATIONS[m['relation']]} ({m['relation']}).",
            f"  steps      {account['steps taken']} of {account['steps planned']} taken, "
            f"{account['units debited']} units debited ({account['extra steps']} extra after "
            f"crashes), by {account['method']} from the sampler's own event",
            f"  sampler    {s['sampler']}, " + ", ".join(
                f"{k} {_text(v)}" for k, v in s.items() if k != "sampler"),
            f"  clip       {m['clip']}: one unit moves the sum by at most "
            f"{m['sensitivity']:.9g}",
            f"  noise      {m['noise']}, standard deviation {m['standard deviation']:.6g} = "
            f"multiplier {m['noise multiplier']:.6g} x bound {m['bound on one unit']:.9g}; "
            f"sums divided by the constant {m['divisor']:g}", f"  randomness {f['randomness']}",
            f"  isolation  {f['isolation']['proof']}; graph {f['isolation']['graph'][:16]}",
            "  rests on:", *(f"    - {x}" for x in f["rests on"]), "  not covered:",
            *(f"    - {x}" for x in f["not covered"])
        ]
        return "\n".join(lines)


def guarantee(run: PrivateRun) -> Guarantee:
    """Returns the guarantee of a run as far as it has come. Raises ConfigError."""
    mechanism, private, books = run.mechanism, run.private, run.books
    spent = accountant.bound(run.sampler, run.noise_multiplier, run.delta, books.units,
                             run.account, mechanism.relation)
    graph = private.capture.print_readable(False)
    return Guarantee({
        "epsilon": spent.epsilon, "delta": run.delta, "mechanism": mechanism.describe(),
        "sampler": run.sampler.describe(), "account": {
            "method": spent.method, "asked": run.account, "steps taken": run.steps_done,
            "steps planned": run.sampler.steps, "units debited": books.units,
            "units allowed": books.limit, "extra steps": books.extra,
            "steps with rows left out": books.shortened
        }, "randomness": run.randomness.description, "ledger": {
            "folder": str(run.folder) if run.folder else None,
            "records": len(books.ledger.records), "head": books.ledger.head,
            "external counter": books.ledger.counter is not None
        }, "isolation": {
            "proof": "every operation of the captured graph was proved not to mix "
            "examples", "graph": hashlib.sha256(graph.encode()).hexdigest()
        }, "strategies": {c.site.name: c.strategy
                          for c in private.plan.choices}, "backend": private.backend,
        "versions": versions(), "rests on": [_unit(run), *RESTS_ON, *_ranks(run),
                                             *_cut(run)], "not covered": _not_covered(run)
    })


def _unit(run: PrivateRun) -> str:
    data = run.rows.dataset
    return UNITS.format(count=len(data), most=data.most) if isinstance(data, Units) else ROWS


def _not_covered(run: PrivateRun) -> list[str]:
    weakness = FAST if run.randomness.seed is None else SEEDED
    randomness = [] if run.randomness.secure else [weakness]
    count = run.books.shortened
    left_out = [LEFT_OUT.format(count=count)] if count else []
    drawn = COINS if run.mechanism.grid else FLOATING_POINT
    return [*randomness, *left_out, drawn, SUMS, *NOT_COVERED]


def _ranks(run: PrivateRun) -> list[str]:
    """Returns what a run of several processes rests on besides."""
    count = run.private.ranks.size
    return [RANKS.format(count=count)] if count > 1 else []


def _cut(run: PrivateRun) -> list[str]:
    """Returns what a ledger in a file cannot notice by itself."""
    ledger = run.books.ledger
    if ledger.path is None or ledger.counter is not None:
        return []
    step = max((r["step"] for r in ledger.of("checkpoint")), default=0)
    return [CUT.format(step=step)]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
