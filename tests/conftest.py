"""Two threads, a seed, and a cache folder of the tests' own."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

os.environ.setdefault("FXPEREX_CACHE", os.path.join(tempfile.gettempdir(), "fxperex-test-cache"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
