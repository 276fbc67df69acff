"""`fxperex docs`: the pages that ship with the library, in a browser or as text."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from fxperex.config import cache_folder
from fxperex.errors import ConfigError

HELP = "open the documentation that ships with the library; it needs no network"
EXAMPLES = ("fxperex docs", "fxperex docs extending --print", "fxperex docs --list")
FOLDER = Path(__file__).parents[1] / "docs"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("page", nargs="?", default="index", help="a page; default %(default)s")
    parser.add_argument("--list", action="store_true", help="list the pages")
    parser.add_argument("--print", action="store_true", help="print the page's text instead")


def run(options: argparse.Namespace) -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.md"))
    if options.list:
        print("\n".join(names))
        return
    if options.page not in names:
        raise ConfigError(f"there is no page {options.page!r}; pages: {', '.join(names)}")
    source = FOLDER / f"{options.page}.md"
    if options.print:
        print(source.read_text())
        return
    page = _site() / ("index.html" if options.page == "index" else f"{options.page}.html")
    print(page)
    webbrowser.open(page.as_uri())


def _site() -> Path:
    """Returns the folder of the pages as HTML, built from the files here. Raises ConfigError."""
    try:
        from mkdocs.commands.build import build
        from mkdocs.config import load_config
    except ImportError as error:
        raise ConfigError("the pages as HTML need mkdocs: pip install \"fxperex[docs]\"; or print "
                          "their text: fxperex docs --print") from error
    target = cache_folder() / "docs"
    build(load_config(str(FOLDER / "site" / "mkdocs.yml"), docs_dir=str(FOLDER),
                      site_dir=str(target)))
    return target
