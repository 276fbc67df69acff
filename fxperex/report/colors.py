"""One colour per strategy, the same in every picture and page; distinct in greyscale and for the
colour-blind.
"""

from __future__ import annotations

import zlib

COLORS = {
    "naive": "#7f7f7f", "multi": "#e69f00", "crb": "#0072b2", "unfold": "#56b4e9",
    "outer": "#009e73", "ghost": "#cc79a7", "fused": "#f0e442", "fused_stored": "#c9b400",
    "affine": "#8c9ba5", "direct": "#b8b8b8", "vmap": "#d55e00"}
SPARE = ("#332288", "#44aa99", "#882255", "#999933", "#661100")


def color(strategy: str) -> str:
    """Returns the colour of `strategy` as "#rrggbb"; that of a user's own depends on its name."""
    return COLORS.get(strategy) or SPARE[zlib.crc32(strategy.encode()) % len(SPARE)]
