"""Privacy units of several rows: all rows of a data set that share an id (a user, a hospital) are
protected as one.

The batch axis becomes the units: an item is a unit's rows, padded to `most`, and the mask of those
that count. Its loss is the sum of theirs, so its gradient is the sum of its rows' gradients, its
norm the norm of that sum, and every strategy serves it (rows are further positions). Sampler, bound
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
from fxperex.privacy.checks import whole
from fxperex.privacy.sampling.rows import Rows


class Units(Dataset[tuple[Tensor, ...]]):
    """A map-style data set of units, for PrivacyEngine; `unit` number i is `(*tensors [most, ...],
    mask [most])`.

    dataset: as PrivacyEngine takes it, one item a row; ids: whose row it is, one int or string per
    row.
    most: rows of a unit that take part, the first ones in the data set's order; default: those of
    the largest unit. Raises ConfigError, ShapeError or SamplingError.
    """

    def __init__(self, dataset: Any, ids: Sequence[Any] | Tensor, most: int | None = None) -> None:
        self._rows = Rows(dataset)
        groups = _groups(ids, self._rows.size)
        largest = max(map(len, groups.values()))
        self.most = largest if most is None else whole(most, "most", 1)
        self.ids = list(groups)
        self.left_out = sum(max(len(rows) - self.most, 0) for rows in groups.values())
        self._places = [rows[:self.most] for rows in groups.values()]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, unit: int) -> tuple[Tensor, ...]:
        rows = self._places[unit]
        # A unit's own row as filler: what its padding computes can be no worse than what it
        # computes itself.
        places = torch.tensor([*rows, *rows[:1] * (self.most - len(rows))])
        (batch,) = self._rows.parts(places, self.most)
        mask = torch.arange(self.most, device=batch[0].device) < len(rows)
        return (*batch, mask)

    def batch(self, units: int) -> tuple[Tensor, ...]:
        """Returns the first `units` units `(*tensors [units, most, ...], mask [units, most])`: what
        `transform` is shown.
        """
        items = [self[i % len(self)] for i in range(whole(units, "units", 1))]
        return tuple(torch.stack(part) for part in zip(*items, strict=True))


def per_unit(loss: Callable[[Any, Tensor], Tensor] | None = None, *,
             forward: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
    """Returns `forward(model, *batch) -> losses [units]` for `transform`, from `loss` or `forward`
    of ordinary rows.

    Either must give one loss per row (`reduction="none"`): a mean over rows would let one unit
    change another's share. `transform` raises ShapeError otherwise.
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
    """Returns {id: its rows}, in order of first sight."""
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
