"""Privacy units of several rows: all rows with one id (a user, a hospital) are protected together.

The batch axis counts units. An item is a unit's rows, padded to `most`, and a mask of those that
count. Its loss is the sum of its rows' losses. So its gradient is the sum of their gradients, its
norm is the norm of that sum, and every strategy works: rows are further positions. Sampler, bound
and account see units and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fxperex.capture.forward import as_forward
from fxperex.errors import ConfigError, ShapeError
from fxperex.privacy.checks import whole_number
from fxperex.privacy.sampling.rows import Rows


class Units(Dataset[tuple[Tensor, ...]]):
    """A map-style data set of units, for PrivacyEngine. A unit is `(*tensors [most, ...], mask
    [most])`.

    dataset: as PrivacyEngine takes it, one item for each row. ids: the unit of each row, as ints or
    strings. most: rows of a unit that take part, in the data set's order; default: as many as the
    largest unit has. Raises ConfigError, ShapeError or SamplingError.
    """

    def __init__(self, dataset: Any, ids: Sequence[Any] | Tensor, most: int | None = None) -> None:
        self._rows = Rows(dataset)
        groups = _groups(ids, self._rows.size)
        largest = max(map(len, groups.values()))
        self.most = largest if most is None else whole_number(most, "most", 1)
        self.ids = list(groups)
        self.left_out = sum(max(len(rows) - self.most, 0) for rows in groups.values())
        self._places = [rows[:self.most] for rows in groups.values()]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, unit: int) -> tuple[Tensor, ...]:
        rows = self._places[unit]
        # The padding is a row of the unit itself: a row that the model takes.
        places = torch.tensor([*rows, *rows[:1] * (self.most - len(rows))])
        (batch,) = self._rows.parts(places, self.most)
        if not isinstance(batch, tuple):
            raise ShapeError("Units takes rows that are tuples of tensors; these are "
                             f"{type(batch).__name__}s. Give tuple(row.values()) and forward=")
        mask = torch.arange(self.most, device=batch[0].device) < len(rows)
        return (*batch, mask)

    def batch(self, units: int) -> tuple[Tensor, ...]:
        """Returns the first `units` units, `(*tensors [units, most, ...], mask [units, most])`, for
        `transform`.
        """
        items = [self[i % len(self)] for i in range(whole_number(units, "units", 1))]
        return tuple(torch.stack(part) for part in zip(*items, strict=True))


def per_unit(loss: Callable[[Any, Tensor], Tensor] | None = None, *,
             forward: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
    """Returns `forward(model, *batch) -> losses [units]` for `transform`, from the `loss` or
    `forward` of ordinary rows.

    Either must give one loss per row (`reduction="none"`): with a mean over rows, one unit would
    change another's share. Otherwise `transform` raises ShapeError.
    """
    if loss is not None and forward is not None:
        raise ConfigError("give loss or forward, not both")
    run = forward or as_forward(loss)

    def units(model: nn.Module, *batch: Tensor) -> Tensor:
        *tensors, mask = batch
        if mask.dim() != 2 or mask.dtype != torch.bool:
            raise ShapeError("a batch of units ends in a mask [units, most] of bools; found "
                             f"{list(mask.shape)} {mask.dtype}. Show transform what Units.batch "
                             "gives")
        losses = run(model, *(x.flatten(0, 1) for x in tensors))
        if losses.dim() != 1:
            raise ShapeError("the loss of units must be one number per row, found shape "
                             f"{list(losses.shape)}; use "
                             'reduction="none" and reduce everything but the rows')
        return torch.where(mask, losses.unflatten(0, mask.shape), 0.0).sum(1)

    return units


def _groups(ids: Sequence[Any] | Tensor, size: int) -> dict[int | str, list[int]]:
    """Returns {id: its rows}, in the order in which the ids appear."""
    names = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    if len(names) != size:
        raise ShapeError(f"units need one id per row: {len(names)} ids for {size} rows")
    wrong = next((i for i in names if isinstance(i, bool) or not isinstance(i, int | str)), None)
    if wrong is not None:
        raise ConfigError("an id of a unit must be an int or a string, or equal ones might not "
                          f"be found equal; got {wrong!r}")
    groups: dict[int | str, list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    return groups
