"""Hand-written kernels for what ATen has no good form of. Each is a `torch.library` op.

Every op has a fake kernel, so export, `make_fx`, Inductor and CUDA graphs see one named node. The
op runs its Triton kernel if `unavailable(device)` is None, else its ATen reference; the tests
compare the two. Triton is imported on the first launch, never by `import fxperex`.

| op | returns | kernel |
|---|---|---|
| `linear_sq_norm`, `linear_gradients` | `sum |g_b^T a_b|^2`, or stored | `gpu/linear.py` |
| `conv_sq_norm`, `conv_gradients` | the same, no im2col | `gpu/conv.py`, `gpu/depthwise.py` |
| `gram_sq_norm` | `<a_b a_b^T, g_b g_b^T>`, no T x T in memory | `gpu/gram.py` |
| `embedding_sq_norm` | norms by sorted tokens, not T^2 | `gpu/embedding.py` |
| `affine_gradients` | scale and shift of a normalisation, one pass | `gpu/affine.py` |
| `weighted_sum` | `sum_b f_b grad_b`, one read, on a CPU too | `gpu/weighted.py` |
| `product` | `g^T a` of scaled factors | none: looks for invalid examples once, on a CPU |
| `chacha20` | the RFC 8439 key stream, for noise drawn on the device | `gpu/chacha.py` |
| `patches`, `products_of_patches` | a convolution's, or their products | none: a strided copy |
"""

import torch

from fxperex.kernels import summing as _summing
from fxperex.kernels import weighted as _weighted
from fxperex.kernels.affine import affine_gradients
from fxperex.kernels.chacha import chacha20
from fxperex.kernels.conv import conv_gradients, conv_sq_norm
from fxperex.kernels.conv_shape import Shape
from fxperex.kernels.device import unavailable
from fxperex.kernels.embedding import by_token, embedding_sq_norm
from fxperex.kernels.gram import gram_sq_norm
from fxperex.kernels.linear import linear_gradients, linear_sq_norm
from fxperex.kernels.patches import patches, products_of_patches
from fxperex.kernels.summing import looks, product
from fxperex.kernels.weighted import by_factors, weighted_sum

__all__ = [
    "PLAINLY", "Shape", "affine_gradients", "by_factors", "by_token", "chacha20", "conv_gradients",
    "conv_sq_norm", "embedding_sq_norm", "gram_sq_norm", "linear_gradients", "linear_sq_norm",
    "looks", "patches", "product", "products_of_patches", "unavailable", "weighted_sum"
]

# Ops that a compiler may do better with as plain operations: each function returns the result by
# plain operations, or None if the op itself is better.
PLAINLY = {torch.ops.fxperex.weighted_sum.default: _weighted.plainly,
           torch.ops.fxperex.product.default: _summing.plainly}
