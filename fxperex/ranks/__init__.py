"""Several processes that train one model: who runs which rows, and how all of them agree."""

from fxperex.ranks.mesh import ranks_of
from fxperex.ranks.ranks import ALONE, Ranks

__all__ = ["ALONE", "Ranks", "ranks_of"]
