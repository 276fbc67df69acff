"""Plain steps of the programs in `orders`, which keep examples apart, and their beginning and
end.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from orders import D, Pool, Rows, Step, T, Tape, Value, aten, newest

F64 = {"dtype": torch.float64}
SHAPES: dict[str, list[Any]] = {
    "b": [Rows(), D], "bt": [Rows(), T, D], "tb": [T, Rows(), D], "e": [Rows(T), D],
    "t": [Rows(T), D]
}
BATCH = {"b": 0, "bt": 0, "tb": 1, "e": 0, "t": 0}


def start(tape: Tape) -> Pool:
    h = tape(aten.linear.default, tape["x"], tape["w"])
    s = tape(aten.transpose.int, h, 0, 1)
    return {
        "bt": [h], "tb": [s], "b": [tape(aten.mean.dim, h,
                                         [1])], "e": [tape(aten.reshape.default, h, [Rows(T), D])],
        "t": [tape(aten.reshape.default, s, [Rows(T), D])]
    }


def form(rng: random.Random) -> str:
    return rng.choice(["b", "bt", "tb", "e", "e", "e", "t", "t", "t"])


def put(pool: Pool, at: str, value: Value) -> None:
    pool[at].append(value)


def own_dim(rng: random.Random, at: str) -> int:
    return rng.choice([d for d in range(len(SHAPES[at])) if d != BATCH[at]])


def moves(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """A value of one form in another, in the right order."""
    at, to = rng.choice([("bt", "tb"), ("tb", "bt"), ("bt", "e"), ("tb", "t"), ("e", "bt"),
                         ("t", "tb"), ("bt", "b"), ("tb", "b")])
    x = newest(rng, pool, at)
    if to == "b":
        put(
            pool, to,
            tape(rng.choice([aten.sum.dim_IntList, aten.mean.dim, aten.amax.default]), x,
                 [1 - BATCH[at]]))
    elif {at, to} == {"bt", "tb"}:
        put(pool, to, tape(aten.transpose.int, x, 0, 1))
    else:
        op = rng.choice([aten.reshape.default, aten.view.default])  # drawn whatever the size
        dense = all(value.is_contiguous() for value in x.values)
        put(pool, to, tape(op if dense else aten.reshape.default, x, SHAPES[to]))


def maps(tape: Tape, rng: random.Random, pool: Pool, over: str = "") -> None:
    """One value, element by element or along a dimension that is not the batch (`over`: its own, or
    the batch).
    """
    at = form(rng)
    x = newest(rng, pool, at)
    d = BATCH[at] if over else own_dim(rng, at)
    put(
        pool, at,
        rng.choice([
            lambda: tape(aten.tanh.default, x),
            lambda: tape(aten.sin.default, x),
            lambda: tape(aten.mul.Tensor, x, 1.1),
            lambda: tape(aten.matmul.default, x, tape["w"]),
            lambda: tape(aten.mul.Tensor, x, tape["v"]),
            lambda: tape(aten.add.Tensor, x, tape["one"]),
            lambda: tape(aten.layer_norm.default, x, [D]),
        ] if rng.random() < 0.4 and not over else [
            lambda: tape(aten.softmax.int, x, d),
            lambda: tape(aten.cumsum.default, x, d),
            lambda: tape(aten.roll.default, x, [1], [d]),
            lambda: tape(aten.flip.default, x, [d]),
            lambda: tape(aten.sort.default, x, d).part(tape, 0),
            lambda: tape(aten.sort.stable, x, stable=True, dim=d).part(tape, 0),
            lambda: tape(aten.cummax.default, x, d).part(tape, 0),
            lambda: tape(aten.add.Tensor, x, tape(aten.sum.dim_IntList, x, [d], True)),
            lambda: tape(
                aten.div.Tensor, x,
                tape(aten.add.Tensor, tape(aten.linalg_vector_norm.default, x, 2, [d], True), 1.0)),
            lambda: tape(aten.index_select.default, x,
                         len(SHAPES[at]) - 1, tape(aten.arange.default, D)),
            lambda: tape(aten.gather.default, x, d, tape(aten.argsort.default, x, d)),
            lambda: tape(aten.slice.Tensor, tape(aten.constant_pad_nd.default, x, [1, 0]), -1, 0, D
                         ),
            lambda: tape(aten.mul.Tensor, x,
                         tape(aten.var.correction, x, [d], correction=0, keepdim=True)),
        ])())


def fresh(tape: Tape, rng: random.Random, at: str, parameter: float = 0.2) -> Value:
    """A value made from nothing, of a form: rows that are all alike."""
    shape = SHAPES[at]
    return rng.choice([
        lambda: tape(aten.ones.default, shape, **F64),
        lambda: tape(aten.full.default, shape, 0.7, **F64),
        lambda: tape(aten.add.Tensor,
                     tape(aten.mul.Tensor, tape(aten.rand.default, shape, **F64), 0.0), 1.3),
        lambda: uneven(tape, rng, at, parameter), lambda: uneven(tape, rng, at, 2 * parameter)
    ])()


def uneven(tape: Tape, rng: random.Random, at: str, parameter: float) -> Value:
    """Rows that are all alike, of entries that differ: losses of them tell the classes apart."""
    enters = rng.random() < parameter
    if rng.random() < 0.5:
        return tape(aten.expand.default, tape["v" if enters else "one"], SHAPES[at])
    ones = tape(aten.ones.default, SHAPES[at], **F64)
    return tape(aten.matmul.default, ones, tape["w" if enters else "mix"])


def table(tape: Tape, rng: random.Random, at: str, parameter: float = 0.4) -> Value:
    """Values without batch that differ by position, written down for every example, in the form's
    order.
    """
    u = tape["u" if rng.random() < parameter else "table"]
    if at == "t":
        return tape(aten.repeat_interleave.self_int, u, Rows(), 0)
    if rng.random() < 0.4:
        ids = tape(aten.repeat.default, tape(aten.arange.default, T), [Rows()])
        return tape(aten.embedding.default, u, ids)
    return tape(aten.repeat.default, u, [Rows(), 1])


def merged_fresh(tape: Tape, rng: random.Random) -> Value:
    """Rows made from nothing that were alike until a reshape put other dimensions between them: in
    neither order.
    """
    ones = tape(aten.ones.default, [T, Rows(T), D // T], **F64) if rng.random() < 0.8 else tape(
        aten.ones.default, [T, Rows(), D], **F64)
    x = tape(aten.mul.Tensor, ones, tape(aten.reshape.default, tape["pos"], [T, 1, 1]))
    return tape(aten.reshape.default, x, [Rows(T), -1])


def constants(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Meets a value with something made from nothing, or a table in its own order."""
    at = form(rng)
    x = newest(rng, pool, at)
    other = table(tape, rng, at) if at in {"e", "t"} and rng.random() < 0.5 else fresh(
        tape, rng, at)
    if at in {"e", "t"} and rng.random() < 0.35:
        put(pool, at, other)
    put(pool, at, join(tape, rng, x, other))


def join(tape: Tape, rng: random.Random, x: Value, y: Value) -> Value:
    """One value of two of one shape, entry by entry."""
    if rng.random() < 0.3:
        x, y = y, x
    letters = "nmd"[:len(x.shape) - 1] + "k"
    return rng.choice([
        lambda: tape(aten.add.Tensor, x, y),
        lambda: tape(aten.mul.Tensor, x, y),
        lambda: tape(aten.maximum.default, x, y),
        lambda: tape(aten.einsum.default, f"{letters},{letters}->{letters}", [x, y]),
        lambda: tape(aten.einsum.default, f"{letters},{letters}->{letters}", [x, y]),
        lambda: tape(aten.where.self, tape(aten.gt.Scalar, y, 0.5), x, tape["one"]),
        lambda: tape(aten.where.self, tape(aten.gt.Scalar, y, 0.5), x, tape["v"]),
        lambda: tape(aten.addcmul.default, x, y, tape["v"]),
        lambda: tape(aten.slice.Tensor, tape(aten.cat.default, [y, x], -1), -1, D - 1, 2 * D - 1),
        lambda: tape(aten.prod.dim_int, tape(aten.stack.default, [x, y], 0), 0),
        lambda: tape(
            aten.mul.Tensor, x,
            tape(aten.unsqueeze.default, tape(aten.cosine_similarity.default, x, y, -1), -1)),
    ])()


def joins(tape: Tape, rng: random.Random, pool: Pool) -> None:
    at = form(rng)
    put(pool, at, join(tape, rng, newest(rng, pool, at), newest(rng, pool, at)))


def target(tape: Tape, rng: random.Random, at: str) -> Value:
    """A class for every row, in a form's order."""
    choice = rng.randrange(5)
    if choice < 2:
        return tape(aten.repeat_interleave.self_int, tape["y"], T, 0) if at == "e" else tape(
            aten.repeat.default, tape["y"], [T])
    if choice < 4:
        wide = tape(aten.expand.default, tape(aten.unsqueeze.default, tape["y"], 1), [Rows(), T])
        return tape(aten.reshape.default, wide if at == "e" else tape(aten.t.default, wide),
                    [Rows(T)])
    return tape(aten.zeros.default, [Rows(T)], dtype=torch.long)


def scored(tape: Tape, rng: random.Random, x: Value, classes: Value) -> Value:
    """Losses of rows of scores, `[T * B]` in the rows' order."""
    if rng.random() < 0.5:
        return tape(aten.cross_entropy_loss.default, x, classes, None, 0)
    return tape(aten.nll_loss_nd.default, tape(aten.log_softmax.int, x, 1), classes, None, 0)


def spread(tape: Tape, rng: random.Random, pool: Pool, at: str, loss: Value) -> None:
    """Puts losses of rows of form `at` over the features again, or an example's sum of them."""
    to = at
    if rng.random() < 0.4:
        to, shape = "b", SHAPES["bt" if at == "e" else "tb"][:2]
        own = tape(aten.reshape.default, loss, shape)
        loss = tape(aten.sum.dim_IntList, own, [1 if at == "e" else 0])
    put(pool, to, tape(aten.expand.default, tape(aten.unsqueeze.default, loss, 1), SHAPES[to]))


def scores(tape: Tape, rng: random.Random, pool: Pool) -> None:
    at = rng.choice("et")
    x = newest(rng, pool, at) if rng.random() < 0.8 else uneven(tape, rng, at, 0.2)
    spread(tape, rng, pool, at, scored(tape, rng, x, target(tape, rng, at)))


def own_rows(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Every example's own row, or its own entry of it."""
    x, i = newest(rng, pool, "b"), tape(aten.arange.default, Rows())
    if rng.random() < 0.4:
        put(pool, "b", tape(aten.index.Tensor, x, [i]))
        return
    chosen = tape(aten.index.Tensor, x, [i, tape(aten.argmax.default, x, 1)])
    put(pool, "b", tape(aten.mul.Tensor, x, tape(aten.unsqueeze.default, chosen, 1)))


def norms(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Batch normalisation that evaluates, under its several names."""
    at = rng.choice(["b", "e", "t"])
    x, mean, spread = newest(rng, pool, at), tape["mean"], tape["spread"]
    put(
        pool, at,
        rng.choice([
            lambda: tape(aten.batch_norm.default, x, None, None, mean, spread, False, 0.1, 1e-5,
                         False), lambda: tape(aten._native_batch_norm_legit_no_training.default, x,
                                              None, None, mean, spread, 0.1, 1e-5).part(tape, 0),
            lambda: tape(aten.native_batch_norm.default, x, None, None, mean, spread, False, 0.1,
                         1e-5).part(tape, 0)
        ])())


PLAIN: list[Step] = [
    moves, moves, moves, maps, maps, maps, constants, constants, joins, scores, own_rows, norms
]


def finish(tape: Tape, rng: random.Random, pool: Pool) -> Value:
    """The losses `[B]`: of every form's newest value, brought back in the right order."""
    back = {"b": ([Rows(), D], [1]), "bt": ([Rows(), T, D], [1, 2]), "tb": ([T, Rows(), D], [0, 2]),
            "e": ([Rows(), T, D], [1, 2]), "t": ([T, Rows(), D], [0, 2])}
    total = None
    for at, (shape, dims) in back.items():
        value = tape(aten.sin.default, tape(aten.reshape.default, pool[at][-1], shape))
        one = tape(aten.sum.dim_IntList, tape(aten.mul.Tensor, value, tape["one"]), dims)
        total = one if total is None else tape(aten.add.Tensor, total, one)
    assert total is not None
    return total
