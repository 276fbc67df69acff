"""What Inductor writes for a graph: its program for the GPU, launches, calls of libraries, copies,
and machine code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from absent_gpu import CUDA
from both_steps import on_the_gpu
from torch import fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

KERNEL = re.compile(
    r"^(triton_\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str='cuda'\)", re.S | re.M
)
CALL = re.compile(r"^ *(?:buf\d+ = )?(extern_kernels\.\w+|torch\.ops\.\w+\.\w+\.\w+)\(", re.M)
MOVES = {"load", "store", "get_index", "constant"}


@dataclass(frozen=True)
class Written:
    """`launches` of Triton kernels; `calls` of libraries (cuBLAS, cuDNN, this one) by name, in
    order; `copies`: of each copy of a whole tensor into another layout, what reads it; `alone`:
    operands that are written for an operation of this library and read by nothing else."""

    text: str
    launches: int
    calls: tuple[str, ...]
    copies: tuple[tuple[str, ...], ...]
    alone: int

    @property
    def own(self) -> list[str]:
        """Operations of this library, in the order they are called."""
        return [c.split(".")[3] for c in self.calls if c.startswith("torch.ops.fxperex.")]


class _EnoughError(Exception):
    pass


def write(graph: fx.GraphModule) -> Written:
    """Returns the program that Inductor writes for `graph`, whose nodes have fake meta tensors in
    `meta["val"]`."""
    import torch._inductor.config as settings
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.graph import GraphLowering

    programs: list[Written] = []
    codegen = GraphLowering.codegen

    def stopped(lowering: Any) -> Any:
        text = codegen(lowering)[0]
        programs.append(_read(str(getattr(text, "value", text)), lowering.scheduler.nodes))
        raise _EnoughError

    fakes = FakeTensorMode(shape_env=ShapeEnv())
    values = [n.meta["val"] for n in graph.graph.find_nodes(op="placeholder")]
    with fakes:
        inputs = [
            torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=CUDA) for v in values
        ]
    options = {"fx_graph_cache": False, "fx_graph_remote_cache": False, "compile_threads": 1}
    with (
        mock.patch.object(GraphLowering, "codegen", stopped),
        torch.no_grad(),
        tracing(TracingContext(fakes)),
        settings.patch(options),
    ):
        try:
            compile_fx(on_the_gpu(graph), inputs)
        except Exception:
            if not programs:
                raise
    return programs[0]


def _read(text: str, nodes: list[Any]) -> Written:
    body = text.split("def call(", 1)[1]
    single = [part for node in nodes for part in node.get_nodes()]
    named = {part.get_name(): part for part in single}

    def readers(part: Any) -> tuple[str, ...]:
        return tuple(
            sorted(_kernel(named.get(use.get_name())) for out in part.outputs for use in out.users)
        )

    copies = tuple(readers(part) for part in single if _copies(part))
    triton = [part for part in single if getattr(part, "_body", None) is not None]
    alone = sum(
        bool(uses := readers(part)) and all(u.startswith("fxperex.") for u in uses)
        for part in triton
    )
    return Written(
        text,
        len(re.findall(r"^ *triton_\w+\.run\(", body, re.M)),
        tuple(CALL.findall(body)),
        copies,
        alone,
    )


def _kernel(part: Any) -> str:
    """The operation of a scheduled node: "aten.mm.out", "fxperex.conv_gradients.default", or "" for
    a Triton kernel."""
    return str(getattr(getattr(part, "node", None), "op_overload", None) or "")


def _copies(part: Any) -> bool:
    """True where `part` only copies a tensor into other strides; parts of a concatenation are not
    meant."""
    body = getattr(part, "_body", None)
    if body is None or any(
        type(use.node).__name__ == "NopKernelSchedulerNode"
        for out in part.outputs
        for use in out.users
    ):
        return False
    steps = {n.target for n in body.root_block.graph.nodes if n.op == "call_method"}
    layout = part.node.get_layout()
    return "load" in steps and steps <= MOVES and sum(size != 1 for size in layout.size) > 1


def machine_code(written: Written) -> dict[str, str]:
    """Compiles every Triton kernel of the program, its first configuration; returns {kernel: why it
    did not compile}."""
    from torch._inductor.codecache import PyCodeCache

    failed: dict[str, str] = {}
    kernels = KERNEL.findall(written.text)
    assert len(kernels) == written.text.count("async_compile.triton("), (
        "a kernel of the program was not found in it"
    )
    for name, source in kernels:
        try:
            kernel = getattr(PyCodeCache.load(source), name)
            binary = kernel._precompile_config(kernel.configs[0]).kernel
            assert len(getattr(binary, "cubin_raw", None) or binary.asm["cubin"]) > 0
        except Exception as error:  # each says its own; all of them are told together
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return failed
