"""The tables are well made (ordinary), and no mutant survives (nightly; `python
tests/mutants/run.py` says more).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import of_analysis
import of_clipping
import of_privacy
import of_ranks
import pytest

ROOT = Path(__file__).parents[2]
MUTANTS = [*of_clipping.MUTANTS, *of_analysis.MUTANTS, *of_privacy.MUTANTS,
           *of_ranks.MUTANTS]


def test_every_mutant_fits_the_library_and_names_tests_that_are_there() -> None:
    assert len(MUTANTS) >= 60 and len({m.name for m in MUTANTS}) == len(MUTANTS)
    for m in MUTANTS:
        places = m.places((ROOT / "fxperex" / m.file).read_text())
        assert len(places) == 1, f"{m.name}: its text stands {len(places)} times in {m.file}"
        assert m.old != m.new and m.tests
        for test in m.tests:
            path, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in (
                ROOT / "tests" / path).read_text(), f"{m.name}: no test {test}"


@pytest.mark.nightly
def test_no_mutant_survives() -> None:
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("run.py"))],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
