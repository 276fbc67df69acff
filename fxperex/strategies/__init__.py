"""One file = one strategy. Importing this package registers the library's own."""

from fxperex.strategies import affine, crb, direct, fused, ghost, multi, naive, outer, unfold, vmap  # noqa: F401
