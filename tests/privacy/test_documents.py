"""The page on privacy names every pitfall, and everything it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fxperex.errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "fxperex" / "docs" / "privacy.md").read_text()
HOW = {"proved", "checked", "tested", "impossible", "not covered"}
# Of people's choices and of floating-point addition no library can say more than that they are not
# covered.
LEFT_OPEN = {30, 57}


def _rows(heading: str) -> list[list[str]]:
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    head = re.compile(r"\|(---|\s*(#|condition|numbers)\s*\|)")
    lines = [line for line in part.splitlines() if line.startswith("|") and not head.match(line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def _named() -> list[str]:
    return sorted(set(re.findall(r"`((?:tests|fxperex)/[\w/]+\.py(?:::\w+)?)`", PAGE)))


def test_all_66_are_there() -> None:
    rows = _rows("The 66 pitfalls")
    assert [int(r[0]) for r in rows] == list(range(1, 67))
    for number, pitfall, how, by in rows:
        assert pitfall and how in HOW, number
        assert re.search(r"`(tests|fxperex)/|as row \d+", by), number
        assert how not in {"tested"} or "`tests/" in by, number
    assert {int(r[0]) for r in rows if r[2] == "not covered"} == LEFT_OPEN


def test_every_condition_has_its_check() -> None:
    rows = _rows("Conditions")
    assert len(rows) >= 19
    for condition, happens, by in rows:
        assert happens and re.search(r"`(tests|fxperex)/", by), condition


def test_every_bad_input_has_an_error_of_ours() -> None:
    found: list[int] = []
    for numbers, told in _rows("Bad inputs"):
        for part in numbers.split(", "):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
        assert all(
            hasattr(fxperex.errors, name)
            for name in re.findall(r"\w+(?:Error|Warning)\b", told)), numbers
    assert sorted(found) == list(range(1, 56))


@pytest.mark.parametrize("name", _named())
def test_what_is_named_exists(name: str) -> None:
    path, _, what = name.partition("::")
    assert (ROOT / path).is_file()
    assert not what or re.search(r"^\s*(def|class) "
                                 rf"{what}\b", (ROOT / path).read_text(), re.MULTILINE)
