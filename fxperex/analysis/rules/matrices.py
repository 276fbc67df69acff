"""Matrices of each example, transforms along dimensions, and complex numbers."""

from __future__ import annotations

from fxperex.analysis.rules.pointwise import meet, pointwise
from fxperex.analysis.rules.reduce import drop
from fxperex.analysis.rules.table import rule
from fxperex.analysis.state import Context, Mixes, State, join
from fxperex.sites import BatchAxis

MATRIX = "self|A|input"


def _before(axis: BatchAxis | None, rank: int, sides: int = 2) -> None:
    if axis is not None and axis.dim >= rank - sides:
        raise Mixes("it treats the batch as a side of a matrix; put the batch first")


@rule("aten.linalg_inv_ex", "aten._linalg_det", "aten._linalg_slogdet", "aten._linalg_svd",
      "aten._linalg_eigh", "aten.linalg_qr", "aten.linalg_matrix_exp", "aten.linalg_cholesky_ex",
      "aten.linalg_lu_factor_ex", "aten.linalg_eig", "aten.linalg_eigvals", "aten.logdet",
      reads=MATRIX)
def matrix(context: Context) -> State:
    """What every result keeps are the dimensions before the matrix."""
    axis = context.axis(MATRIX)
    _before(axis, len(context.shape(context.arg(MATRIX))))
    return context.for_each_result(axis)


@rule("aten._linalg_solve_ex", "aten.linalg_solve_triangular", reads="self|A B left")
def solve(context: Context) -> State:
    shapes = [context.shape(context.arg(name)) for name in ("self|A", "B")]
    one, two = context.axis("self|A"), context.axis("B")
    triangular = "triangular" in str(context.node.target)
    # As torch tells vectors from matrices: one less dimension, of the same sizes.
    vector = not triangular and (len(shapes[1]) == 1 or shapes[1] == shapes[0][:-1])
    _before(one, len(shapes[0]))
    _before(two, len(shapes[1]), 1 if vector else 2)
    rank = max(len(shapes[0]), len(shapes[1]) + vector)
    joined = join([one and one.moved(one.dim + rank - len(shapes[0])),
                   two and two.moved(two.dim + rank - len(shapes[1]) - vector)])
    # After the solution come factors, pivots and checks of the matrix alone.
    return joined if triangular else (joined, *(one for _ in context.node.meta["val"][1:]))


@rule("aten.linalg_cross", reads="self other dim")
def cross(context: Context) -> State:
    axis = meet(context, [context.arg("self"), context.arg("other")], len(context.out))
    return drop(context, axis, context.arg("dim"), True, "takes the product", len(context.out))


@rule("aten._cdist_forward", reads="x1 x2")
def distances(context: Context) -> State:
    shapes = [context.shape(context.arg(name)) for name in ("x1", "x2")]
    one, two = context.axis("x1"), context.axis("x2")
    rank = len(context.out)
    for axis, shape in ((one, shapes[0]), (two, shapes[1])):
        if axis is not None and axis.dim == len(shape) - 1:
            raise Mixes("it adds up over the batch dimension")
    if two is not None and two.dim == len(shapes[1]) - 2:
        two = two.moved(len(shapes[1]) - 1)  # rows of the second are columns of the result
    return join(axis and axis.moved(axis.dim + rank - len(shape))
                for axis, shape in ((one, shapes[0]), (two, shapes[1])))


@rule("aten._fft_c2c", "aten._fft_r2c", "aten._fft_c2r", reads="self dim")
def transformed(context: Context) -> State:
    return drop(context, context.axis("self"), context.arg("dim"), True, "transforms")


@rule("aten.stft", reads="self window")
def spectrogram(context: Context) -> State:
    axis = context.axis("self")
    if context.axis("window") is not None:
        raise Mixes("its window depends on the batch")
    _before(axis, len(context.shape(context.arg("self"))), 1)
    return axis


@rule("aten.view_as_complex", "aten.view_as_real", reads="self")
def pairs(context: Context) -> State:
    axis, rank = context.axis("self"), len(context.shape(context.arg("self")))
    if axis is not None and "complex" in str(context.node.target) and axis.dim == rank - 1:
        raise Mixes("it takes two examples for the parts of one complex number")
    return axis


rule("aten.complex", "aten.polar", "aten._conj", "aten._conj_physical", "aten._neg_view")(pointwise)


@rule("aten.quantile", "aten.nanquantile", reads="self q dim keepdim")
def quantile(context: Context) -> State:
    if context.axis("q") is not None:
        raise Mixes("which quantile it takes depends on the batch")
    axis = drop(context, context.axis("self"), context.arg("dim"), context.arg("keepdim"),
                "takes a quantile")
    several = len(context.shape(context.arg("q"))) == 1  # they come first
    return axis and axis.moved(axis.dim + several)


@rule("aten.aminmax", reads="self dim keepdim")
def extremes(context: Context) -> State:
    return context.for_each_result(drop(context, context.axis("self"), context.arg("dim"),
                                        context.arg("keepdim"), "reduces"))

