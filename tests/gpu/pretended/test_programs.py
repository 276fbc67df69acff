"""The program that Inductor writes for the private step on a GPU, beside the ordinary step's: no
GPU is needed for either.

The capability is the process's: see `tests/gpu/test_dry_gpu.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from absent_gpu import pretended
from both_steps import both
from small_nets import NETS, case
from written import Written, machine_code, write

from fxperex.compiler.cuda_graph import host_waits

SM = int(os.environ["FXPEREX_PRETENDED_SM"])
DTYPES = ("float32", "tf32", "bfloat16")
# One of each kind of input and dtype; the others run nightly.
ORDINARY = {("conv", "tf32"), ("embedding", "float32"), ("tied", "bfloat16")}
# Launches of the private step over those of the ordinary one, beyond one a parameter tensor.
LAUNCHES = {"float32": 1.5, "tf32": 1.5, "bfloat16": 1.75}
# Logits are handed to the loss with their classes first: the gradient lies so, and the last map's
# operation of this library takes it in the strides that it was traced with.
IN_FRONT = {"attention": 1, "tied": 1}


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    flags = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pretended(SM):
        yield
    torch.set_float32_matmul_precision(flags[0])
    torch.backends.cudnn.allow_tf32 = flags[1]


def _cases() -> list[object]:
    every = [(name, dtype) for name in NETS for dtype in DTYPES]
    return [pytest.param(*c, marks=[] if c in ORDINARY else [pytest.mark.nightly]) for c in every]


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # Inductor's advice on float32
@pytest.mark.parametrize(("name", "dtype"), _cases())
def test_the_step_compiles_for_a_gpu_and_is_little_more_than_the_ordinary_one(
    name: str, dtype: str
) -> None:
    model, _ = case(name)
    private, ordinary = both(name, dtype)
    assert host_waits(private) == [], "a step that waits for the host gets no CUDA graph"
    affine = sum("affine_gradients" in str(n.target) for n in private.graph.nodes)
    assert affine == NETS[name][3], "scale and shift of a norm are one pass"
    base, program = write(ordinary), write(private)
    assert machine_code(program) == {}
    # Every tensor has a sum over the examples; beyond those there are norms and factors.
    tensors = len(list(model.parameters()))
    limit = LAUNCHES[dtype] * base.launches + tensors
    assert program.launches <= limit, (program.launches, base.launches)
    # cuBLAS and cuDNN are called no more often than without privacy; this library once a weight, or
    # a norm's layer.
    assert len(program.calls) - len(program.own) <= len(base.calls), (program.calls, base.calls)
    assert len(program.own) <= sum(p.dim() > 1 for p in model.parameters()) + affine, program.own
    _held_to_its_layouts(name, affine, program, base)


def test_a_kernel_that_does_not_compile_is_named() -> None:
    source = "import triton\nraise ValueError('no such layout')\n"
    text = f"triton_poi_0 = async_compile.triton('triton_poi_0', '''{source}''', device_str='cuda')"
    failed = machine_code(Written(text, 0, (), (), 0))
    assert failed == {"triton_poi_0": "ValueError: no such layout"}


def _held_to_its_layouts(name: str, affine: int, program: Written, base: Written) -> None:
    in_front = [readers for readers in program.copies
                if any(reader.startswith("fxperex.") for reader in readers)]
    assert len(in_front) <= IN_FRONT.get(name, 0), in_front
    # Beyond those, one more than the ordinary step's at most: attention's gradients.
    assert len(program.copies) - len(in_front) <= len(base.copies) + 1, program.copies
    # An affine pass reads input, gradient and two statistics, which the ordinary step forms inside
    # other kernels.
    assert program.alone <= 4 * affine + len(program.own) - affine, program.alone
