"""Stages as processes: started, watched, ended at their time limit, started again for the rows that
a crash left over."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_stages import STAGES, Phase

TURN = 0.2  # seconds between two looks at what runs
OUT_OF_TIME = "out of time"


class Part:
    """One process at a time, for the rows of one part of a stage."""

    def __init__(self, stage: str, name: str, asked: argparse.Namespace, folder: Path,
                 jobs: int) -> None:
        self.name = name
        root = Path(__file__).parents[2]
        # Processes side by side share the cores that compilers take.
        threads = str(max((os.cpu_count() or 1) // jobs, 1))
        # The library need not be installed: it is the one that this script came with.
        paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        self.environment = {"TORCHINDUCTOR_COMPILE_THREADS": threads, **os.environ,
                            "PYTHONPATH": paths}
        self.file, self.log = (folder / f"{stage}.{name}.{end}" for end in ("json", "log"))
        script = root / "benchmarks" / "gpu_run.py"
        self.command = [
            sys.executable, str(script), "--stage", stage, "--part", name, "--rows", str(self.file),
            "--device", asked.device, "--cache", str(asked.cache),
            *(["--tiny"] if asked.tiny else [])]
        self.state, self.before = "", 0
        self._start()

    def _start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log,
                                            env=self.environment, start_new_session=True)

    def body(self) -> dict[str, Any]:
        try:
            return json.loads(self.file.read_text())  # type: ignore[no-any-return]
        except (OSError, ValueError):
            return {"rows": {}}

    def runs(self) -> bool:
        """Returns whether it has more to do; starts it again where it broke off after new rows."""
        if self.process.poll() is None:
            return True
        done = len(self.body()["rows"])
        if self.process.returncode and done > self.before:
            self.before = done
            self._start()
            return True
        code = self.process.returncode
        self.state = "ended" if code == 0 else f"exit code {code}"
        return False

    def end(self) -> None:
        """Ends the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.state = OUT_OF_TIME

    def report(self) -> dict[str, Any]:
        words = {} if self.state == "ended" else {"log": self.log.read_text().splitlines()[-15:]}
        return {"state": self.state or "running"} | self.body() | words


class StageRun:
    """All parts of one stage, within `limit` seconds; its JSON file is written whenever a row is
    done."""

    def __init__(self, name: str, asked: argparse.Namespace, limit: float) -> None:
        self.name, self.asked, self.limit, self.start = name, asked, limit, time.monotonic()
        self.folder, self.parts, self.unstarted = asked.cache / "rows", list[Part](), list[str]()
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(f"{name}.*"):
            old.unlink()

    def run(self) -> dict[str, Any]:
        """Returns what the stage brought, as `report`."""
        stage = STAGES[self.name]
        for phase in stage.rehearsed if self.asked.tiny else stage.phases:
            self._phase(phase, self.start + phase.until * self.limit)
        return self.report()

    def report(self) -> dict[str, Any]:
        """Returns {"stage", "seconds", "limit", "parts": {part: its state, facts and rows}}."""
        parts = {part.name: part.report() for part in self.parts}
        parts |= {name: {"state": OUT_OF_TIME, "rows": {}} for name in self.unstarted}
        return {"stage": self.name, "seconds": round(time.monotonic() - self.start, 1),
                "limit": round(self.limit, 1), "parts": parts}

    def _phase(self, phase: Phase, end: float) -> None:
        waiting, running = list(phase.parts), list[Part]()
        while waiting or running:
            while waiting and len(running) < phase.jobs and time.monotonic() < end:
                part = Part(self.name, waiting.pop(0), self.asked, self.folder, phase.jobs)
                running.append(part)
                self.parts.append(running[-1])
            time.sleep(TURN)
            running = [part for part in running if part.runs()]
            self._keep()
            if time.monotonic() >= end:
                for part in running:
                    part.end()
                self.unstarted += waiting
                return

    def _keep(self) -> None:
        """Writes the stage's file where a part has written since: a run that is cut off loses
        nothing."""
        path = self.asked.out / f"{self.name}.json"
        files = self.folder.glob(f"{self.name}.*.json")
        changed = max((file.stat().st_mtime for file in files), default=0.0)
        # The machine's facts are small: they stand in the summary, so that there are eight files.
        if self.name != "machine" and changed > (path.stat().st_mtime if path.exists() else 0.0):
            write(path, self.report())


def write(path: Path, body: dict[str, Any]) -> None:
    """Writes JSON whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(body, indent=1) + "\n")
    temporary.replace(path)
