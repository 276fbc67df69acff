"""The pages that ship: their code runs, errors are complete, the site's list names each page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fxperex
from fxperex.cli import main

try:
    import write_troubleshooting
except ImportError:
    from tests import write_troubleshooting

DOCS = Path(fxperex.__file__).parent / "docs"


@pytest.mark.parametrize("page", ["index", "looking", "migrating"])
def test_every_block_of_a_page_runs(page: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    names: dict[str, object] = {"__name__": page}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec", dont_inherit=True), names)
    assert blocks and capsys.readouterr().out


def test_the_page_of_errors_has_every_class_as_it_is() -> None:
    assert (DOCS / "troubleshooting.md").read_text() == write_troubleshooting.text()


def test_every_page_of_the_site_exists() -> None:
    listed = re.findall(r": ([\w-]+\.md)$", (DOCS / "site" / "mkdocs.yml").read_text(), re.M)
    assert len(listed) > 8 and all((DOCS / name).is_file() for name in listed)


def test_pages_can_be_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "--list"]) == 0 and "looking" in capsys.readouterr().out
    assert main(["docs", "looking", "--print"]) == 0
    assert "How to look at graphs" in capsys.readouterr().out
    assert main(["docs", "nothing"]) == 2 and "there is no page" in capsys.readouterr().err
