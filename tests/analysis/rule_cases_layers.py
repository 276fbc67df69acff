"""Random calls of products, look-ups and whole layers; see `rule_cases`."""

from __future__ import annotations

from dataclasses import replace

from perturb import Draw, Slot
from rule_cases import case, other

from fxperex.sites import BatchAxis


def table(*sizes: int) -> Slot:
    return Slot(sizes)


def pair(d: Draw, left: tuple[int, ...], right: tuple[int, ...]) -> tuple[Slot, Slot]:
    """Two factors, of which one or both carry the batch."""
    choice = d.rng.randrange(3)
    one = table(*left) if choice == 0 else d.x(*left)
    two = table(*right) if choice == 1 else d.x(*right, at=one.axis.dim if one.axis and d.flag() and
                                                one.axis.dim < len(right) else None)
    return one, two


for _left, _right in (((2, 3, 5), (2, 5, 3)), ((3, 5), (5, 2)), ((2, 3, 5), (5, 2)), ((5, ), (5,
                                                                                              2)),
                      ((3, 5), (5, )), ((2, 3, 5), (5, )), ((3, 5), (2, 5, 2)), ((5, ), (2, 5, 3))):
    case("matmul")(lambda d, left=_left, right=_right: pair(d, left, right))
case("mm")(lambda d: pair(d, (3, 5), (5, 2)))
case("bmm")(lambda d: pair(d, (2, 3, 5), (2, 5, 3)))
case("mv")(lambda d: pair(d, (3, 5), (5,)))
case("dot")(lambda d: pair(d, (5,), (5,)))
case("outer ger")(lambda d: pair(d, (5,), (3,)))
case("addmm")(lambda d: (table(2), *pair(d, (3, 5), (5, 2))))
case("addmv")(lambda d: (table(1), *pair(d, (3, 5), (5,))))
case("baddbmm")(lambda d: (table(3), *pair(d, (2, 3, 5), (2, 5, 3))))
case("addbmm")(lambda d: (table(3), *pair(d, (2, 3, 5), (2, 5, 3))))
case("linear")(lambda d: (d.x(*d.sizes(0, 2), 5), table(3, 5), table(3) if d.flag() else None))
case("bilinear")(lambda d: (lambda at: (d.x(2, 3, 5, at=at, plain=True),
                                        d.x(2, 3, 2, at=at, plain=True), table(3, 5, 2), None))
                 (d.rng.randrange(3)))
for _equation, _shapes in (("bij,bjk->bik", ((2, 3, 5), (2, 5, 3))),
                           ("bi,bj->bij", ((2, 3), (2, 5))), ("...d,de->...e", ((2, 3, 5), (5, 2))),
                           ("bt...,ts", ((2, 3, 5), (3, 2))), ("bi,ci->bc", ((2, 3), (5, 3))),
                           ("ti,ij->tj", ((2, 3), (3, 5))), ("btd,bsd->bts", ((2, 3, 5), (2, 3,
                                                                                          5)))):
    case("einsum")(lambda d, e=_equation, s=_shapes: (e, list(pair(d, *s))))


def ids(d: Draw, top: int, *sizes: int) -> Slot:
    return d.x(*sizes, kind="long", top=top)


case("embedding")(lambda d: (table(7, 3), ids(d, 7, *d.sizes(1, 3)), d.rng.choice([-1, 2])))
case("embedding")(lambda d: (d.x(7, 3), Slot((2,), None, "long", 5)))
case("index _unsafe_index", "Tensor")(lambda d: (d.x(5, 3, 5), [None, Slot((4,), None, "long", 1)]))
case("index _unsafe_index", "Tensor")(
    lambda d: (d.x(5, 3, 5), [Slot((4, ), None, "long", 1), None,
                              Slot((4, ), None, "long", 1)]))
case("index _unsafe_index", "Tensor")(lambda d: (table(5, 3), [ids(d, 3, 2, 2)]))
case("index _unsafe_index", "Tensor")(
    lambda d: (table(5, 3, 3), [ids(d, 3, 2), None, Slot((), None, "long", 2)]))
case("gather")(lambda d: (lambda x: (x, d.dim(x), d.like(x, "long", 1)))(d.x(2, 3, 5)))
case("gather")(lambda d: (lambda x: (x, 1, replace(d.x(*x.sizes, kind="long", top=2), axis=x.axis)))
               (d.x(2, 3, 5, at=0)))
case("gather")(lambda d: (table(3, 5), 0, d.x(2, 5, at=0, kind="long", top=3)))
case("take_along_dim")(lambda d: (lambda x: (x, d.like(x, "long", 1), d.rng.randrange(3)))
                       (d.x(2, 3, 5)))
case("scatter",
     "src")(lambda d: (lambda x: (x, d.dim(x), d.like(x, "long", 1), d.like(x)))(d.x(2, 3, 5)))
case("scatter",
     "value")(lambda d: (lambda x: (x, d.dim(x), d.like(x, "long", 1), 0.5))(d.x(2, 3, 5)))
case("scatter_add")(lambda d: (lambda x: (x, d.dim(x), d.like(x, "long", 1), d.like(x)))
                    (d.x(2, 3, 5)))
case("scatter_reduce", "two")(
    lambda d: (lambda x: (x, d.dim(x), d.like(x, "long", 1), d.like(x), "sum"))(d.x(2, 3, 5)))
case("index_select")(lambda d: (d.x(5, 3, 5), d.rng.randrange(3), Slot((2,), None, "long", 2)))
case("index_select")(lambda d: (table(5, 3), 0, d.x(2, kind="long", top=5)))
case("one_hot")(lambda d: (ids(d, 5, 2, 3), 5))
case("tril triu")(lambda d: (d.x(2, 3, 5),))
case("diagonal")(lambda d: (d.x(3, 3),))
case("bucketize", "Tensor")(lambda d: (d.x(), table(1)))
case("searchsorted", "Tensor")(lambda d: (table(1), d.x()))

for _n in (1, 2, 3):
    _space = (5,) * _n
    case(f"conv{_n}d")(lambda d, s=_space: (d.x(2, 4, *s), table(6, 2, *(2 for _ in s)), table(6),
                                            [1] * len(s), [0] * len(s), [1] * len(s), 2))
    case(f"conv_transpose{_n}d", "default" if _n == 1 else "input")(
        lambda d, s=_space: (d.x(2, 4, *s), table(4, 3, *(2 for _ in s))))
    case(f"max_pool{_n}d avg_pool{_n}d")(lambda d, s=_space: (d.x(2, 3, *s), [2] * len(s)))
    case(f"adaptive_avg_pool{_n}d "
         f"adaptive_max_pool{_n}d")(lambda d, s=_space: (d.x(2, 3, *s), [2] * len(s)))
    if _n > 1:
        case(f"_adaptive_avg_pool{_n}d "
             f"max_pool{_n}d_with_indices")(lambda d, s=_space: (d.x(2, 3, *s), [2] * len(s)))
case("max_pool1d_with_indices")(lambda d: (d.x(2, 3, 5), [2]))
case("convolution")(
    lambda d: (d.x(2, 4, 5, 5), table(6, 4, 2, 2), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1))
case("upsample_nearest1d")(lambda d: (d.x(2, 3, 5), [7]))
case("upsample_linear1d")(lambda d: (d.x(2, 3, 5), [7], False))
case("upsample_nearest2d _upsample_nearest_exact2d")(lambda d: (d.x(2, 3, 5, 5), [7, 7]))
case("upsample_bilinear2d upsample_bicubic2d "
     "_upsample_bilinear2d_aa")(lambda d: (d.x(2, 3, 5, 5), [7, 7], False))
case("upsample_nearest3d")(lambda d: (d.x(2, 3, 2, 2, 2), [3, 3, 3]))
case("upsample_trilinear3d")(lambda d: (d.x(2, 3, 2, 2, 2), [3, 3, 3], False))
case("pixel_shuffle")(lambda d: (d.x(2, 4, 3, 3), 2))
case("pixel_unshuffle")(lambda d: (d.x(2, 3, 4, 4), 2))
case("im2col")(lambda d: (d.x(2, 3, 5, 5), [2, 2], [1, 1], [0, 0], [1, 1]))

case("layer_norm")(lambda d: (d.x(2, 3, 5), [5], table(5), table(5)))
case("layer_norm")(lambda d: (d.x(2, 3, 5), [3, 5], None, None))
case("native_layer_norm")(lambda d: (d.x(2, 3, 5), [5], table(5), table(5), 1e-5))
case("rms_norm")(lambda d: (d.x(2, 3, 5), [5], table(5)))
case("_fused_rms_norm")(lambda d: (d.x(2, 3, 5), [5], table(5), 1e-5))
case("group_norm")(lambda d: (d.x(2, 4, 5), 2, table(4), table(4)))
case("channel_shuffle native_channel_shuffle")(lambda d: (d.x(2, 4, 3, 3), 2))
case("instance_norm")(lambda d:
                      (d.x(2, 3, 5), table(3), table(3), None, None, True, 0.1, 1e-5, False))
case("instance_norm")(lambda d:
                      (d.x(2, 3, 5), None, None, table(3), table(3), False, 0.1, 1e-5, False))


def channels(d: Draw) -> Slot:
    """The batch anywhere but in the channels: the kernels do not check that their statistics are as
    many.
    """
    return d.x(2, 3, 5, at=d.rng.choice([0, 0, 2]))


case("batch_norm")(
    lambda d: (channels(d), table(3), table(3), table(3), table(3), d.flag(), 0.1, 1e-5, False))
case("native_batch_norm _native_batch_norm_legit_functional _native_batch_norm_legit")(
    lambda d: (channels(d), table(3), table(3), table(3), table(3), d.flag(), 0.1, 1e-5))
case("_native_batch_norm_legit_no_training _batch_norm_no_update "
     "_batch_norm_with_update_functional")(
    lambda d: (channels(d), table(3), table(3), table(3), table(3), 0.1, 1e-5))


def attention(d: Draw) -> tuple[object, ...]:
    q = d.x(2, 3, 5, 4, plain=d.flag())
    mask = d.rng.choice([None, table(5, 5), d.x(2, 1, 1, 5, at=0, plain=True)])
    return q, d.like(q), other(d, q) if d.flag() else d.like(q), mask


case("scaled_dot_product_attention")(attention)


def recurrent(d: Draw, gates: int, states: int) -> tuple[object, ...]:
    first = d.flag()
    x = d.x(3, 2, 5, plain=True) if d.flag() else d.x(3, 2, 5, at=0 if first else 1, plain=True)
    start = Slot((1, 1, 4), BatchAxis(1))
    weights = [table(4 * gates, 5), table(4 * gates, 4), table(4 * gates), table(4 * gates)]
    return x, [start] * states if states > 1 else start, weights, True, 1, 0.0, True, False, first


case("lstm", "input")(lambda d: recurrent(d, 4, 2))
case("gru", "input")(lambda d: recurrent(d, 3, 1))
case("rnn_tanh rnn_relu", "input")(lambda d: recurrent(d, 1, 1))

for _name in ("mse_loss", "l1_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
              "kl_div", "soft_margin_loss"):
    _more = 1 if _name == "binary_cross_entropy" else 2 if "logits" in _name else 0
    case(_name)(lambda d, more=_more: (lambda x: (x, d.like(x) if d.flag() else other(d, x), *(
        None, ) * more, d.rng.randrange(3)))(d.x()))
case("smooth_l1_loss "
     "huber_loss")(lambda d: (lambda x: (x, d.like(x), d.rng.randrange(3), 1.0))(d.x()))
case("poisson_nll_loss")(lambda d: (lambda x: (x, d.like(x), True, False, 1e-8, d.rng.randrange(3)))
                         (d.x()))


def scores(d: Draw, spatial: int, flat: bool = False) -> tuple[object, ...]:
    at = d.rng.choice([0, 0, d.rng.randrange(2 + spatial)])
    x = d.x(3, 4, *(2,) * spatial, at=at)
    at_target = None if at == 1 else x.axis and x.axis.moved(max(at - 1, 0) if at else 0)
    target = Slot(tuple(s for i, s in enumerate(x.sizes) if i != 1), at_target, "long", 4)
    return x, target, None, d.rng.randrange(3)


for _spatial in (0, 1, 2):
    case("cross_entropy_loss nll_loss_nd")(lambda d, n=_spatial: scores(d, n))
case("nll_loss")(lambda d: scores(d, 0))
case("nll_loss2d")(lambda d: scores(d, 2))
