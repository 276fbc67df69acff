"""What ranks tell each other: all of them raise or none does, and sums are those of all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from gloo import Pool, raised

from fxperex.errors import ConfigError, FxperexError, LedgerError, RankError
from fxperex.ranks import ALONE, Ranks, deal, ranks_of, totals


@pytest.mark.parametrize("count", [0, 1, 3, 4, 13, 37])
def test_the_pieces_of_all_ranks_are_the_draw(count: int) -> None:
    drawn = torch.arange(count) * 3
    for size in (1, 4, 5):
        for world in (1, 2, 3, 4, 8, 64):
            rows, places = [], []
            for rank in range(world):
                ours = deal.share(drawn, size, rank, world)
                rows += ours.tolist()
                places += [deal.place(i, size, rank, world) for i in range(len(ours))]
                assert [drawn[p].item() for p in places] == rows
            assert sorted(rows) == drawn.tolist() and sorted(places) == list(range(count))


def _fails(ranks: Ranks, failing: bool, error: BaseException, token: int = 0) -> None:
    with ranks.every("the test", token=token):
        if failing:
            raise error


def _say(rank: int) -> dict[str, Any]:
    ranks = ranks_of()
    named = {"a": torch.arange(3, dtype=torch.bfloat16), "b": torch.tensor(True),
             "c": torch.empty(0, 2)}

    def refuses() -> None:
        raise LedgerError("the disk is full")

    return {
        "numbers": (ranks.size, ranks.highest(rank), ranks.total(rank + 0.5)),
        "decided": ranks.decided(lambda: {"by": rank}),
        "by 1": raised(lambda: _fails(ranks, rank == 1, ConfigError("no"))),
        "by 0": raised(lambda: _fails(ranks, rank == 0, FxperexError("no"))),
        "refused": raised(lambda: ranks.decided(refuses)),
        "unlike": raised(lambda: ranks.alike("the test", {"x": 1, "y": rank})),
        "alike": raised(lambda: ranks.alike("the test", {"x": 1})),
        "tokens": raised(lambda: _fails(ranks, False, ConfigError("no"), token=rank)),
        "mesh": raised(lambda: ranks_of("mesh") if rank else _fails(ranks, False, ConfigError())),
        "tensors": ranks.tensors(named if rank == 0 else None)}


def test_what_ranks_agree_on(pool: Pool) -> None:
    ours, theirs = pool.run(_say, 2)
    for said in (ours, theirs):
        assert said["numbers"] == (2, 1, 2.0) and said["decided"] == {"by": 0}
        assert said["alike"] == "nothing"
        assert "ConfigError: the ranks differ in the test: y is 0 on rank 0 and 1 on rank 1" in \
            said["unlike"]
        assert said["tokens"].startswith("RankError: the test: the ranks do not have the same rows")
        assert torch.equal(said["tensors"]["a"], torch.arange(3, dtype=torch.bfloat16))
        assert said["tensors"]["b"].item() is True and said["tensors"]["c"].shape == (0, 2)
    assert ours["by 1"] == "ConfigError: the test: rank 1 raised ConfigError: no"
    assert theirs["by 1"] == "ConfigError: no" and ours["by 0"] == "FxperexError: no"
    assert theirs["by 0"] == "FxperexError: the test: rank 0 raised FxperexError: no"
    assert ours["refused"] == "LedgerError: the disk is full"
    assert theirs["refused"] == "LedgerError: rank 0 raised LedgerError: the disk is full"
    assert theirs["mesh"].startswith("ConfigError: mesh must be a torch DeviceMesh")
    assert ours["mesh"].startswith("ConfigError: the test: rank 1 raised ConfigError: mesh must")


SHAPES = [(3, 5), (), (0, 4), (17, ), (2, 2, 2)]
DTYPES = [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.float64]


def _sums(step: int = 1, start: int = 0) -> list[torch.Tensor]:
    """The float64 sums of pieces `start`, `start + step`, ... of four."""
    g = torch.Generator().manual_seed(3)
    pieces = [[torch.randn(shape, generator=g).double() for shape in SHAPES] for _ in range(4)]
    return [torch.stack(column).sum(0) for column in zip(*pieces[start::step], strict=True)]


def _halves(rank: int, world: int) -> Any:
    with _small_blocks():
        held = ranks_of().totals(_sums(world, rank), DTYPES)
        doubled = held.gathered([2 * part.values for part in held.parts])
        return held.digest(b"key"), doubled, [(p.item, p.start, len(p.values)) for p in held.parts]


@contextmanager
def _small_blocks() -> Iterator[None]:
    """Blocks and buckets so small that these tensors fill several."""
    with mock.patch.object(totals, "GRAIN", 4), mock.patch.object(totals, "BUCKET", 20):
        yield


@pytest.mark.parametrize("world", [2, 4])
def test_sums_and_their_digest_are_those_of_one_process(world: int, pool: Pool) -> None:
    sums, results = _sums(), pool.run(_halves, world, world)
    with _small_blocks():
        alone = ALONE.totals(sums, DTYPES)
        digest, another = alone.digest(b"key"), alone.digest(b"another")
    for theirs, doubled, _ in results:
        assert theirs == digest != another
        for value, total, dtype in zip(doubled, sums, DTYPES, strict=True):
            assert value.dtype == dtype and torch.equal(value, (2 * total).to(dtype))
    elements = sorted((item, start + i) for *_, parts in results for item, start, n in parts
                      for i in range(n))
    assert elements == sorted((i, k) for i, total in enumerate(sums) for k in range(total.numel()))


def _outlives(rank: int) -> str:
    ranks = ranks_of()
    if rank == 1:
        raise SystemExit(9)
    with pytest.raises(RankError, match=r"a process has ended.*What was debited stands"):
        ranks.highest(1)
    with pytest.raises(RankError, match="were lost before"):
        ranks.highest(1)
    with pytest.raises(ZeroDivisionError), ranks.every("the test"):
        raise ZeroDivisionError
    return "knows"


def test_a_dead_rank_is_named_and_no_later_collective_waits(pool: Pool) -> None:
    assert pool.codes(_outlives, 2) == [0, 9] and pool.result(0) == "knows"
