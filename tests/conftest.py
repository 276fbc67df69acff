"""One thread for each process of the tests, a seed, a cache folder of the tests' own, and graphs
verified after each pass.
"""

from __future__ import annotations

import os
import tempfile

import pytest

# Two processes run the tests: more threads would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

os.environ.setdefault("FXPEREX_CACHE", os.path.join(tempfile.gettempdir(), "fxperex-test-cache"))
# The step graph is held to its rules after every pass.
os.environ.setdefault("FXPEREX_VERIFY", "1")


# What `pytest -m quick` runs: beginnings of node ids below `tests/`, a few seconds for every room.
QUICK = (
    "analysis/test_schemas.py", "analysis/test_attacks.py::test_an_attack_is_refused_at_its_line[p",
    "mutants/test_mutants.py", "passes/test_stack.py", "privacy/test_books.py",
    "privacy/test_streams.py", "privacy/test_documents.py",
    "privacy/test_engine.py::test_a_run_is_the_formula", "report/test_explain.py",
    "test_clipping.py::test_the_step_is_the_formula", "test_cost.py",
    "test_functionalise.py::test_the_program",
    "test_house.py", "test_map.py", "test_replay.py",
    "test_registry.py::test_against_the_loop[linear-0-",
    "test_registry.py::test_against_the_loop[conv-0-",
    "test_registry.py::test_against_the_loop[embedding-0-",
    "test_registry.py::test_against_the_loop[norm-0-",
    "test_runtime.py::test_any_number_of_rows", "test_unwatched.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(QUICK) and not item.get_closest_marker(
                "nightly"):
            item.add_marker("quick")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
