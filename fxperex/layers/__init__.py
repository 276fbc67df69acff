"""One file = one layer kind. Importing this package registers the library's own."""

from fxperex.layers import (  # noqa: F401
    bias,
    bilinear,
    conv,
    conv_transpose,
    elementwise,
    embedding,
    generic,
    linear,
    norms,
)
