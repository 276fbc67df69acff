"""Stages are seen: on a terminal while they run, by logging, and in the explanation."""

from __future__ import annotations

import io
import logging
import sys

import pytest
import torch
from torch import nn

import fxperex

STAGES = ["capture", "prove", "plan", "rewrite", "compile"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _go() -> fxperex.PerExampleModule:
    return fxperex.transform(nn.Linear(3, 2), (torch.randn(4, 3),), backend="eager",
                             forward=lambda m, x: m(x).square().sum(1))


def test_a_terminal_shows_each_stage_and_is_left_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    _go()
    text = terminal.getvalue()
    assert [text.index(f"fxperex: {name} ...") for name in STAGES] == sorted(
        text.index(f"fxperex: {name} ...") for name in STAGES)
    assert text.endswith("\r\x1b[K") and "\n" not in text


def test_nothing_is_printed_elsewhere_or_if_it_is_not_wanted(
        monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    _go()
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("FXPEREX_PROGRESS", "0")
    _go()
    assert terminal.getvalue() == "" and capfd.readouterr().err == ""


def test_seconds_are_logged_and_explained(caplog: pytest.LogCaptureFixture,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO, logger="fxperex"):
        private = _go()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == STAGES
    last = private.explain().splitlines()[-1]
    assert last.startswith("transform took") and all(f"{name} " in last for name in STAGES)
    assert capsys.readouterr().out.splitlines()[-1] == last
