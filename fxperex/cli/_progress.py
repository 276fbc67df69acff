"""A progress bar: rich's if it is installed, else one line that is overwritten."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from fxperex.graph.stages import HIDDEN

Report = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """Yields report(done, total, what), which moves a bar on stderr."""
    token = HIDDEN.set(True)  # the stages of each transform would be drawn over it
    try:
        with _bar(title) as report:
            yield report
    finally:
        HIDDEN.reset(token)


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Report]:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda done, total, what: print(f"\r{title} {done}/{total} {what:<20}", end="",
                                              file=sys.stderr)
        print(file=sys.stderr)
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total,
                                                   description=f"{title}: {what}")
