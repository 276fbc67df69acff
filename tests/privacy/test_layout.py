"""A number of the noise is a function of its place: drawn alone, together, by any number of
threads, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fxperex.clipping import Flat
from fxperex.errors import LedgerError, PrivacyError
from fxperex.privacy import Mechanism, Noise, PrivacyEngine, Secret
from fxperex.privacy.noise.discrete import BLOCK, discrete_gaussian
from fxperex.privacy.noise.normal import CHUNK, box_muller, gaussian
from fxperex.privacy.noise.streams import Streams
from fxperex.privacy.noise.workers import share

VALUE = bytes(range(32))
STREAMS = {"chacha20": lambda: Secret(value=VALUE).streams("noise"),
           "philox": lambda: Secret(3).streams("noise")}
Draw = Callable[[Streams, int, int], Tensor]
KINDS: dict[str, Draw] = {
    "gaussian": lambda streams, a, b: gaussian(streams, b - a, 5, 2, start=a),
    "discrete": lambda streams, a, b: discrete_gaussian(3.3e9, b - a, streams, 5, 2, a),
    "narrow": lambda streams, a, b: discrete_gaussian(1.2, b - a, streams, 5, 2, a)}
COUNT = 2 * CHUNK + 4321


@pytest.fixture(params=STREAMS)
def streams(request: pytest.FixtureRequest) -> Streams:
    return STREAMS[request.param]()


@pytest.mark.parametrize("kind", KINDS)
def test_parts_drawn_apart_are_the_whole_drawn_together(streams: Streams, kind: str) -> None:
    draw = KINDS[kind]
    together = draw(streams, 0, COUNT)
    ends = [0, 1, 2, 64, 777, BLOCK - 1, BLOCK, CHUNK + 1, 2 * CHUNK, COUNT]
    assert torch.equal(torch.cat([draw(streams, a, b) for a, b in pairwise(ends)]), together)
    assert torch.equal(draw(streams, 0, 100), together[:100]) and len(together.unique()) > 5


@pytest.mark.parametrize("kind", ["gaussian", "discrete"])
def test_the_released_noise_is_that_of_the_streams(kind: str) -> None:
    """Every tensor's from its own, whatever its shape and place among the parts that the threads
    share."""
    sizes = [(3,), (), (0,), (2, CHUNK), (BLOCK, 3), (5, 5)]
    mechanism = Mechanism(Flat(1.0), 1.5, "add-or-remove", 8.0, 10, kind)
    secret = Secret(value=VALUE)
    means = Noise(mechanism, secret).release([torch.zeros(size) for size in sizes], 7, 1)
    stream = secret.streams("noise", 1)
    for item, (size, mean) in enumerate(zip(sizes, means, strict=True)):
        count, grid = int(np.prod(size)), mechanism.grid
        if grid:
            alone = discrete_gaussian(mechanism.std / grid, count, stream, 7, item).mul(grid)
        else:
            alone = gaussian(stream, count, 7, item).mul(mechanism.std)
        assert mean.shape == size and torch.equal(mean, alone.div(8.0).reshape(size))


@pytest.fixture
def threads() -> Iterator[int]:
    """How many threads torch has: put back after the test."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_any_number_of_threads_draws_the_same(streams: Streams, threads: int) -> None:
    def draws() -> list[Tensor]:
        return [draw(streams, a, b) for draw in KINDS.values()
                for a, b in ((0, COUNT), (0, 1), (5, 70))]

    torch.set_num_threads(1)
    alone = draws()
    for count in (2, 3):
        torch.set_num_threads(count)
        assert all(torch.equal(a, b) for a, b in zip(draws(), alone, strict=True))
        assert torch.get_num_threads() == count


def test_the_formula_for_other_devices_is_the_same() -> None:
    stream = STREAMS["chacha20"]()
    words = stream.words(10_000, 5, 2, torch.device("cpu"))
    assert (box_muller(words) - gaussian(stream, 10_000, 5, 2)).abs().max() < 1e-14


def test_words_are_read_from_any_place(streams: Streams) -> None:
    together = streams.bits(300, 4, 1)
    for start, stop in ((0, 0), (1, 2), (3, 11), (8, 24), (7, 300), (256, 300)):
        assert np.array_equal(streams.bits(stop - start, 4, 1, start), together[start:stop])
        words = np.zeros(stop - start, np.uint64)
        streams.fill(words, 4, 1, start)
        assert np.array_equal(words, together[start:stop])
        on_device = streams.words(stop - start, 4, 1, torch.device("cpu"), start)
        assert on_device.numpy().tobytes() == together[start:stop].tobytes()


def test_numbers_past_the_end_of_a_stream_are_refused() -> None:
    stream = STREAMS["chacha20"]()
    assert len(gaussian(stream, 64, 0, start=2**35 - 64)) == 64
    with pytest.raises(PrivacyError, match="do not fit"):
        gaussian(stream, 65, 0, start=2**35 - 64)
    assert len(discrete_gaussian(9.0, 8, stream, 0, start=2**32 - 8)) == 8
    with pytest.raises(PrivacyError, match="do not fit"):
        discrete_gaussian(9.0, 9, stream, 0, start=2**32 - 8)


def test_a_folder_of_another_layout_is_refused_and_says_why(
        engine: Callable[...,
                         PrivacyEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that went on with other noise would not be the run that a crash interrupted."""
    with monkeypatch.context() as before:
        before.setattr("fxperex.privacy.noise.streams.LAYOUT", "noise layout 1")
        engine(folder=tmp_path).close()
    with pytest.raises(LedgerError, match=r"its randomness is .*noise layout 1.*noise layout 2"):
        engine(folder=tmp_path)


def test_further_bits_are_of_one_place_and_begin_alike() -> None:
    stream, philox = STREAMS["chacha20"](), STREAMS["philox"]()
    long = stream.further(64, 5, 2, 9)
    assert long.startswith(stream.further(16, 5, 2, 9)) and len(long) == 64
    places = ((5, 2, 9), (5, 2, 8), (2, 5, 9), (5, 2))
    assert len({s.further(16, *place) for s in (stream, philox) for place in places}) == 8


@pytest.mark.parametrize("count", [1, 3])
def test_a_worker_that_fails_ends_the_work_and_says_so(count: int, threads: int) -> None:
    done: list[int] = []

    def worker() -> Callable[[int], None]:
        def do(task: int) -> None:
            if task == 3:
                raise PrivacyError("the third")
            done.append(task)

        return do

    torch.set_num_threads(count)
    with pytest.raises(PrivacyError, match="the third"):
        share(range(100_000), worker)
    assert torch.get_num_threads() == count and len(done) < 100_000
    done.clear()
    share(range(3), worker)
    assert sorted(done) == [0, 1, 2]
