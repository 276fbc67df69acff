"""The maps name what there is: every room, file, test and public name on them exists, and no room
is missing.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import draw_architecture
import pytest

from fxperex.report.canvas import svg

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "fxperex", ROOT / "tests"
ARCHITECTURE = PACKAGE / "docs" / "architecture.md"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
MAPS = (ARCHITECTURE, CONTRIBUTING, PACKAGE / "docs" / "changelog.md", ROOT / "README.md",
        ROOT / "examples" / "README.md")


def _table(page: Path, heading: str) -> list[list[str]]:
    """Returns the cells of the first table below `heading`, without its head."""
    lines = page.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def _quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def _is_room(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def test_every_room_is_on_the_map_once_and_there() -> None:
    named = [name for row in _table(ARCHITECTURE, "The rooms") for name in _quoted(row[0])]
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.*")
             if path.is_file() and "__pycache__" not in path.parts and path.name != "py.typed"}
    rooms = {path.parts[0].removesuffix(".py") for path in files}
    assert sorted(named) == sorted(rooms)


def test_every_room_has_a_question_and_tests_that_exist() -> None:
    for room, question, tests in _table(ARCHITECTURE, "The rooms"):
        assert question.endswith("?"), room
        assert _quoted(tests), room
        for name in _quoted(tests):
            assert (TESTS / name).exists(), name


def test_every_floor_has_rooms_that_exist_and_none_stands_on_two() -> None:
    part = ARCHITECTURE.read_text().split("\n## Nothing imports upwards\n")[1].split("\nSo ")[0]
    named = _quoted(part.split("\n1. ")[1].split("\n\n")[0])
    assert len(named) == len(set(named)) > 20
    assert all(map(_is_room, named))


@pytest.mark.parametrize("page", MAPS, ids=lambda page: page.stem)
def test_every_path_and_link_on_a_map_exists(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    paths = re.findall(r"`((?:fxperex|tests|examples|benchmarks)/[\w/.-]+)`", text)
    assert links and not [link for link in links if not (page.parent / link).exists()]
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_public_name_is_where_the_map_says() -> None:
    rows = _table(ARCHITECTURE, "Where each public name lives")
    for name in (name for row in rows for name in _quoted(row[0])):
        module, _, member = name.rpartition(".")
        assert hasattr(import_module(module), member), name


def test_the_picture_is_the_one_that_the_script_draws() -> None:
    assert draw_architecture.PICTURE.read_text() == svg(draw_architecture.picture())


def test_the_architecture_can_be_read_at_once() -> None:
    assert len(ARCHITECTURE.read_text().splitlines()) <= 200
