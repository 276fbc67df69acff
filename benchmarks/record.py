"""Results as JSON, written after every row, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import datetime
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


class Record:
    """Rows by key in one file; `limit` seconds for the whole run, over which nothing new begins."""

    def __init__(self, path: Path, limit: float, settings: Row) -> None:
        self.path, self.end, self.settings = path, time.monotonic() + limit, settings
        self.rows: dict[str, Row] = {}
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != settings or found["torch"] != torch.__version__:
                raise SystemExit(f"{path} was measured with other settings ({found['settings']}); "
                                 "move it away first")
            self.rows = found["rows"]

    def missing(self, keys: list[str]) -> Iterator[str]:
        """Yields the keys without a row, while time is left; says what the limit left out."""
        todo = [k for k in keys if k not in self.rows]
        for i, key in enumerate(todo):
            if time.monotonic() > self.end:
                print(f"time is up: {len(todo) - i} rows left; run again to go on", flush=True)
                return
            print(f"[{i + 1} of {len(todo)}] {key}", file=sys.stderr, flush=True)
            yield key

    def add(self, key: str, row: Row) -> None:
        self.rows[key] = row
        body = {
            "date": datetime.date.today().isoformat(), "torch": torch.__version__,
            "python": platform.python_version(),
            "device": f"{platform.machine()}, {torch.get_num_threads()} "
            "threads", "settings": self.settings, "rows": self.rows
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(body, indent=1) + "\n")
        temporary.replace(self.path)
