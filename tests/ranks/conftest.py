"""Ranks for every test here."""

from __future__ import annotations

from pathlib import Path

import pytest
from gloo import Pool


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)
