"""From `mesh=` of `transform` to the processes that split the rows."""

from __future__ import annotations

import sys
from typing import Any

import torch

from fxperex.errors import ConfigError
from fxperex.ranks.ranks import ALONE, Ranks


def initialised() -> bool:
    """Returns whether torch.distributed has processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def ranks_of(mesh: Any = None) -> Ranks:
    """Returns the Ranks that split the rows: all dimensions of `mesh`; None: all processes.

    False: this process alone, whatever others do. Raises ConfigError, on every rank, for a mesh
    that does not fit.
    """
    if mesh is False or (mesh is None and not initialised()):
        return ALONE
    if not initialised():
        raise ConfigError("mesh needs torch.distributed: call init_process_group, or start the "
                          f"program with torchrun; got {mesh!r}")
    from fxperex.ranks.group import Group

    world = Group()
    if mesh is None:
        return world if world.size > 1 else ALONE
    try:
        _check(mesh)
    except ConfigError as error:
        with world.every("mesh", error):
            pass
        raise
    ranks = sorted(mesh.mesh.flatten().tolist())
    if len(ranks) == world.size:
        return world if world.size > 1 else ALONE
    if mesh.ndim == 1:
        return Group(mesh.get_group()) if len(ranks) > 1 else ALONE
    return Group(torch.distributed.new_group(ranks, use_local_synchronization=True))


def check_device(ranks: Ranks, device: torch.device) -> None:
    """Raises ConfigError if the ranks cannot reduce tensors on `device`."""
    devices = getattr(ranks, "devices", [device.type])
    if device.type not in devices:
        raise ConfigError(f"the batch is on {device}, and torch.distributed was initialised for "
                          f"{' and '.join(devices)} alone. Initialise it with a backend for "
                          f"{device.type} (gloo for cpu, nccl for cuda)")


def _check(mesh: Any) -> None:
    """Raises ConfigError unless `mesh` is a DeviceMesh with this process in it."""
    module = sys.modules.get("torch.distributed.device_mesh")
    if module is None or not isinstance(mesh, module.DeviceMesh):
        raise ConfigError("mesh must be a torch DeviceMesh over whose dimensions rows are split, "
                          "None for all processes, or False for this process alone; got "
                          f"{type(mesh).__name__}")
    if mesh.get_coordinate() is None:
        raise ConfigError(f"process {torch.distributed.get_rank()} is not in {mesh}: transform in "
                          "the mesh's processes alone, or give mesh=False")
