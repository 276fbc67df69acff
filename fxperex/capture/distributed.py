"""Models that other libraries spread over processes: recognised before anything touches them.

torch.export takes a wrapped model apart where its wrapper does not expect it, and leaves it broken.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from fxperex.errors import ConfigError
from fxperex.ranks import Ranks
from fxperex.ranks.shards import Shards, shards_of

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


def sharded(model: object, ranks: Ranks) -> Shards | None:
    """Returns how the parameters of `model` lie over `ranks`; None if they are plain tensors.

    Raises ConfigError for a placement or a setting of fully_shard that a step cannot serve.
    """
    if not isinstance(model, nn.Module):
        return None
    held = shards_of(dict(model.named_parameters()), ranks)
    if held is not None:
        _refuse_precision(model)
    return held


def _refuse_precision(model: nn.Module) -> None:
    """Raises ConfigError if fully_shard was asked to compute in another dtype: a step would not."""
    for name, module in model.named_modules():
        state = getattr(module, "_get_fsdp_state", lambda: None)()
        dtype = getattr(getattr(state, "_mp_policy", None), "param_dtype", None)
        if dtype is not None:
            raise ConfigError(f"{name or 'the model'} is under fully_shard with {dtype} parameters "
                              "in its mp_policy, which a private step does not read. Leave it out, "
                              "and give transform autocast=")


def _refuse_wrapped(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        raise ConfigError(f"{name} is wrapped in DistributedDataParallel, whose hooks reduce "
                          "gradients that a private step never forms. Transform its .module")
    sharding = sys.modules.get("torch.distributed.fsdp")
    if sharding is not None and isinstance(
            module, sharding.FSDPModule | sharding.FullyShardedDataParallel):
        raise ConfigError(f"{name} is sharded ({type(module).__name__}): {RANKS}. Give transform a "
                          "model under fully_shard whose parameters are DTensors, for which "
                          "model.reshard() has to follow a forward; or the model before it is "
                          "sharded")
