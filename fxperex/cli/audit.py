"""`fxperex audit`: attacks on the library's own guarantee; each lower bound of epsilon beside the
claimed one.
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fxperex.cli._progress import Report, progress
from fxperex.errors import ConfigError, PrivacyError
from fxperex.plan.table import aligned
from fxperex.privacy.audit import ATTACKS, TIGHT, OneRun, Setting, Verdict, audit, one_run
from fxperex.privacy.audit.one_run import dirac
from fxperex.privacy.versions import versions

HELP = ("attack the guarantee itself: canaries in runs of the engine, epsilon's lower bound "
        "beside the claim")
HEAD = ("attack", "runs a side", "claimed epsilon", "at least", "bound", "verdict")
ONE_RUN = "one run"


def options(parser: argparse.ArgumentParser) -> None:
    default = Setting()
    parser.add_argument("--runs", type=int, default=default.runs,
                        help="runs with and as many without, default %(default)s")
    parser.add_argument("--steps", type=int, default=default.steps,
                        help="of one run, default %(default)s")
    parser.add_argument("--noise", type=float, default=default.noise_multiplier,
                        help="noise multiplier, default %(default)s")
    parser.add_argument("--delta", type=float, default=default.delta, help="default %(default)s")
    parser.add_argument("--confidence", type=float, default=default.confidence,
                        help="of each bound, default %(default)s")
    parser.add_argument("--canaries", type=int, default=1000,
                        help="of the one-run audit, default %(default)s")
    parser.add_argument("--repeat", type=int, default=1,
                        help=f"times that the attack {TIGHT!r} runs, default %(default)s")
    parser.add_argument("--only", nargs="+", metavar="ATTACK",
                        help=f"of {', '.join([*ATTACKS, ONE_RUN])}")
    parser.add_argument("--seed", type=int, help="for repeatable runs; without it the system draws "
                                                 "the engine's keys")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the verdicts there")


def run(options: argparse.Namespace) -> None:
    setting = Setting(options.runs, options.steps, options.noise, delta=options.delta,
                      confidence=options.confidence, seed=options.seed)
    names = _names(options)
    verdicts: list[Verdict] = []
    with progress("auditing") as report:
        for i, name in enumerate(n for n in names if n != ONE_RUN):
            verdicts.append(_attack(name, setting, i, report))
        single_run = _one_run(options, report) if ONE_RUN in names else None
    rows = [*map(_row, verdicts), *([_one_row(single_run)] if single_run else [])]
    print("\n".join(aligned(HEAD, rows)))
    if options.json is not None:
        _write(options.json, setting, verdicts, single_run)
    failed = [v.attack for v in verdicts if not v.holds]
    if single_run and not single_run.holds:
        failed.append(ONE_RUN)
    if failed:
        raise PrivacyError(f"the claimed epsilon is refuted by: {', '.join(failed)}. At "
                           f"{options.confidence:g} confidence one bound in some hundred passes "
                           "by chance; run again with more --runs, and report it if it stays")


def _names(options: argparse.Namespace) -> list[str]:
    names = [*ATTACKS, ONE_RUN]
    unknown = [n for n in options.only or () if n not in names]
    if unknown:
        raise ConfigError(f"unknown attack {unknown[0]!r}; valid: {', '.join(names)}")
    if options.repeat < 1:
        raise ConfigError(f"--repeat must be above 0; got {options.repeat}")
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"the verdicts cannot be written to {options.json}: there is no folder "
                          f"{options.json.parent}")
    chosen = options.only or names
    return [TIGHT] * (options.repeat if TIGHT in chosen else 0) + [n for n in chosen if n != TIGHT]


def _attack(name: str, setting: Setting, number: int, report: Report) -> Verdict:
    if setting.seed is not None:
        setting = Setting(**asdict(setting) | {"seed": setting.seed + number})
    return audit(name, setting, report=lambda done, total: report(done, total, name))


def _one_run(options: argparse.Namespace, report: Report) -> OneRun:
    private, public, canaries = dirac(options.canaries)
    return one_run(private, torch.optim.SGD(private.parameters.values(), lr=1.0), public, canaries,
                   epochs=options.steps, noise_multiplier=options.noise, delta=options.delta,
                   confidence=options.confidence, seed=options.seed,
                   report=lambda done, total: report(done, total, ONE_RUN))


def _row(v: Verdict) -> tuple[str, ...]:
    return (v.attack, str(v.runs), f"{v.claimed:.3f}", f"{v.lower:.3f}",
            f"{v.method}, {v.confidence:.0%}", _word(v.holds))


def _one_row(v: OneRun) -> tuple[str, ...]:
    return (f"{ONE_RUN}, {v.canaries} canaries", "1", f"{v.claimed:.3f}", f"{v.lower:.3f}",
            f"{v.correct} of {v.guessed} guesses, {v.confidence:.0%}", _word(v.holds))


def _word(holds: bool) -> str:
    return "holds" if holds else "REFUTED"


def _write(path: Path, setting: Setting, verdicts: list[Verdict], one: OneRun | None) -> None:
    body: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "versions": versions(),
        "settings": asdict(setting), "attacks": [asdict(v) | {"holds": v.holds} for v in verdicts]
    }
    if one is not None:
        facts = {k: v for k, v in vars(one).items() if k not in ("present", "absent")}
        body["one run"] = facts | {"holds": one.holds}
    try:
        path.write_text(json.dumps(body, indent=1) + "\n")
    except OSError as e:
        raise ConfigError(f"the verdicts cannot be written to {path}: {e}") from e
