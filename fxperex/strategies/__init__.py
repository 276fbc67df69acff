"""One file = one strategy. Importing this package imports them all, and so registers them."""

from fxperex.registry import import_files

import_files(__name__, __path__)
