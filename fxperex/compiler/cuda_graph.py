"""A compiled step as one CUDA graph: static buffers, no host in between.

Inputs that stay where they are (parameters, buffers) are read in place; batch and mask are copied
into buffers of the graph's own. Outputs are the same memory at every replay: whoever keeps one
beyond the next call copies it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx

Call = Callable[..., Sequence[Any]]
# Records a call without arguments: returns (replay, the outputs it fills).
Recorder = Callable[[Callable[[], Sequence[Any]]], tuple[Callable[[], None], Sequence[Any]]]


def record(run: Call, inputs: Sequence[Tensor], fixed: Sequence[bool],
           recorder: Recorder | None = None) -> Call:
    """Returns `run` recorded once on buffers and replayed. `fixed`: which inputs are read where
    they are.

    A fixed input that has moved (a parameter was given new memory) is recorded anew, never read at
    its old address.
    """
    recorder = recorder or _cuda_graph
    state: dict[str, Any] = {}
    device = device_of(inputs)

    def start(args: Sequence[Tensor]) -> None:
        buffers = [x if stays else x.clone() for x, stays in zip(args, fixed, strict=True)]
        state["buffers"] = buffers
        state["at"] = _addresses(args, fixed)
        with on(device):
            state["replay"], state["outputs"] = recorder(lambda: run(*buffers))

    def replay(*args: Tensor) -> Sequence[Any]:
        if state["at"] != _addresses(args, fixed):
            start(args)
        for buffer, x, stays in zip(state["buffers"], args, fixed, strict=True):
            if not stays:
                buffer.copy_(x, non_blocking=True)
        with on(device):
            state["replay"]()
        return state["outputs"]

    start(inputs)
    return replay


def device_of(inputs: Sequence[Tensor]) -> torch.device:
    """Returns the device that a step on `inputs` runs on: the first GPU among theirs, else the
    CPU.
    """
    return next((x.device for x in inputs if x.is_cuda), torch.device("cpu"))


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Within it `device` is torch's current GPU, whose streams, graphs and clocks are then
    meant.
    """
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def stuck(replay: Call, run: Call, one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    """True if `replay` gives the same outputs for two different inputs, and `run`, which it was
    recorded from, does not.
    """
    def outputs(call: Call, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [x.clone() for x in call(*inputs)]

    def same(call: Call) -> bool:
        return all(
            torch.equal(a, b) for a, b in zip(outputs(call, one), outputs(call, two), strict=True))

    return same(replay) and not same(run)


def _addresses(args: Sequence[Tensor], fixed: Sequence[bool]) -> list[int]:
    return [x.data_ptr() for x, stays in zip(args, fixed, strict=True) if stays]


def _cuda_graph(call: Callable[[], Sequence[Any]]) -> tuple[Callable[[], None], Sequence[Any]]:
    # Kernels tune and allocate on their first runs, which a recording must not see.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph.replay, outputs


def host_waits(graph: fx.GraphModule) -> list[str]:
    """Returns the nodes that would make the host wait or depend on data: none may be in a step for
    a CUDA graph.
    """
    return [n.name for n in graph.graph.nodes if n.op == "call_function" and _waits(n)]


def _waits(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    if torch.Tag.data_dependent_output in tags or (torch.Tag.dynamic_output_shape in tags
                                                   and not _by_numbers(node)):
        return True
    devices = {
        v.device
        for n in (node, *node.all_input_nodes)
        if isinstance(v := n.meta.get("val"), Tensor) if v.dim() > 0 or n is node
    }
    return len(devices) > 1


def _by_numbers(node: fx.Node) -> bool:
    """True for indexing by whole numbers alone: the output's size is known. Masks (bool, uint8) are
    counted first.
    """
    if "index" not in str(node.target) or len(
            node.args) < 2 or not isinstance(node.args[1], list | tuple):
        return False
    values = [n.meta.get("val") for n in node.args[1] if isinstance(n, fx.Node)]
    return all(isinstance(v, Tensor) and v.dtype not in (torch.bool, torch.uint8) for v in values)
