"""The layering of the package as one list: no file imports from its own floor or a higher one,
except from its own room.

A room is a folder of `fxperex/`, or one of its loose files. Some files of a folder are rooms of
their own: the longest name that fits counts. `tests/test_house.py` holds the package to this list,
with lazy and type-only imports.
"""

from __future__ import annotations

from collections.abc import Iterator

import networkx

# From the lowest floor to the highest.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "config", "files"),
    ("sites", "costs", "numerics.norms", "numerics.factors", "graph", "clipping", "fixes",
     "testing", "ranks"),
    ("contract",),
    ("registry",),
    ("layers.shapes", "kernels", "capture", "plan"),
    ("layers", "memory"),
    ("cost_model", "devices", "analysis", "report"),
    ("numerics",),
    ("strategies",),
    ("rewrite",),
    ("planner", "compiler"),
    ("runtime",),
    ("arguments",),
    ("transform",),
    ("fxperex", "privacy", "extend"),
    ("demo", "integrations"),
    ("cli",),
    ("__main__",),
)
HEIGHTS = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """Returns the room of a module such as `fxperex.plan.table`. Raises KeyError if no floor has
    it.
    """
    name = module.removeprefix("fxperex.")
    while name not in HEIGHTS:
        name, dot, _ = name.rpartition(".")
        if not dot:
            raise KeyError(f"{module} has no floor: add its room to FLOORS")
    return name


def upward(imports: networkx.DiGraph) -> Iterator[tuple[str, str]]:
    """Yields every (importing, imported) pair of modules that goes up, or sideways to another
    room.
    """
    for importing, imported in imports.edges:
        above, below = room_of(importing), room_of(imported)
        if above != below and HEIGHTS[below] >= HEIGHTS[above]:
            yield importing, imported
