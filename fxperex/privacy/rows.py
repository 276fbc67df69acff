"""The examples by number: a tuple of tensors or a map-style data set, read by this process or by workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, default_collate

from fxperex.errors import PrivacyError, SamplingError, ShapeError
from fxperex.privacy.checks import whole

OURS = "the account holds for the engine's own sampler alone. Pass the map-style data set itself"


class Rows:
    """Rows of a data set. Raises SamplingError for anything that draws by itself, ShapeError where there are no rows."""

    def __init__(self, dataset: Any, workers: int = 0) -> None:
        self._tensors = dataset if isinstance(dataset, tuple) else None
        self.dataset, self._workers = dataset, whole(workers, "workers")
        if isinstance(dataset, DataLoader | Sampler | BatchSampler):
            raise SamplingError(f"dataset is a {type(dataset).__name__}, which draws its own batches; {OURS}")
        if isinstance(dataset, IterableDataset):
            raise SamplingError(f"dataset is an IterableDataset: no example has a number to be drawn by; {OURS}")
        if self._tensors is not None:
            _check_tensors(self._tensors)
        elif not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ShapeError(f"dataset must have __len__ and __getitem__; got {type(dataset).__name__}")
        self.size = len(dataset[0]) if self._tensors is not None else len(dataset)
        if self.size == 0:
            raise ShapeError("dataset has no examples")

    def parts(self, rows: Tensor, most: int) -> Iterator[tuple[Tensor, ...]]:
        """Yields the batches of `rows`, at most `most` at a time; one empty batch for no rows. Raises PrivacyError."""
        pieces = rows.split(most)
        if self._tensors is not None:
            yield from (tuple(x[piece.to(x.device)] for x in self._tensors) for piece in pieces)
            return
        try:
            if self._workers and len(rows):
                yield from self._loaded([p.tolist() for p in pieces])
            else:
                yield from (self._item(default_collate([self.dataset[i] for i in p.tolist() or [0]]), len(p)) for p in pieces)
        except ShapeError:
            raise
        except Exception as e:  # whatever reading a user's data may raise
            raise PrivacyError(f"the data could not be read: {type(e).__name__}: {e}. The step's sum is cleared and its debit "
                               "stands; calling again takes the same step with the same rows") from e

    def _loaded(self, pieces: list[list[int]]) -> Iterator[tuple[Tensor, ...]]:
        loader = DataLoader(self.dataset, batch_sampler=pieces, num_workers=min(self._workers, len(pieces)))
        for piece, batch in zip(pieces, loader, strict=True):
            yield self._item(batch, len(piece))

    def _item(self, batch: Any, count: int) -> tuple[Tensor, ...]:
        if not isinstance(batch, tuple | list) or not all(isinstance(x, Tensor) for x in batch):
            raise ShapeError(f"an item of the dataset must be a tuple of tensors; got {type(self.dataset[0]).__name__}")
        # An empty batch still needs shapes and dtypes, and nothing else, of some example.
        return tuple(x[:count] for x in batch)


def _check_tensors(dataset: tuple[Any, ...]) -> None:
    if not dataset or not all(isinstance(x, Tensor) and x.dim() for x in dataset):
        raise ShapeError("dataset must be a tuple of tensors with the examples first, or a map-style Dataset")
    if len({len(x) for x in dataset}) != 1:
        raise ShapeError(f"dataset tensors have different numbers of examples: {[len(x) for x in dataset]}")
