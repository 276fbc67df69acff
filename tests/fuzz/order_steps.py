"""Steps of the programs in `orders`: plain ones keep examples apart, risky ones may let them meet."""

from __future__ import annotations

import random
from typing import Any

import torch
from orders import D, Pool, Rows, Step, T, Tape, Value, aten, newest

F64 = {"dtype": torch.float64}
SHAPES: dict[str, list[Any]] = {"b": [Rows(), D], "bt": [Rows(), T, D], "tb": [T, Rows(), D], "e": [Rows(T), D],
                                "t": [Rows(T), D]}
BATCH = {"b": 0, "bt": 0, "tb": 1, "e": 0, "t": 0}


def start(tape: Tape) -> Pool:
    h = tape(aten.linear.default, tape["x"], tape["w"])
    s = tape(aten.transpose.int, h, 0, 1)
    return {"bt": [h], "tb": [s], "b": [tape(aten.mean.dim, h, [1])], "e": [tape(aten.reshape.default, h, [Rows(T), D])],
            "t": [tape(aten.reshape.default, s, [Rows(T), D])]}


def form(rng: random.Random) -> str:
    return rng.choice(["b", "bt", "tb", "e", "e", "e", "t", "t", "t"])


def put(pool: Pool, at: str, value: Value) -> None:
    pool[at].append(value)


def own_dim(rng: random.Random, at: str) -> int:
    return rng.choice([d for d in range(len(SHAPES[at])) if d != BATCH[at]])


def moves(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """A value of one form in another, in the right order."""
    at, to = rng.choice([("bt", "tb"), ("tb", "bt"), ("bt", "e"), ("tb", "t"), ("e", "bt"), ("t", "tb"), ("bt", "b"),
                         ("tb", "b")])
    x = newest(rng, pool, at)
    if to == "b":
        put(pool, to, tape(rng.choice([aten.sum.dim_IntList, aten.mean.dim, aten.amax.default]), x, [1 - BATCH[at]]))
    elif {at, to} == {"bt", "tb"}:
        put(pool, to, tape(aten.transpose.int, x, 0, 1))
    else:
        put(pool, to, tape(rng.choice([aten.reshape.default, aten.view.default]) if x.values[0].is_contiguous()
                           else aten.reshape.default, x, SHAPES[to]))


def maps(tape: Tape, rng: random.Random, pool: Pool, over: str = "") -> None:
    """One value, element by element or along a dimension that is not the batch (`over`: its own, or the batch)."""
    at = form(rng)
    x = newest(rng, pool, at)
    d = BATCH[at] if over else own_dim(rng, at)
    put(pool, at, rng.choice([
        lambda: tape(aten.tanh.default, x), lambda: tape(aten.sin.default, x), lambda: tape(aten.mul.Tensor, x, 1.1),
        lambda: tape(aten.matmul.default, x, tape["w"]), lambda: tape(aten.mul.Tensor, x, tape["v"]),
        lambda: tape(aten.add.Tensor, x, tape["one"]), lambda: tape(aten.layer_norm.default, x, [D]),
    ] if rng.random() < 0.4 and not over else [
        lambda: tape(aten.softmax.int, x, d), lambda: tape(aten.cumsum.default, x, d),
        lambda: tape(aten.roll.default, x, [1], [d]), lambda: tape(aten.flip.default, x, [d]),
        lambda: tape(aten.sort.default, x, d).part(tape, 0), lambda: tape(aten.sort.stable, x, stable=True, dim=d).part(tape, 0),
        lambda: tape(aten.cummax.default, x, d).part(tape, 0),
        lambda: tape(aten.add.Tensor, x, tape(aten.sum.dim_IntList, x, [d], True)),
        lambda: tape(aten.div.Tensor, x, tape(aten.add.Tensor, tape(aten.linalg_vector_norm.default, x, 2, [d], True), 1.0)),
        lambda: tape(aten.index_select.default, x, len(SHAPES[at]) - 1, tape(aten.arange.default, D)),
        lambda: tape(aten.gather.default, x, d, tape(aten.argsort.default, x, d)),
        lambda: tape(aten.slice.Tensor, tape(aten.constant_pad_nd.default, x, [1, 0]), -1, 0, D),
        lambda: tape(aten.mul.Tensor, x, tape(aten.var.correction, x, [d], correction=0, keepdim=True)),
    ])())


def fresh(tape: Tape, rng: random.Random, at: str, parameter: float = 0.2) -> Value:
    """A value made from nothing, of a form: rows that are all alike."""
    shape = SHAPES[at]
    return rng.choice([
        lambda: tape(aten.ones.default, shape, **F64),
        lambda: tape(aten.full.default, shape, 0.7, **F64),
        lambda: tape(aten.add.Tensor, tape(aten.mul.Tensor, tape(aten.rand.default, shape, **F64), 0.0), 1.3),
        lambda: tape(aten.expand.default, tape["v" if rng.random() < parameter else "one"], shape),
        lambda: tape(aten.matmul.default, tape(aten.ones.default, shape, **F64),
                     tape["w"]) if rng.random() < 3 * parameter else tape(aten.ones.default, shape, **F64)])()


def table(tape: Tape, rng: random.Random, at: str) -> Value:
    """Values without batch that differ by position, written down for every example, in the form's order."""
    u = tape["u" if rng.random() < 0.4 else "table"]
    if at == "t":
        return tape(aten.repeat_interleave.self_int, u, Rows(), 0)
    if rng.random() < 0.4:
        ids = tape(aten.repeat.default, tape(aten.arange.default, T), [Rows()])
        return tape(aten.embedding.default, u, ids)
    return tape(aten.repeat.default, u, [Rows(), 1])


def merged_fresh(tape: Tape, rng: random.Random) -> Value:
    """Rows made from nothing that were alike until a reshape put other dimensions between them: in neither order."""
    ones = tape(aten.ones.default, [T, Rows(T), D // T], **F64) if rng.random() < 0.5 else tape(
        aten.ones.default, [T, Rows(), D], **F64)
    x = tape(aten.mul.Tensor, ones, tape(aten.reshape.default, tape["pos"], [T, 1, 1]))
    return tape(aten.reshape.default, x, [Rows(T), -1])


def constants(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Meets a value with something made from nothing, or a table in its own order."""
    at = form(rng)
    x = newest(rng, pool, at)
    other = table(tape, rng, at) if at in {"e", "t"} and rng.random() < 0.5 else fresh(tape, rng, at)
    if at in {"e", "t"} and rng.random() < 0.35:
        put(pool, at, other)
    put(pool, at, join(tape, rng, x, other))


def join(tape: Tape, rng: random.Random, x: Value, y: Value) -> Value:
    """One value of two of one shape, entry by entry."""
    if rng.random() < 0.3:
        x, y = y, x
    letters = "nmd"[:len(x.shape) - 1] + "k"
    return rng.choice([
        lambda: tape(aten.add.Tensor, x, y), lambda: tape(aten.mul.Tensor, x, y), lambda: tape(aten.maximum.default, x, y),
        lambda: tape(aten.einsum.default, f"{letters},{letters}->{letters}", [x, y]),
        lambda: tape(aten.einsum.default, f"{letters},{letters}->{letters}", [x, y]),
        lambda: tape(aten.where.self, tape(aten.gt.Scalar, y, 0.5), x, tape["one"]),
        lambda: tape(aten.where.self, tape(aten.gt.Scalar, y, 0.5), x, tape["v"]),
        lambda: tape(aten.addcmul.default, x, y, tape["v"]),
        lambda: tape(aten.slice.Tensor, tape(aten.cat.default, [y, x], -1), -1, D - 1, 2 * D - 1),
        lambda: tape(aten.prod.dim_int, tape(aten.stack.default, [x, y], 0), 0),
        lambda: tape(aten.mul.Tensor, x, tape(aten.unsqueeze.default, tape(aten.cosine_similarity.default, x, y, -1), -1)),
    ])()


def joins(tape: Tape, rng: random.Random, pool: Pool) -> None:
    at = form(rng)
    put(pool, at, join(tape, rng, newest(rng, pool, at), newest(rng, pool, at)))


def target(tape: Tape, rng: random.Random, at: str) -> Value:
    """A class for every row, in a form's order."""
    choice = rng.randrange(3)
    if choice == 0:
        return tape(aten.repeat_interleave.self_int, tape["y"], T, 0) if at == "e" else tape(
            aten.repeat.default, tape["y"], [T])
    if choice == 1:
        wide = tape(aten.expand.default, tape(aten.unsqueeze.default, tape["y"], 1), [Rows(), T])
        return tape(aten.reshape.default, wide if at == "e" else tape(aten.t.default, wide), [Rows(T)])
    return tape(aten.zeros.default, [Rows(T)], dtype=torch.long)


def scored(tape: Tape, rng: random.Random, x: Value, classes: Value) -> Value:
    """Losses of rows of scores, spread over the features again."""
    if rng.random() < 0.5:
        loss = tape(aten.cross_entropy_loss.default, x, classes, None, 0)
    else:
        loss = tape(aten.nll_loss_nd.default, tape(aten.log_softmax.int, x, 1), classes, None, 0)
    return tape(aten.expand.default, tape(aten.unsqueeze.default, loss, 1), [Rows(T), D])


def scores(tape: Tape, rng: random.Random, pool: Pool) -> None:
    at = rng.choice("et")
    x = fresh(tape, rng, at) if rng.random() < 0.2 else newest(rng, pool, at)
    put(pool, at, scored(tape, rng, x, target(tape, rng, at)))


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
    put(pool, at, rng.choice([
        lambda: tape(aten.batch_norm.default, x, None, None, mean, spread, False, 0.1, 1e-5, False),
        lambda: tape(aten._native_batch_norm_legit_no_training.default, x, None, None, mean, spread, 0.1, 1e-5).part(tape, 0),
        lambda: tape(aten.native_batch_norm.default, x, None, None, mean, spread, False, 0.1, 1e-5).part(tape, 0)])())


# --- what may let examples meet ---


def flagged(tape: Tape, rng: random.Random, x: Value, alike: Value) -> Value:
    """A value joined with rows that are all alike: its own order stays."""
    if rng.random() < 0.4:
        return join(tape, rng, x, alike)
    return tape(aten.einsum.default, "nk,nk->nk", [x, alike])


def crosses(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Joins values of one shape in two orders: right only if one of them has all rows alike."""
    at, other = rng.choice([("e", "t"), ("t", "e")])
    x = newest(rng, pool, at)
    y = rng.choice([lambda: newest(rng, pool, other), lambda: table(tape, rng, other), lambda: fresh(tape, rng, other),
                    lambda: flagged(tape, rng, newest(rng, pool, other), fresh(tape, rng, other, 0)),
                    lambda: merged_fresh(tape, rng)])()
    if y.shape == x.shape:
        put(pool, at, join(tape, rng, x, y))


def crossed_scores(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Scores in one order, classes in the other."""
    at, other = rng.choice([("e", "t"), ("e", "t"), ("t", "e")])
    x = fresh(tape, rng, at, 0.3) if rng.random() < 0.8 else newest(rng, pool, at)
    if rng.random() < 0.3:
        x = tape(aten.mul.Tensor, x, tape["v"])
    put(pool, rng.choice([at, at, at, other]), scored(tape, rng, x, target(tape, rng, other)))


def places(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """An example's place in the batch, and rows that it looks up."""
    x, i = newest(rng, pool, "b"), tape(aten.arange.default, Rows())
    wide = tape(aten.expand.default, tape(aten.unsqueeze.default, i, 1), [Rows(), D])
    number = rng.choice([
        lambda: tape(aten.unsqueeze.default, tape(aten.index.Tensor, x, [i, i]), 1) if max(tape.rows) <= D else wide,
        lambda: tape(aten.unsqueeze.default, tape(aten.index.Tensor, i, [i]), 1),
        lambda: tape(aten.index.Tensor, wide, [i]), lambda: wide,
        lambda: tape(aten.index.Tensor, tape["table"], [tape(aten.clamp.default, i, 0, T - 1)])])()
    put(pool, "b", tape(aten.mul.Tensor, x, tape(aten.add.Tensor, number, 1)))


def trains(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Batch normalisation that trains, under its several names, with and without eps."""
    at = rng.choice(["b", "e", "t"])
    x, eps, none = newest(rng, pool, at), rng.choice([0.0, 0.0, 1e-5]), None
    put(pool, at, rng.choice([
        lambda: tape(aten._native_batch_norm_legit.no_stats, x, none, none, True, 0.1, eps).part(tape, 0),
        lambda: tape(aten.native_batch_norm.default, x, none, none, none, none, True, 0.1, eps).part(tape, 0),
        lambda: tape(aten.batch_norm.default, x, none, none, none, none, True, 0.1, eps, False)])())


def partly(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Writes into rows: an index as long as what it writes to, or of the first rows alone."""
    at = rng.choice("et")
    base = newest(rng, pool, at)
    index = tape(aten.zeros.default, [rng.choice([Rows(T), Rows()]), 1], dtype=torch.long)
    op = rng.choice([aten.scatter.src, aten.scatter_add.default])
    put(pool, at, tape(op, base, 1, index, fresh(tape, rng, at, 0)))  # torch has no gradient for a longer source


def wrong_view(tape: Tape, rng: random.Random, pool: Pool) -> None:
    at, to = rng.choice([("e", "tb"), ("t", "bt"), ("bt", "t"), ("tb", "e")])
    put(pool, to, tape(aten.reshape.default, newest(rng, pool, at), SHAPES[to]))


def over_batch(tape: Tape, rng: random.Random, pool: Pool) -> None:
    maps(tape, rng, pool, "the batch")


def numbers(tape: Tape, rng: random.Random, pool: Pool) -> None:
    x = newest(rng, pool, "b")
    put(pool, "b", rng.choice([
        lambda: tape(aten.mul.Scalar, x, Rows()), lambda: tape(aten.add.Tensor, x, tape["one"], alpha=Rows()),
        lambda: tape(aten.mul.Tensor, x, tape(aten.full.default, [D], Rows(), **F64)),
        lambda: tape(aten.add.Tensor, x, tape(aten.matmul.default, x, tape(aten.matmul.default, tape(
            aten.t.default, x), x)))])())


PLAIN: list[Step] = [moves, moves, moves, maps, maps, maps, constants, constants, joins, scores, own_rows, norms]
RISKY: list[Step] = [*[crosses] * 5, *[crossed_scores] * 4, *[places] * 3, trains, trains, partly, wrong_view, over_batch,
                     numbers]


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
