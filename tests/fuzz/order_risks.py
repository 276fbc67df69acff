"""Risky steps of the programs in `orders`: examples may meet in them."""

from __future__ import annotations

import random

import torch
from order_steps import (
    F64,
    SHAPES,
    fresh,
    join,
    maps,
    merged_fresh,
    put,
    scored,
    spread,
    table,
    target,
    uneven,
)
from orders import D, Pool, Rows, Step, T, Tape, Value, aten, newest


def flagged(tape: Tape, rng: random.Random, x: Value, alike: Value) -> Value:
    """A value joined with rows that are all alike: its own order stays."""
    if rng.random() < 0.25:
        return join(tape, rng, x, alike)
    return tape(aten.einsum.default, "nk,nk->nk", [x, alike])


def crosses(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Joins values of one shape in two orders: right only if one of them has all rows alike."""
    at, across = rng.choice([("e", "t"), ("t", "e")])
    y = rng.choice([
        lambda: newest(rng, pool, across), lambda: fresh(tape, rng, across),
        *[lambda: flagged(tape, rng, newest(rng, pool, across), fresh(tape, rng, across, 0))] * 3
    ])()
    put(pool, at, join(tape, rng, newest(rng, pool, at), y))


def crossed_tables(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """A table written down in one order, values in the other."""
    at, across = rng.choice([("e", "t"), *[("t", "e")] * 4])
    put(pool, at, join(tape, rng, newest(rng, pool, at), table(tape, rng, across, 0.2)))


def crossed_merges(tape: Tape, rng: random.Random, pool: Pool) -> None:
    at = rng.choice("eeet")
    put(pool, at, join(tape, rng, newest(rng, pool, at), merged_fresh(tape, rng)))


def crossed_sites(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Rows all alike, which a parameter enters in one order, and values in the other."""
    at, across = rng.choice([("e", "t"), *[("t", "e")] * 4])
    y = rng.choice([
        *[lambda: uneven(tape, rng, across, 1)] * 2,
        lambda: tape(aten.mul.Tensor, fresh(tape, rng, across, 0), tape["v"]),
        lambda: tape(aten.matmul.default, fresh(tape, rng, across, 0), tape["w"])])()
    put(pool, at, join(tape, rng, newest(rng, pool, at), y))


def crossed_scores(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Scores in one order, classes in the other."""
    at, across = rng.choice([*[("e", "t")] * 3, ("t", "e")])
    x = uneven(tape, rng, at, 0.1) if rng.random() < 0.9 else newest(rng, pool, at)
    loss = scored(tape, rng, x, target(tape, rng, across))
    spread(tape, rng, pool, rng.choice([at, at, at, across]), loss)


def places(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """An example's place in the batch, and rows that it looks up."""
    x, i = newest(rng, pool, "b"), tape(aten.arange.default, Rows())
    wide = tape(aten.expand.default, tape(aten.unsqueeze.default, i, 1), [Rows(), D])
    number = rng.choice([
        *[lambda: tape(aten.unsqueeze.default, tape(aten.index.Tensor, x, [i, i]), 1)
          if max(tape.rows) <= D else wide] * 2,
        lambda: tape(aten.unsqueeze.default, tape(aten.index.Tensor, i, [i]), 1),
        lambda: tape(aten.index.Tensor, wide, [i]), lambda: wide,
        lambda: tape(aten.index.Tensor, tape["table"], [tape(aten.clamp.default, i, 0, T - 1)])])()
    put(pool, "b", tape(aten.mul.Tensor, x, tape(aten.add.Tensor, number, 1)))


def trains(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Batch normalisation that trains, under its several names, with and without eps."""
    at = rng.choice(["b", "e", "t"])
    x, eps, none = newest(rng, pool, at), rng.choice([0.0, 0.0, 0.0, 1e-5]), None
    without = aten._native_batch_norm_legit.no_stats
    put(
        pool, at,
        rng.choice([
            lambda: tape(without, x, none, none, True, 0.1, eps).part(tape, 0),
            lambda: tape(without, x, none, none, True, 0.1, eps).part(tape, 0),
            lambda: tape(aten.native_batch_norm.default, x, none, none, none, none, True, 0.1, eps
                         ).part(tape, 0),
            lambda: tape(aten.batch_norm.default, x, none, none, none, none, True, 0.1, eps, False)
        ])())


def partly(tape: Tape, rng: random.Random, pool: Pool) -> None:
    """Writes into rows: an index as long as what it writes to, or of the first rows alone."""
    at = rng.choice("eeet")
    base, rows = newest(rng, pool, at), rng.choice([Rows(T), Rows(), Rows(), Rows()])
    index = tape(aten.zeros.default, [rows, D], dtype=torch.long)
    front = tape(aten.zeros.default, [Rows()], dtype=torch.long)
    # torch has no gradient for a source longer than the index
    source, short = fresh(tape, rng, at, 0), fresh(tape, rng, "b", 0)
    put(pool, at, rng.choice([
        lambda: tape(aten.scatter.src, base, 1, index, source),
        lambda: tape(aten.scatter.value, base, 1, index, 0.7),
        lambda: tape(aten.scatter_add.default, base, 1, index, source),
        lambda: tape(aten.scatter_reduce.two, base, 1, index, source, reduce="sum"),
        lambda: tape(aten.index_add.default, base, 0, front, short),
        lambda: tape(aten.index_copy.default, base, 0, tape(aten.arange.default, Rows()), short),
        lambda: tape(aten.index_put.default, base, [tape(aten.arange.default, Rows())], short),
    ])())


def wrong_view(tape: Tape, rng: random.Random, pool: Pool) -> None:
    at, to = rng.choice([("e", "tb"), ("t", "bt"), ("bt", "t"), ("tb", "e")])
    put(pool, to, tape(aten.reshape.default, newest(rng, pool, at), SHAPES[to]))


def over_batch(tape: Tape, rng: random.Random, pool: Pool) -> None:
    maps(tape, rng, pool, "the batch")


def numbers(tape: Tape, rng: random.Random, pool: Pool) -> None:
    x = newest(rng, pool, "b")
    put(
        pool, "b",
        rng.choice([
            lambda: tape(aten.mul.Scalar, x, Rows()),
            lambda: tape(aten.add.Tensor, x, tape["one"], alpha=Rows()),
            lambda: tape(aten.mul.Tensor, x, tape(aten.full.default, [D], Rows(), **F64)),
            lambda: tape(
                aten.add.Tensor, x,
                tape(aten.matmul.default, x, tape(aten.matmul.default, tape(aten.t.default, x), x)))
        ])())


RISKY: dict[Step, float] = {
    crosses: 3, crossed_tables: 3, crossed_merges: 2.5, crossed_sites: 2, crossed_scores: 3,
    places: 2.5, trains: 2.5, partly: 2.5, wrong_view: 0.5, over_batch: 0.5, numbers: 0.5}
