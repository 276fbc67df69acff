"""Breaks the library in every way of the tables, one at a time, and asks of each whether the ordinary tests see it.

    python tests/mutants/run.py [--jobs N] [--only WORDS] [--write]

The package and its tests are copied to a temporary folder; a mutant changes one text there, and its tests are run. A
mutant is killed if one of them fails, and has survived if they pass; a module that no longer imports is neither.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import of_analysis
import of_clipping
import of_privacy
from mutant import Mutant

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "fxperex" / "docs" / "mutants.md"
MUTANTS = [*of_clipping.MUTANTS, *of_analysis.MUTANTS, *of_privacy.MUTANTS]
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", help="the mutants with these words in their name")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests on the library as it is first")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only is None or options.only in m.name]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        homes = [_copy(Path(folder) / str(i)) for i in range(options.jobs)]
        if not options.no_baseline:
            verdict, told = run_tests(homes[0], tuple(sorted({t for m in chosen for t in m.tests})), 6 * LIMIT)
            if verdict != SURVIVED:
                print(f"the library as it is does not pass the tests: {verdict} {told}")
                return 2
            print("the library as it is passes", flush=True)
        fates = _all(chosen, homes, lambda done, fate: print(
            f"[{done}/{len(chosen)}] {fate.verdict:<8} {fate.seconds:4.0f} s  {fate.mutant.name}"
            + ("" if fate.verdict == KILLED else f": {fate.told}"), flush=True))
    killed = sum(f.verdict == KILLED for f in fates)
    print(f"{killed} of {len(fates)} killed")
    if options.write:
        TABLE.write_text(table(fates))
    return 0 if killed == len(fates) else 1


def _copy(home: Path) -> Path:
    home.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, home / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, home / name)
    return home


def _all(mutants: list[Mutant], homes: list[Path], report: Callable[[int, Fate], None]) -> list[Fate]:
    free: queue.Queue[Path] = queue.Queue()
    for home in homes:
        free.put(home)
    done: list[Fate] = []

    def one(mutant: Mutant) -> Fate:
        home = free.get()
        try:
            fate = try_mutant(home, mutant)
        finally:
            free.put(home)
        done.append(fate)
        report(len(done), fate)
        return fate

    with ThreadPoolExecutor(len(homes)) as pool:
        return list(pool.map(one, mutants))


def try_mutant(home: Path, mutant: Mutant) -> Fate:
    """Returns the Fate of `mutant` in the copy `home`, which is whole again afterwards."""
    start, file = time.monotonic(), home / "fxperex" / mutant.file
    before = mutant.apply(home / "fxperex")
    try:
        verdict, told = run_tests(home, mutant.tests, LIMIT)
    finally:
        file.write_text(before)
    return Fate(mutant, verdict, told, time.monotonic() - start)


def run_tests(home: Path, tests: tuple[str, ...], limit: float) -> tuple[str, str]:
    """Returns (verdict, the failed test or the end of what was printed) of pytest in `home`, which imports its own copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-o", "addopts=", "-m", "not nightly", "-p", "no:cacheprovider",
               "--tb=line", "--show-capture=no", *(f"tests/{t}" for t in tests)]
    own = {"PYTHONPATH": str(home), "PYTHONDONTWRITEBYTECODE": "1", "FXPEREX_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=home, env={**os.environ, **own}, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return KILLED, f"no end within {limit:.0f} s"
    failed = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode == 1 and failed:
        return KILLED, failed[0].removeprefix("FAILED tests/")
    return (SURVIVED, "its tests pass") if done.returncode == 0 else (BROKEN, done.stdout[-400:] + done.stderr[-400:])


def table(fates: list[Fate]) -> str:
    """Returns the page: every mutant, the test that saw it."""
    rows = [f"| {f.mutant.name} | `{f.mutant.file}` | {f.verdict} | `{f.told}` |" for f in fates]
    killed = sum(f.verdict == KILLED for f in fates)
    return "\n".join(["# Mutants", "",
                      f"{killed} of {len(fates)} deliberate breaks of the library are seen by the ordinary tests. Each changes one "
                      "text in one file (`tests/mutants/of_*.py`); the test named is the first that failed.", "",
                      "Made by `python tests/mutants/run.py --write`.", "",
                      "| broken promise | file | verdict | seen by |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
