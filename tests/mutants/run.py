"""Breaks the library in every way of the tables, one at a time, and asks of each whether the
ordinary tests see it.

    python tests/mutants/run.py [--jobs N] [--only WORDS ...] [--record FILE] [--write]

The package and its tests are copied to a temporary folder; a mutant changes one text there, and its
tests are run by a fork of this process, which has imported torch and never the library. A mutant is
killed if one of them fails, and has survived if they pass; a module that no longer imports is
neither.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import of_analysis
import of_clipping
import of_privacy
import of_ranks
import pytest
import torch
from mutant import Mutant

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "fxperex" / "docs" / "mutants.md"
MUTANTS = [*of_clipping.MUTANTS, *of_analysis.MUTANTS, *of_privacy.MUTANTS,
           *of_ranks.MUTANTS]
LIMIT = 300.0  # seconds for one mutant's tests
KILLED, SURVIVED, BROKEN = "killed", "SURVIVED", "BROKEN"
COPIED = ("fxperex", "tests", "pyproject.toml")


@dataclass(frozen=True)
class Fate:
    """What became of a mutant, the test that saw it, and the seconds it took."""

    mutant: Mutant
    verdict: str
    told: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="the mutants with any of these "
                                                                   "in their name")
    parser.add_argument("--record", type=Path, help="verdicts kept there as they come: a run that "
                                                    "was cut off goes on from it")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}, "
                                                             "which needs all verdicts")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests on the "
                                                                   "library as it is first")
    options = parser.parse_args()
    _warm()
    known = json.loads(
        options.record.read_text()) if options.record and options.record.exists() else {}
    chosen = [m for m in MUTANTS if known.get(m.name) != KILLED
              and (options.only is None or any(words in m.name for words in options.only))]

    def report(fate: Fate) -> None:
        known[fate.mutant.name] = fate.verdict
        if options.record:
            options.record.write_text(json.dumps(known, indent=1) + "\n")
        print(f"{fate.verdict:<8} {fate.seconds:4.0f} s  {fate.mutant.name}: "
              f"{fate.told}", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        homes = [_copy(Path(folder) / str(i)) for i in range(options.jobs)]
        if not options.no_baseline:
            verdict, told = Tests(homes[0], tuple(sorted({t
                                                          for m in chosen
                                                          for t in m.tests})), 6 * LIMIT).end()
            if verdict != SURVIVED:
                print(f"the library as it is does not pass the tests: {verdict} {told}")
                return 2
            print("the library as it is passes", flush=True)
        _all(chosen, homes, report)
    asked = [m for m in MUTANTS if m.name in known]
    killed = sum(known[m.name] == KILLED for m in asked)
    print(f"{killed} of {len(asked)} killed")
    if options.write and len(asked) == len(MUTANTS):
        TABLE.write_text(table(known))
    return 0 if killed == len(asked) else 1


def _copy(home: Path) -> Path:
    home.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, home / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, home / name)
    return home


def _all(mutants: list[Mutant], homes: list[Path], report: Callable[[Fate], None]) -> None:
    waiting, free, running = list(reversed(mutants)), list(homes), {}
    while waiting or running:
        while waiting and free:
            trial = Trial(waiting.pop(), free.pop())
            running[trial.tests.process.sentinel] = trial
        for sentinel in wait(list(running),
                             timeout=1.0) or [s for s, t in running.items() if t.tests.late]:
            trial = running.pop(sentinel)  # type: ignore[call-overload]
            report(trial.end())
            free.append(trial.home)


class Trial:
    """A mutant at work in the copy `home`, which is whole again after `end`."""

    def __init__(self, mutant: Mutant, home: Path) -> None:
        self.mutant, self.home = mutant, home
        self._before = mutant.apply(home / "fxperex")
        self.tests = Tests(home, mutant.tests, LIMIT)

    def end(self) -> Fate:
        verdict, told = self.tests.end()
        (self.home / "fxperex" / self.mutant.file).write_text(self._before)
        return Fate(self.mutant, verdict, told, time.monotonic() - self.tests.start)


class Tests:
    """pytest in a fork of this process, on the copy `home`."""

    def __init__(self, home: Path, tests: tuple[str, ...], limit: float) -> None:
        self.start, self.limit, self._told = time.monotonic(), limit, home / "told.txt"
        self.process = multiprocessing.get_context("fork").Process(target=_pytest,
                                                                   args=(home, tests, self._told))
        self.process.start()

    @property
    def late(self) -> bool:
        return time.monotonic() > self.start + self.limit

    def end(self) -> tuple[str, str]:
        """Returns (verdict, the failed test or the end of what was printed), waiting for it."""
        self.process.join(max(0.0, self.start + self.limit - time.monotonic()))
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            return KILLED, f"no end within {self.limit:.0f} s"
        told = self._told.read_text(errors="replace")
        failed = [line.split(" - ")[0] for line in told.splitlines() if line.startswith("FAILED ")]
        if self.process.exitcode == 1 and failed:
            return KILLED, failed[0].removeprefix("FAILED tests/")
        return (SURVIVED,
                "its tests pass") if self.process.exitcode == 0 else (BROKEN,
                                                                      " ".join(told.split())[-300:])


def _pytest(home: Path, tests: tuple[str, ...], told: Path) -> None:
    assert not any(name.partition(".")[0] == "fxperex"
                   for name in sys.modules), "the library was imported before it was changed"
    os.environ |= {
        "FXPEREX_CACHE": str(home / "cache"), "PYTHONPATH": str(home),
        "PYTHONDONTWRITEBYTECODE": "1"
    }
    sys.dont_write_bytecode = True
    os.chdir(home)
    sys.path[0] = str(home)
    with told.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = pytest.main([
        "-x", "-q", "-o", "addopts=", "-m", "not nightly", "-p", "no:cacheprovider", "--tb=line",
        "--show-capture=no", *(f"tests/{t}" for t in tests)
    ])
    sys.stdout.flush()
    os._exit(int(code))


def _warm() -> None:
    """Imports, before any fork, what every test needs of others' packages: torch's exporter alone
    takes seconds.
    """
    torch.set_num_threads(1)
    for name in ("torch.fx.experimental.proxy_tensor", "dp_accounting", "scipy.stats",
                 "scipy.optimize"):
        importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),), strict=False)


def table(verdicts: dict[str, str]) -> str:
    """Returns the page: every mutant, its verdict, and the tests that were asked."""
    rows = [f"| {m.name} | `{m.file}` | {verdicts[m.name]} | "
            f"{', '.join(f'`{t}`' for t in m.tests)} |" for m in MUTANTS]
    killed = sum(verdicts[m.name] == KILLED for m in MUTANTS)
    return "\n".join(["# Mutants", "",
                      f"{killed} of {len(MUTANTS)} deliberate breaks of the library are seen by "
                      "the ordinary tests. Each changes one text in one file "
                      "(`tests/mutants/of_*.py`); the tests named are those that were asked.", "",
                      "Made by `python tests/mutants/run.py --write`.", "",
                      "| broken promise | file | verdict | "
                      "tests |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
