"""Random calls of writes, pieces, matrices, transforms and complex numbers; see `rule_cases`."""

from __future__ import annotations

from perturb import Draw, Rows, Slot
from rule_cases import case, other
from rule_cases_layers import ids, table

from fxperex.sites import BatchAxis


def places(*sizes: int, top: int = 3) -> Slot:
    """An index without a batch."""
    return Slot(sizes, None, "long", top)


def of(x: Slot, *sizes: int, shift: int = 0) -> Slot:
    """A tensor of `sizes` with the batch where `x` has it, `shift` dimensions on."""
    return Slot(sizes, x.axis and x.axis.moved(x.axis.dim + shift))


def first(d: Draw, *sizes: int) -> Slot:
    return d.x(*sizes, at=0, plain=True)


case("index_put")(lambda d: (lambda x: (x, [None, places(2)], Slot(())))(d.x(2, 3, 5)))
case("index_put")(lambda d: (lambda x: (x, [None, places(2, top=1), places(2)],
                                        first(d, 1, 2) if d.flag() else table(2)))(
                                            first(d, 1, 3, 5)))
case("index_put")(lambda d: (first(d, 1, 3), [None, ids(d, 3, 1)], Slot(())))
case("index_put")(lambda d: (lambda x: (x, [places(2, top=2)], Slot(())))(d.x(2, 3)))
case("index_add index_copy")(lambda d: (lambda x, at: (
    x, at, places(2, top=2), Slot(tuple(2 if i == at and i != x.axis.dim else s for i, s in
                                        enumerate(x.sizes)), x.axis)))(
                                            d.x(2, 3, 5), d.rng.randrange(3)))
case("index_reduce")(lambda d: (lambda x: (x, 2, places(2, top=2), of(x, *x.sizes[:2], 2), "amax"))(
    d.x(2, 3, 5, at=d.rng.randrange(2))))
case("index_fill", "int_Scalar")(lambda d: (lambda x: (x, d.dim(x), places(2, top=1), 0.5))(
    d.x(2, 3, 5)))
case("diagonal_scatter")(lambda d: (first(d, 1, 3, 3), first(d, 1, 3), 0, *d.rng.choice(
    [(1, 2), (-1, -2), (0, 1)])))
case("diag_embed")(lambda d: (d.x(2, 3), 0, *d.rng.choice([(-2, -1), (0, 1), (0, -1)])))
case("diagonal")(lambda d: (d.x(3, 3, 3), 0, *d.rng.choice([(1, 2), (-1, 0), (0, 1)])))
case("take")(lambda d: (table(2, 3), ids(d, 6, 2, 3)))
case("take")(lambda d: (d.x(2, 3), places(2)))
case("gather")(lambda d: (table(5), 0, ids(d, 5, 3)))
case("gather")(lambda d: (table(5, 2), 0, d.x(3, 2, at=0, kind="long", top=5)))
case("take_along_dim")(lambda d: (table(5, 2), d.x(3, 2, at=0, kind="long", top=5), 0))
case("take_along_dim")(lambda d: (table(5), ids(d, 5, 3)))
case("take_along_dim")(lambda d: (d.x(2, 3), places(1, 2, top=1), 1))
case("searchsorted", "Tensor")(lambda d: (lambda x: (x, d.like(x)))(d.x(2, 3, 5)))
case("searchsorted", "Tensor")(lambda d: (table(5), d.x(2, 3)))


def joined(d: Draw) -> tuple[object, ...]:
    x = d.x(2, 3, at=0)
    return [x, d.x(2, 3, at=d.rng.choice([0, 0, 1])), *([d.like(x)] if d.flag() else [])], 0


case("cat concat")(joined)
case("slice", "Tensor")(lambda d: (Slot((3, 2), BatchAxis(0, 3, 1)), 0, d.rng.choice(
    [0, 1, Rows(1), Rows(2), Rows(-1)]), d.rng.choice([9999, Rows(2), Rows(3), 4])))
case("slice", "Tensor")(lambda d: (Slot((6, 2), BatchAxis(0, 3, 2)), 0, d.rng.choice(
    [0, Rows(1), Rows(2), Rows(-2)]), d.rng.choice([9999, Rows(4), Rows(3)])))
case("split", "Tensor")(lambda d: (Slot((4, 2), BatchAxis(0, *d.rng.choice([(4, 1), (2, 2)]))),
                                   d.rng.choice([1, 2, Rows(1), Rows(2)]), 0))
case("chunk")(lambda d: (Slot((4, 2), BatchAxis(0, *d.rng.choice([(4, 1), (1, 4), (2, 2)]))), 2, 0))
case("rot90")(lambda d: (lambda x: (x, 1, d.rng.sample(range(3), 2)))(d.x(2, 3, 5)))

case("linalg_inv_ex _linalg_det _linalg_slogdet _linalg_svd _linalg_eigh linalg_qr "
     "linalg_matrix_exp linalg_cholesky_ex linalg_lu_factor_ex linalg_eig linalg_eigvals "
     "logdet")(lambda d: (d.x(2, 3, 3, at=d.rng.choice([0, 0, 1, 2])),))
case("_linalg_solve_ex")(lambda d: (lambda x: (x, d.rng.choice([d.like(x), of(x, 2, 3, 3),
                                                                table(3, 3)])))(
                                                                    first(d, 1, 3, 3)))
case("_linalg_solve_ex")(lambda d: (table(3, 3), first(d, 1, 3, 2)))
case("_linalg_solve_ex")(lambda d: (first(d, 1, 3, 3), first(d, 1, 3)))
case("linalg_solve_triangular")(lambda d: (
    d.x(2, 3, 3, at=d.rng.choice([0, 1]), plain=True), d.x(2, 3, 3, at=0, plain=True),
    {"upper": True}))
case("linalg_cross")(lambda d: (lambda x: (x, other(d, x), {"dim": d.rng.choice([1, 2])}))(
    d.x(2, 3, 3, at=d.rng.choice([0, 0, 1]))))
case("_cdist_forward")(lambda d: (d.x(2, 3, 5, at=d.rng.choice([0, 1])), d.x(2, 3, 5, at=0), 2.0,
                                  None))
case("_cdist_forward")(lambda d: (d.x(3, 5), table(2, 5), 2.0, None))
case("_cdist_forward")(lambda d: (table(2, 5), d.x(3, 5), 2.0, None))
case("_fft_r2c")(lambda d: (lambda x: (x, d.dims(x), 0, d.flag()))(d.x(2, 3, 5)))
case("_fft_c2c")(lambda d: (lambda x: (x, d.dims(x), 0, d.flag()))(d.x(2, 3, 5, kind="complex")))
# As long as the input is: the kernel reads half of it, and does not check that it is there.
case("_fft_c2r")(lambda d: (lambda x, at: (x, [at], 0, d.shape(x)[at]))(
    d.x(3, 5, 3, kind="complex"), d.rng.randrange(3)))
case("stft", "center")(lambda d: (d.x(3, 8), 4, {"return_complex": True, "center": False}))
case("view_as_complex")(lambda d: (d.x(2, 3, 2, at=d.rng.randrange(3)),))
case("view_as_real _conj _conj_physical")(lambda d: (d.x(2, 3, kind="complex"),))
case("_neg_view")(lambda d: (d.x(),))
case("complex polar")(lambda d: (x := d.x(), other(d, x)))
case("quantile nanquantile", "scalar")(lambda d: (lambda x: (x, 0.3, d.dim(x), d.flag()))(d.x()))
case("quantile nanquantile")(lambda d: (lambda x: (x, table(2), d.dim(x), d.flag()))(d.x()))
case("aminmax")(lambda d: (lambda x: (x, {"dim": d.dim(x), "keepdim": d.flag()}))(d.x()))

case("_upsample_bicubic2d_aa")(lambda d: (d.x(2, 3, 5, 5), [7, 7], False))
case("col2im")(lambda d: (d.x(2, 12, 4), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]))
case("max_unpool2d")(lambda d: (lambda x: (x, d.like(x, "long", 16), [4, 4]))(d.x(2, 3, 2, 2)))
case("max_unpool3d")(lambda d: (lambda x: (
    x, d.like(x, "long", 64), [4, 4, 4], [2, 2, 2], [0, 0, 0]))(d.x(2, 3, 2, 2, 2)))
case("grid_sampler grid_sampler_2d")(lambda d: (
    d.x(2, 3, 4, 4, at=0), d.x(2, 3, 3, 2, at=d.rng.choice([0, 0, 1])), 0, 0, False))
case("grid_sampler_3d")(lambda d: (d.x(2, 3, 4, 4, 4, at=0), d.x(2, 3, 3, 3, 3, at=0), 0, 0, False))
case("multi_margin_loss")(lambda d: (d.x(2, 3, at=0), d.x(2, at=0, kind="long", top=3), 1, 1.0,
                                     None, d.rng.randrange(3)))
case("multilabel_margin_loss")(lambda d: (d.x(2, 3, at=d.rng.choice([0, 0, 1])), d.x(
    2, 3, at=0, kind="long", top=3), d.rng.randrange(3)))
