"""One file = one layer kind. Importing this package registers the library's own."""

from fxperex.layers import bias, conv, elementwise, embedding, linear, norms  # noqa: F401
from fxperex.layers import generic  # noqa: F401  (last: it claims everything)
