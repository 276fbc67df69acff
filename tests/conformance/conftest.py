"""The table at the end of a run, and with `--write-conformance` in the document: gathered from what
the tests record.
"""

from __future__ import annotations

from typing import Any

import pytest
from document import ROW, written


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-conformance", action="store_true", help="write what the full "
                                                                      "corpora gave into the "
                                                                      "document")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reports = [r for state in ("passed", "failed") for r in terminalreporter.stats.get(state, [])]
    rows = [value for r in reports for name, value in r.user_properties if name == ROW]
    if not rows:
        return
    text = written(rows)
    terminalreporter.section("conformance")
    terminalreporter.write_line(text)
    if config.getoption("--write-conformance", default=False):
        from document import save

        save(rows)
