"""The examples by number: columns held whole, or a map-style data set, read here or by workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    get_worker_info,
)

from fxperex.capture.structure import mapped
from fxperex.errors import ConfigError, PrivacyError, SamplingError, ShapeError
from fxperex.privacy.checks import whole_number
from fxperex.privacy.sampling.items import collated, columns, length, rows_of

OURS = "the account holds for the engine's own sampler alone. Pass the map-style data set itself"
STANDS = ("The step's sum is cleared and its debit stands; step() takes the same step with the "
          "same rows again, after leave_out() without those that fail")
Batch = Any  # a tuple or mapping of tensors, examples first


class Rows:
    """Rows of a data set.

    Raises SamplingError for anything that draws by itself, ShapeError if there are no rows.
    """

    def __init__(self, dataset: Any, workers: int = 0,
                 collate_fn: Callable[[list[Any]], Any] | None = None) -> None:
        self.dataset, self._workers = dataset, whole_number(workers, "workers")
        self._columns = columns(dataset) if isinstance(dataset, tuple | Mapping) else None
        self._collate_fn = collate_fn
        self._loader: DataLoader[Any] | None = None
        self._pieces = _Pieces()
        if collate_fn is not None and (self._columns is not None or not callable(collate_fn)):
            raise ConfigError("collate_fn must be a function that makes a batch of the items of a "
                              f"map-style Dataset; got {collate_fn!r} for a "
                              f"{type(dataset).__name__}")
        if isinstance(dataset, DataLoader | Sampler | BatchSampler):
            kind = type(dataset).__name__
            raise SamplingError(f"dataset is a {kind}, which draws its own batches; {OURS}")
        if isinstance(dataset, IterableDataset):
            raise SamplingError("dataset is an IterableDataset: no example has a number to be "
                                f"drawn by; {OURS}")
        if self._columns is None and not (hasattr(dataset, "__len__")
                                          and hasattr(dataset, "__getitem__")):
            raise ShapeError("dataset must be a tuple of tensors, or have __len__ and __getitem__; "
                             f"got {type(dataset).__name__}")
        self.size = len(dataset) if self._columns is None else length(self._columns)
        if self.size == 0:
            raise ShapeError("dataset has no examples")

    @functools.cached_property
    def nothing(self) -> Batch:
        """A batch of no rows. Reads row 0 of a data set once, for its shapes.

        Raises ShapeError or PrivacyError.
        """
        batch = next(self._batches([torch.tensor([0])]))
        if isinstance(batch, Unread):
            raise PrivacyError(f"{batch.text}. It was read for its shapes; nothing was spent")
        return mapped(lambda x: x[:0], batch)

    def parts(self, rows: Tensor, most: int) -> Iterator[Batch]:
        """Yields the batches of `rows`, at most `most` at a time; one empty batch for no rows.

        Raises PrivacyError, which names the row that could not be read, or ShapeError.
        """
        if not len(rows):
            yield self.nothing
            return
        try:
            for batch in self._batches(rows.split(most)):
                if isinstance(batch, Unread):
                    raise batch.error()
                yield batch
        except (PrivacyError, ShapeError, GeneratorExit):
            raise
        except Exception as e:  # whatever workers may raise
            raise Unread(f"the data could not be read: {_text(e)}", e).error() from e

    def readable(self, rows: Tensor, most: int) -> Iterator[tuple[int, Batch | None]]:
        """Yields (number of rows, their batch), at most `most` rows at a time.

        A part that cannot be read is read row by row; the batch of a row that cannot be read is
        None.
        """
        for piece in rows.split(most) if len(rows) else ():
            batch = self._attempt(piece)
            if batch is not None:
                yield len(piece), batch
                continue
            for row in piece.split(1):
                yield 1, self._attempt(row)

    def _attempt(self, rows: Tensor) -> Batch | None:
        try:
            batch = next(self._batches([rows]))
        except Exception:  # a worker that died, an item that is no tuple of tensors
            return None
        return None if isinstance(batch, Unread) else batch

    def _batches(self, pieces: Sequence[Tensor]) -> Iterator[Batch | Unread]:
        """Yields the batch of each of `pieces`. Raises ShapeError, and what workers raise."""
        if self._columns is not None:
            for piece in pieces:
                yield rows_of(self._columns, piece)
            return
        source, self._pieces.numbers = _Numbered(self.dataset), [p.tolist() for p in pieces]
        together = functools.partial(_collated, collate_fn=self._collate_fn)
        if not self._workers:
            yield from (together([source[i] for i in piece]) for piece in self._pieces.numbers)
            return
        if self._loader is None:
            self._loader = DataLoader(source, batch_sampler=self._pieces, collate_fn=together,
                                      num_workers=self._workers, persistent_workers=True)
        try:
            for batch in self._loader:
                # After a failure new workers see the data set as it is then.
                self._loader = None if isinstance(batch, Unread) else self._loader
                yield batch
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the workers; later reads start new ones."""
        self._loader = None


@dataclass
class Unread:
    """Stands for a batch that could not be read, with the reason; workers return it as a value."""

    text: str
    cause: Exception | None = None

    def error(self) -> PrivacyError:
        """Returns the error to raise in the middle of a step."""
        error = PrivacyError(f"{self.text}. {STANDS}")
        error.__cause__ = self.cause
        return error


class _Pieces:
    """The rows of the batches that workers are to read next: they live on from step to step."""

    def __init__(self) -> None:
        self.numbers: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


class _Numbered(Dataset[Any]):
    """A data set that returns Unread, with the row's number, instead of raising."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> Any:
        try:
            return self._dataset[row]
        except Exception as e:  # whatever reading a user's data may raise
            # A worker returns no exception: many of them cannot be pickled.
            cause = e if get_worker_info() is None else None
            return Unread(f"the data could not be read: row {row}: {_text(e)}", cause)


def _collated(items: list[Any], collate_fn: Callable[[list[Any]], Any] | None) -> Any:
    unread = next((i for i in items if isinstance(i, Unread)), None)
    if unread is not None:
        return unread
    try:
        return collated(items, collate_fn)
    except ShapeError:
        raise
    except Exception as e:  # rows of several shapes, values that no tensor holds
        return Unread(f"the rows of one batch could not be put together: {_text(e)}")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
