"""Installed with torch alone, and on systems that lack what Windows and macOS lack."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fxperex.cli import commands, main

TESTS = Path(__file__).parent


def bare(*arguments: str) -> str:
    """What `bare.py` prints in a process of its own."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    # numpy's absence is torch's own warning.
    run = subprocess.run([sys.executable, "-W", "ignore", str(TESTS / "bare.py"), *arguments],
                         capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_with_torch_alone_every_command_works_or_names_its_extra(tmp_path: Path) -> None:
    told = dict(line.split(": ", 1) for line in bare("extras", str(tmp_path)).splitlines())
    assert told.keys() == {*commands(), "import"}
    extra = 'numpy: pip install "fxperex[accounting]"'
    needy = [name for name in told if extra in told[name]]
    assert needy == ["audit", "train", "import"]
    assert "ModuleNotFoundError" not in str(told) and "error" not in str(told).replace("Error", "")
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")


def test_a_run_folder_needs_nothing_that_windows_and_macos_lack(tmp_path: Path) -> None:
    told = bare("system", str(tmp_path / "run")).splitlines()
    assert "in use by another process" in told[0] and told[1] == "records 1"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("fxperex 0.")


def test_an_argument_that_no_command_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["strategies", "--fast"])
    assert end.value.code == 2 and "unrecognized arguments: --fast" in capsys.readouterr().err


def test_a_reader_who_leaves_gets_no_traceback() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        run = subprocess.Popen([sys.executable, "-m", "fxperex", "strategies"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": str(TESTS.parent)})
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    error = run.stderr.read().decode()
    run.stderr.close()
    assert run.wait() == 1 and "Traceback" not in error and "Broken" not in error, error
