"""Models that other libraries spread over processes: recognised before anything touches them.

torch.export takes a wrapped model apart where its wrapper does not expect it, and leaves it broken.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from fxperex.errors import ConfigError

RANKS = "one rank's rows and parameters are all that a step sees"


def world_size() -> int:
    """Returns the number of processes of torch.distributed; 1 where it is not initialised."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 1
    return torch.distributed.get_world_size()


def refuse_distributed(model: nn.Module) -> None:
    """Raises ConfigError for a model that is wrapped or sharded.

    Reads types and placements alone: the model is as it was.
    """
    if not torch.distributed.is_available():
        return
    for name, module in model.named_modules():
        _refuse_wrapped(name or "the model", module)
    # What was never imported can be of no model, and importing it takes a second.
    tensors = sys.modules.get("torch.distributed.tensor")
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        if tensors is not None and isinstance(p, tensors.DTensor):
            raise ConfigError(f"{name!r} is a DTensor placed as {p.placements}: {RANKS}. Transform "
                              "a model with plain tensors")


def _refuse_wrapped(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        raise ConfigError(f"{name} is wrapped in DistributedDataParallel, whose hooks reduce "
                          "gradients that a private step never forms. Transform its .module")
    sharding = sys.modules.get("torch.distributed.fsdp")
    if sharding is not None and isinstance(
            module, sharding.FSDPModule | sharding.FullyShardedDataParallel):
        raise ConfigError(f"{name} is sharded ({type(module).__name__}): {RANKS}. Transform the "
                          "model before it is given to fully_shard or FullyShardedDataParallel, "
                          "and train the model that was not sharded")
