"""Random calls of every operation that has a batch rule: name -> functions of a `Draw` that give
(overload, args, kwargs).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from perturb import Draw, Rows, Slot

Call = tuple[Any, ...]
CASES: dict[str, list[Callable[[Draw], Call]]] = defaultdict(list)


def case(names: str,
         overload: str = "default") -> Callable[[Callable[[Draw], tuple[Any, ...]]], None]:
    """Decorator: the function draws positional arguments, and maybe a dict of named ones last."""

    def add(function: Callable[[Draw], tuple[Any, ...]]) -> None:
        for name in names.split():
            CASES[name].append(lambda d: (overload, function(d)))

    return add


UNARY = """
abs acos acosh angle asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2
expm1 floor frac isfinite isinf isnan isneginf isposinf lgamma log log10 log1p log2 log_sigmoid
logical_not logit nan_to_num neg positive rad2deg reciprocal relu relu6 round rsqrt selu sgn
sigmoid sign signbit silu mish sin sinc sinh sqrt square tan tanh trunc gelu elu celu hardtanh
hardsigmoid hardswish leaky_relu softplus hardshrink softshrink i0 special_ndtri special_erfcx
special_log_ndtr clone alias detach contiguous lift_fresh lift_fresh_copy _to_copy zeros_like
ones_like empty_like
"""
BINARY = """
maximum minimum fmax fmin atan2 hypot copysign logaddexp logaddexp2 nextafter heaviside
"""
OVERLOADED = """
__and__ __or__ __xor__ add sub mul div pow eq ne lt le gt ge fmod remainder xlogy float_power rsub
bitwise_and
"""


def other(d: Draw, x: Slot) -> Slot:
    """A second operand: like the first, without a batch, broadcast, or with the batch elsewhere."""
    choice = d.rng.randrange(4)
    if choice == 0:
        return d.like(x)
    if choice == 1:
        return Slot(tuple(1 if x.axis and i == x.axis.dim else s for i, s in enumerate(x.sizes)))
    if choice == 2:
        return Slot(x.sizes[len(x.sizes) - 1:] if x.axis and x.axis.dim != len(x.sizes) - 1 else ())
    return d.x(*(1 for _ in x.sizes))


for _name in UNARY.split():
    if _name not in {"empty_like"}:
        case(_name)(lambda d: (d.x(),))
case("empty_like")(lambda d: (d.x(), {"dtype": None}))
for _name in BINARY.split():
    case(_name, "Tensor" if _name == "copysign" else "default")(lambda d: (x := d.x(), other(d, x)))
for _name in OVERLOADED.split():
    kind = "long" if "bitwise" in _name or "__" in _name else "float"
    case(
        _name,
        "Tensor" if _name not in {"pow", "float_power"} else "Tensor_Tensor")(lambda d, kind=kind: (
            x := d.x(kind=kind), d.like(x, kind) if kind == "long" else other(d, x)))
case("add", "Scalar")(lambda d: (d.x(), d.rng.choice([2, Rows(1)])))
case("mul", "Scalar")(lambda d: (d.x(), d.rng.choice([2, Rows(1)])))
case("where", "self")(lambda d: (lambda x: (d.like(x, "bool"), x, other(d, x)))(d.x()))
case("where", "ScalarOther")(lambda d: (lambda x: (d.like(x, "bool"), x, 0.5))(d.x()))
case("masked_fill", "Scalar")(lambda d: (lambda x: (x, d.like(x, "bool"), 0.5))(d.x()))
case("lerp", "Scalar")(lambda d: (lambda x: (x, other(d, x), 0.3))(d.x()))
case("lerp", "Tensor")(lambda d: (lambda x: (x, d.like(x), other(d, x)))(d.x()))
case("addcmul addcdiv")(lambda d: (lambda x: (x, d.like(x), other(d, x)))(d.x()))
case("clamp")(lambda d: (d.x(), 0.2, 0.8))
case("clamp", "Tensor")(lambda d: (lambda x: (x, other(d, x)))(d.x()))
case("copy")(lambda d: (lambda x: (x, other(d, x)))(d.x()))
case("type_as")(lambda d: (lambda x: (x, d.like(x)))(d.x()))
case("to", "dtype")(lambda d: (d.x(), torch.float32))
case("threshold")(lambda d: (d.x(), 0.5, 0.0))
case("rrelu")(lambda d: (d.x(), 0.1, 0.3, d.flag()))
case("prelu _prelu_kernel")(lambda d: (d.x(2, 3, 2), Slot((1,) if d.flag() else (3,))))
case("rand_like randn_like")(lambda d: (d.x(),))
case("randint_like")(lambda d: (d.x(), 5))
case("full_like")(lambda d: (d.x(), d.rng.choice([2.0, Rows(1)])))
case("fill", "Scalar")(lambda d: (d.x(), 2.0))
case("fill", "Tensor")(lambda d: (d.x(), Slot(())))
case("bernoulli")(lambda d: (d.x(),))
case("uniform normal_functional exponential log_normal cauchy")(lambda d: (d.x(),))
case("geometric")(lambda d: (d.x(), 0.3))
case("normal", "Tensor_float")(lambda d: (d.x(), 0.3))
case("normal", "Tensor_Tensor")(lambda d: (lambda x: (x, other(d, x)))(d.x()))
case("poisson")(lambda d: (d.x(),))
case("binomial")(lambda d: (lambda x: (x, d.like(x)))(d.x()))
case("dropout alpha_dropout feature_dropout native_dropout")(lambda d: (d.x(2, 3, 2), 0.4, True))

for _name in ("zeros", "ones", "rand", "randn"):
    case(_name)(lambda d: ([d.size(), Rows(d.rng.choice([1, 2])), d.size()],))
case("empty", "memory_format")(lambda d: ([d.size(), Rows(1)],))
case("full")(lambda d: ([d.size(), Rows(1)], d.rng.choice([2.0, Rows(1)])))
case("scalar_tensor")(lambda d: (d.rng.choice([2.0, Rows(1)]),))
case("randint")(lambda d: (d.rng.choice([5, Rows(2)]), [Rows(1), 3]))
case("new_zeros new_ones new_empty")(lambda d: (d.x(), [Rows(1), d.size()]))
case("new_full")(lambda d: (d.x(), [Rows(1), d.size()], d.rng.choice([2.0, Rows(1)])))
case("arange")(lambda d: (d.rng.choice([5, Rows(1), Rows(2)]),))

for _name in ("view", "reshape", "_unsafe_view", "_reshape_copy", "view_copy"):
    case(_name)(lambda d: (lambda x: (x, d.reshaped(x)))(d.x()))
case("flatten", "using_ints")(lambda d: (lambda x, i: (x, i, d.rng.randrange(i, len(x.sizes))))(
    x := d.x(), d.rng.randrange(len(x.sizes))))
case("unflatten", "int")(lambda d: (lambda i, outer: (
    d.x(*(4 for _ in range(3)), at=d.rng.choice([j for j in range(3) if j != i])), i, [2, 2]
    if outer else [4, 1]))(d.rng.randrange(3), d.flag()))
case("ravel")(lambda d: (d.x(),))
case("permute permute_copy")(
    lambda d: (lambda x: (x, d.rng.sample(range(len(x.sizes)), len(x.sizes))))(d.x()))
case("transpose", "int")(lambda d: (lambda x: (x, d.dim(x), d.dim(x)))(d.x()))
case("swapaxes")(lambda d: (lambda x: (x, d.dim(x), d.dim(x)))(d.x()))
case("t")(lambda d: (d.x(*d.sizes(1, 2)),))
case("numpy_T")(lambda d: (d.x(*d.sizes(1, 3)),))
case("mT adjoint")(lambda d: (d.x(*d.sizes(2, 4)),))
case("movedim",
     "intlist")(lambda d: (d.x(2, 3, 5, 2), d.rng.sample(range(4), 2), d.rng.sample(range(4), 2)))
case("movedim", "int")(lambda d: (d.x(2, 3, 5), d.rng.randrange(3), d.rng.randrange(3)))
case("unsqueeze")(lambda d: (lambda x: (x, d.rng.randrange(-len(x.sizes) - 1,
                                                           len(x.sizes) + 1)))(d.x()))
case("squeeze")(lambda d: (d.x(1, 3, 1, 2),))
case("squeeze", "dim")(lambda d: (d.x(1, 3, 1), d.rng.randrange(3)))
case("squeeze", "dims")(lambda d: (d.x(1, 3, 1), [0, 2]))
case("expand")(lambda d: (lambda x: (x, [
    d.size(), *(Rows(s) if x.axis.dim == i else 4 if s == 1 else s for i, s in enumerate(x.sizes))
]))(d.x(1, 3, 1)))
case("broadcast_to")(lambda d: (lambda x: (x, [d.size(), *d.shape(x)]))(d.x()))
case("expand_as")(lambda d: (lambda x: (x, d.like(x)))(d.x()))
case("broadcast_tensors")(lambda d: (lambda x: ([x, other(d, x)],))(d.x()))
case("repeat")(lambda d: (lambda x: (x, [d.rng.choice([1, 2]) for _ in x.sizes]))(d.x()))
case("repeat_interleave", "self_int")(lambda d: (lambda x: (x, 2, d.dim(x)))(d.x()))
case("slice", "Tensor")(lambda d: (lambda x: (x, d.dim(x), d.rng.choice([0, 1]),
                                              d.rng.choice([9999, Rows(1), 2])))(d.x()))
case("narrow")(lambda d: (lambda x: (x, d.dim(x), 0, 1))(d.x()))
case("select", "int")(lambda d: (lambda x: (x, d.dim(x), d.rng.choice([0, -1])))(d.x()))
case("split", "Tensor")(lambda d: (lambda x: (x, d.rng.choice([1, 2, Rows(4)]), d.dim(x)))(d.x()))
case("split_with_sizes")(lambda d: (d.x(2, 5, 5), [2, 3], d.rng.choice([1, 2])))
case("chunk")(lambda d: (lambda x: (x, d.rng.choice([1, 2]), d.dim(x)))(d.x()))
case("tensor_split", "sections")(lambda d: (lambda x: (x, d.rng.choice([1, 2]), d.dim(x)))(d.x()))
case("unbind", "int")(lambda d: (lambda x: (x, d.dim(x)))(d.x()))
case("slice_scatter")(lambda d: (lambda x, at: (
    x, Slot(tuple(1 if i == at and i != x.axis.dim else s for i, s in enumerate(x.sizes)), x.axis
            ), at, 0, 1 if at != x.axis.dim else 9999))(d.x(2, 3, 2), d.rng.randrange(3)))
case("select_scatter")(lambda d: (lambda x, at: (
    x,
    Slot(tuple(s for i, s in enumerate(x.sizes) if i != at), None if x.axis.dim == at else x.axis.
         moved(x.axis.dim - (at < x.axis.dim))), at, 0))(d.x(2, 3, 2), d.rng.randrange(3)))
case("cat concat stack")(lambda d: (lambda x: ([x, d.like(x)], d.dim(x)))(d.x()))
case("flip")(lambda d: (lambda x: (x, d.dims(x)))(d.x()))
case("roll")(lambda d: (lambda x: (x, [1], [d.dim(x)]) if d.flag() else (x, [1]))(d.x()))
case("pad")(lambda d:
            (d.x(2, 3, 5), d.rng.choice([[1, 1], [0, 0, 1, 1], [0, 0, 0, 0, 1, 0], [1, 0, 0, 1]]),
             "constant", 0.0))
case("constant_pad_nd")(lambda d:
                        (d.x(2, 3, 5), d.rng.choice([[1, 1], [0, 0, 1, 1], [0, 0, 0, 0, 1, 0]])))
for _n in (1, 2, 3):
    case(f"reflection_pad{_n}d "
         f"replication_pad{_n}d")(lambda d, n=_n: (d.x(2, 3, *(5,) * n), [1] * (2 * n)))
case("unfold")(lambda d: (lambda x: (x, d.dim(x), 2, 1))(d.x(2, 3, 5)))

for _name in ("sum", "mean"):
    case(_name)(lambda d: (d.x(),))
case("sum", "dim_IntList")(lambda d: (lambda x: (x, d.dims(x), d.flag()))(d.x()))
case("mean", "dim")(lambda d: (lambda x: (x, d.dims(x), d.flag()))(d.x()))
case("nansum amax amin logsumexp")(lambda d: (lambda x: (x, d.dims(x), d.flag()))(d.x()))
case("argmax argmin")(lambda d: (lambda x: (x, d.dim(x), d.flag()))(d.x()))
case("argmax argmin")(lambda d: (d.x(),))
for _name in ("any", "all"):
    case(_name, "dim")(lambda d: (lambda x: (x, d.dim(x), d.flag()))(d.x(kind="bool")))
    case(_name)(lambda d: (d.x(kind="bool"),))
case("prod", "dim_int")(lambda d: (lambda x: (x, d.dim(x), d.flag()))(d.x()))
case("count_nonzero", "dim_IntList")(lambda d: (lambda x: (x, d.dims(x)))(d.x()))
for _name in ("max", "min", "median", "nanmedian"):
    case(_name, "dim")(lambda d: (lambda x: (x, d.dim(x), d.flag()))(d.x()))
    case(_name)(lambda d: (d.x(),))
case("max min", "other")(lambda d: (lambda x: (x, other(d, x)))(d.x()))
case("mode")(lambda d: (lambda x: (x, d.dim(x), d.flag()))(d.x()))
case("kthvalue")(lambda d: (lambda x: (x, 1, d.dim(x), d.flag()))(d.x()))
case("var std var_mean std_mean", "correction")(lambda d: (lambda x: (
    x, d.dims(x), {"correction": 0, "keepdim": d.flag()}))(d.x()))
case("var std", "dim")(lambda d: (lambda x: (x, d.dims(x), False, d.flag()))(d.x()))
case("var std")(lambda d: (d.x(), False))
case("linalg_vector_norm")(lambda d: (lambda x: (x, 2, d.dims(x)
                                                 if d.flag() else None, d.flag()))(d.x()))
case("linalg_norm")(lambda d: (lambda x: (x, None, [d.dim(x)], d.flag()))(d.x()))
case("norm", "ScalarOpt_dim")(lambda d: (lambda x: (x, 2, d.dims(x), d.flag()))(d.x()))
case("norm", "Scalar")(lambda d: (d.x(), 2))
case("softmax log_softmax", "int")(lambda d: (lambda x: (x, d.dim(x)))(d.x()))
case("_softmax _log_softmax")(lambda d: (lambda x: (x, d.dim(x), False))(d.x()))
case("_safe_softmax cumsum cumprod logcumsumexp cummax "
     "cummin")(lambda d: (lambda x: (x, d.dim(x)))(d.x()))
case("glu")(lambda d: (d.x(2, 4, 2), d.rng.randrange(3)))
case("sort argsort")(lambda d: (lambda x: (x, d.dim(x)))(d.x()))
case("sort argsort", "stable")(lambda d: (lambda x: (x, {"stable": True, "dim": d.dim(x)}))(d.x()))
case("msort")(lambda d: (d.x(),))
case("topk")(lambda d: (lambda x: (x, 1, d.dim(x)))(d.x()))
case("cosine_similarity")(lambda d: (lambda x: (x, other(d, x), d.dim(x)))(d.x(2, 3, 2)))
case("diff")(lambda d: (lambda x: (x, 1, d.dim(x)))(d.x()))
case("diff")(lambda d: (lambda x: (x, 1, 1, d.x(2, 1, at=0), None))(d.x(2, 5, at=0)))
