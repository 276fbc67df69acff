"""Modules of test suites, imported without what they do to hypothesis."""

from __future__ import annotations

import importlib
from typing import Any

import hypothesis


def module(name: str) -> Any:
    """Returns the module `name`; tests made while it is imported draw 100 times, as hypothesis does
    unless told otherwise.

    Settings are read when a test is decorated, and a suite may load a profile of its own (PyTorch's
    draws 10 times) that would stay for the rest of the session.
    """
    before = hypothesis.settings.get_current_profile_name()
    plain = hypothesis.settings(hypothesis.settings.get_profile("default"), database=None,
                                deadline=None)
    hypothesis.settings.register_profile("offered", plain)
    hypothesis.settings.load_profile("offered")
    try:
        return importlib.import_module(name)
    finally:
        hypothesis.settings.load_profile(before)
