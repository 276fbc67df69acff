"""Parameters that lie in parts on several processes: DTensors, cut along dimension 0.

fully_shard cuts dimension 0 as torch.chunk does: `ceil(n / W)` rows each, fewer or none on the
final ranks. In the step graph every part is filled up to that many rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxperex.errors import ConfigError
from fxperex.ranks.ranks import Ranks


@dataclass(frozen=True)
class Shards:
    """How the parameters lie: in `size` parts over the processes of `group`, each part on one
    process of the group, and again in each of the `copies` groups beside it, joined by `replicas`.
    """

    size: int
    group: str
    copies: int = 1
    replicas: str = ""

    def rows(self, shape: tuple[int, ...]) -> int:
        """Returns the rows of every filled part of a tensor of `shape`."""
        return -(-shape[0] // self.size)


def is_sharded(value: object) -> bool:
    """Returns whether `value` is a DTensor. Imports nothing: what was never imported can be none's.
    """
    return hasattr(value, "placements") and hasattr(value, "device_mesh")


def shards_of(parameters: Mapping[str, nn.Parameter], ranks: Ranks) -> Shards | None:
    """Returns how `parameters` lie over `ranks`; None if they are plain tensors.

    Raises ConfigError for a placement that a step cannot gather.
    """
    held: dict[str, Any] = {n: p for n, p in parameters.items() if is_sharded(p)}
    if not held:
        return None
    name, like = next(iter(held.items()))
    for n, p in held.items():
        _check(n, p, ranks)
    for n, p in parameters.items():
        if n not in held:
            raise ConfigError(f"{name!r} is a DTensor and {n!r} a plain tensor: shard all "
                              "parameters or none. After a forward, call model.reshard() first")
        if p.device_mesh != like.device_mesh or p.placements != like.placements:
            raise ConfigError(f"{name!r} is placed as {like.placements} on {like.device_mesh}, "
                              f"{n!r} as {p.placements} on {p.device_mesh}. Give all the same")
    mesh = like.device_mesh
    inner, outer = mesh.ndim - 1, 0
    replicas = mesh.get_group(outer).group_name if mesh.ndim == 2 else ""
    return Shards(mesh.size(inner), mesh.get_group(inner).group_name,
                  mesh.size(outer) if mesh.ndim == 2 else 1, replicas)


def _check(name: str, like: Any, ranks: Ranks) -> None:
    *outer, inner = like.placements
    if not inner.is_shard(0) or len(outer) > 1 or not all(p.is_replicate() for p in outer):
        raise ConfigError(f"{name!r} is a DTensor placed as {like.placements}; a step gathers "
                          "Shard(0), or (Replicate(), Shard(0)) on a mesh of two dimensions. Shard "
                          "the model by fully_shard, or give it plain tensors")
    if like.device_mesh.size() != ranks.size:
        raise ConfigError(f"{name!r} lies on {like.device_mesh.size()} processes, and rows are "
                          f"split over {ranks.size}: both must be the same. Leave mesh out")


def local(value: Tensor) -> Tensor:
    """Returns what a step takes for `value`: itself, or this rank's part of it, filled up."""
    if not is_sharded(value):
        return value.detach()
    sharded: Any = value
    part: Tensor = sharded.to_local().detach()
    rows = -(-value.shape[0] // sharded.device_mesh.size(sharded.device_mesh.ndim - 1))
    if len(part) == rows:
        return part
    return torch.cat([part, part.new_zeros((rows - len(part), *value.shape[1:]))])


def like(value: Tensor, part: Tensor) -> Tensor:
    """Returns `part`, a filled part as of `local`, as a tensor that lies as `value` does."""
    if not is_sharded(value):
        return part
    from torch.distributed.tensor import DTensor

    sharded: Any = value
    ours = part[:len(sharded.to_local())].contiguous()
    return DTensor.from_local(ours, sharded.device_mesh, sharded.placements, run_check=False,
                              shape=value.shape, stride=value.stride())
