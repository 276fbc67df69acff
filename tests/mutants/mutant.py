"""A mutant: one exact change of the library that breaks a promise, and the few tests that must see
it.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file` (below `fxperex/`) and becomes `new`; how lines are
    broken is ignored.

    `tests` are pytest node ids below `tests/`.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def places(self, text: str) -> list[tuple[int, int]]:
        """Returns (start, end) of every place in `text` where `old` stands."""
        pieces = re.findall(r"\w+|[^\w\s]", self.old)
        between = [r"\s+" if (a[-1] + b[0]).isidentifier() or (a[-1] + b[0]).isdigit() else r"\s*"
                   for a, b in itertools.pairwise(pieces)]
        pattern = "".join(
            re.escape(piece) + space for piece, space in zip(pieces, [*between, ""], strict=True))
        return [match.span() for match in re.finditer(pattern, text)]

    def apply(self, package: Path) -> str:
        """Returns the file's text before, having changed it. Raises ValueError unless `old` is
        there exactly once.
        """
        path = package / self.file
        text = path.read_text()
        places = self.places(text)
        if len(places) != 1:
            raise ValueError(f"mutant {self.name!r}: its text stands {len(places)} times in "
                             f"{self.file}, not once")
        start, end = places[0]
        # Spaces around `old` are part of what `new` replaces.
        path.write_text(text[:start] + self.new.strip() + text[end:])
        return text
