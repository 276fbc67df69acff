"""Two threads, a seed, a cache folder of the tests' own, and graphs verified after each pass."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

os.environ.setdefault("FXPEREX_CACHE", os.path.join(tempfile.gettempdir(), "fxperex-test-cache"))
# The step graph is held to its rules after every pass.
os.environ.setdefault("FXPEREX_VERIFY", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
