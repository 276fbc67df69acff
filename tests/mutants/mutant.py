"""A mutant: one exact change of the library that breaks a promise, and the few tests that must see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file` (below `fxperex/`) and becomes `new`; `tests` are pytest node ids below `tests/`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, package: Path) -> str:
        """Returns the file's text before, having changed it. Raises ValueError unless `old` is there exactly once."""
        path = package / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"mutant {self.name!r}: its text stands {text.count(self.old)} times in {self.file}, not once")
        path.write_text(text.replace(self.old, self.new))
        return text
