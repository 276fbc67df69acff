"""Says which extra is missing, before anything of this package needs it."""

from fxperex.privacy.checks import needed

needed("numpy")
