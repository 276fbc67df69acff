"""The collectives of several processes, over `torch.distributed`.

What one rank says reaches the others as JSON: nothing that arrives can run code. The network
between the ranks is trusted, as sums without noise and the run's secret pass through it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fxperex import errors
from fxperex.errors import ConfigError, FxperexError, RankError
from fxperex.ranks.ranks import Ranks
from fxperex.ranks.scattered import Scattered, Wait

Value = TypeVar("Value")
GOES_ON = ("What was debited stands. Start all processes again with the same folder, on any "
           "number of ranks: the run goes on from its newest checkpoint")


class Group(Ranks):
    """The processes of a group of torch.distributed (None: all of them)."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.devices = [d.split(":")[0] for d in dist.get_backend_config(group).split(",")]
        self._device = torch.device("cpu" if "cpu" in self.devices else self.devices[0])
        self._lost = False

    @contextmanager
    def every(self, what: str, error: BaseException | None = None,
              token: int = 0) -> Iterator[None]:
        raised = error
        try:
            yield
        except BaseException as e:
            raised = e
        if not self._lost:
            self._agree(what, raised, token)
        if raised is not None and raised is not error:
            raise raised

    def decided(self, act: Callable[[], Any]) -> Any:
        failure: Exception | None = None
        result, said = None, None
        if self.rank == 0:
            try:
                result = act()
                said = {"value": result}
            except Exception as e:
                failure, said = e, {"failure": _described(e)}
        said = self._told(said)
        if failure is not None:
            raise failure
        if "failure" in said:
            raise _as_error("rank 0", said["failure"])
        return result if self.rank == 0 else said["value"]

    def alike(self, what: str, facts: Mapping[str, object]) -> None:
        texts = self.exchange({name: str(value) for name, value in facts.items()})
        for name, ours in texts[0].items():
            differing = [r for r, theirs in enumerate(texts) if theirs.get(name) != ours]
            if differing:
                r = differing[0]
                raise ConfigError(f"the ranks differ in {what}: {name} is {ours:.200} on rank 0 "
                                  f"and {texts[r].get(name, 'missing'):.200} on rank {r}. Every "
                                  "rank must be started with the same program and arguments")

    def highest(self, number: int) -> int:
        value = torch.tensor([number], dtype=torch.int64, device=self._device)
        self._run(dist.all_reduce, value, op=dist.ReduceOp.MAX)
        return int(value)

    def total(self, number: float) -> float:
        value = torch.tensor([number], dtype=torch.float64, device=self._device)
        self._run(dist.all_reduce, value)
        return float(value)

    def tensors(self, named: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        held = dict(named or {}) if self.rank == 0 else {}
        shapes = self._told({n: [list(t.shape), str(t.dtype).removeprefix("torch.")]
                             for n, t in held.items()})
        for name, (shape, dtype) in shapes.items():
            value = (held[name].to(self._device).contiguous() if self.rank == 0 else
                     torch.empty(shape, dtype=getattr(torch, dtype), device=self._device))
            # Bytes: not every backend takes every dtype.
            if value.numel():
                self._broadcast(value.view(-1).view(torch.uint8))
            held[name] = value.cpu()
        return held

    def totals(self, sums: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> Scattered:
        return Scattered(sums, dtypes, self)

    def scatter(self, out: Tensor, values: Tensor) -> Wait:
        """Starts adding up `values` of all ranks; part `rank` of the sum goes to `out`."""
        start = _newest("reduce_scatter_single", "reduce_scatter_tensor")
        return self._begun(start, out, values)

    def gather(self, out: Tensor, values: Tensor) -> Wait:
        """Starts putting `values` of all ranks, one after another, into `out`."""
        return self._begun(_newest("all_gather_single", "all_gather_into_tensor"), out, values)

    def exchange(self, value: Any) -> list[Any]:
        """Returns the value, for JSON, of every rank."""
        data = json.dumps(value).encode()
        sizes = self._rows(torch.tensor([len(data)]))
        padded = data.ljust(int(sizes.max()), b" ")
        rows = self._rows(torch.frombuffer(bytearray(padded), dtype=torch.uint8))
        return [json.loads(row.cpu().numpy().tobytes()) for row in rows]

    def _agree(self, what: str, raised: BaseException | None, token: int) -> None:
        """Raises, on a rank that has not failed, what another has raised, or that tokens differ."""
        state = torch.tensor([raised is not None, token, -token], dtype=torch.int64,
                             device=self._device)
        self._run(dist.all_reduce, state, op=dist.ReduceOp.MAX)
        failed, highest, lowest = state.tolist()
        if failed:
            failures = self.exchange(None if raised is None else _described(raised))
            if raised is None:
                r = next(r for r, failure in enumerate(failures) if failure)
                raise _as_error(f"{what}: rank {r}", failures[r])
        elif highest != -lowest:
            raise RankError(f"{what}: the ranks do not have the same rows or numbers; a sampler "
                            "must draw the same for the same step on every rank. " + GOES_ON)

    def _rows(self, value: Tensor) -> Tensor:
        """Returns `[size, len(value)]`: the tensor of every rank."""
        ours = value.to(self._device)
        out = torch.empty(self.size * len(ours), dtype=ours.dtype, device=self._device)
        self.gather(out, ours)()
        return out.view(self.size, -1)

    def _told(self, value: Any) -> Any:
        """Returns what rank 0 hands over, on every rank."""
        data = json.dumps(value).encode() if self.rank == 0 else b""
        length = torch.tensor([len(data)], dtype=torch.int64, device=self._device)
        self._broadcast(length)
        text = (torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self._device)
                if self.rank == 0 else
                torch.empty(int(length), dtype=torch.uint8, device=self._device))
        self._broadcast(text)
        return json.loads(text.cpu().numpy().tobytes())

    def _broadcast(self, value: Tensor) -> None:
        self._run(dist.broadcast, value, group_src=0)

    def _begun(self, start: Callable[..., Any], *tensors: Tensor) -> Wait:
        work = self._run(start, *tensors, async_op=True)
        return lambda: self._guarded(work.wait)

    def _run(self, collective: Callable[..., Value], *args: Any, **kwargs: Any) -> Value:
        return self._guarded(lambda: collective(*args, group=self.group, **kwargs))

    def _guarded(self, call: Callable[[], Value]) -> Value:
        """What `call` returns. Raises RankError if it fails, and at once if one failed before."""
        if self._lost:
            raise RankError(f"the other processes were lost before. {GOES_ON}")
        try:
            return call()
        except RuntimeError as error:
            self._lost = True
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RankError(f"rank {self.rank} of {self.size} waited for the others in vain: a "
                            f"process has ended, or hangs ({cause}). {GOES_ON}") from error


def _newest(*names: str) -> Callable[..., Any]:
    """Returns the function of torch.distributed by its newest name."""
    found: Callable[..., Any] = next(getattr(dist, n) for n in names if hasattr(dist, n))
    return found


def _described(error: BaseException) -> dict[str, str]:
    return {"kind": type(error).__name__, "text": str(error)}


def _as_error(who: str, failure: Mapping[str, str]) -> FxperexError:
    """Returns the error of another rank, of its own kind if it is one of ours."""
    kind = getattr(errors, failure["kind"], None)
    ours = isinstance(kind, type) and issubclass(kind, FxperexError)
    return (kind if ours and kind else RankError)(f"{who} raised {failure['kind']}: "
                                                  f"{failure['text']}")
