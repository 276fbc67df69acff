"""A process of its own that compiles a step graph and times it, while this one goes on stepping.

Compiling in a thread would not do: torch's tracing puts the state of the global generator back,
which the training loop draws from meanwhile. The process fills Inductor's cache on disk, so that
compiling here afterwards takes little. It is given shapes, whole numbers and masks of the inputs,
but no parameter and no real number of a row. It ends with this process.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxperex.compiler.backends import compile_step
from fxperex.errors import BackendWarning

COMMAND = (sys.executable, "-c", "from fxperex.compiler.ahead import main; main()")
FAILED = "the step could not be compiled beside the run, it stays eager"


class Ahead:
    """The process. `backend`: what it found the fastest; None while it runs, "eager" if it
    failed.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor],
                 fixed: Sequence[bool], command: Sequence[str] = COMMAND) -> None:
        self._answer: tuple[int, str, str] | None = None
        payload = _packed(graph, inputs, fixed)
        threads = str(torch.get_num_threads())
        paths = os.pathsep.join(p for p in sys.path if p)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": paths}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, env=environment)
        # At exit too. A fork of this process, such as a loader's worker, must not end it.
        self.stop = weakref.finalize(self, _stop, self._process, os.getpid())
        self.waiter = threading.Thread(target=_talk, daemon=True,
                                       args=(weakref.ref(self), self._process, payload))
        self.waiter.start()

    @property
    def backend(self) -> str | None:
        """The answer, as soon as it is there; a failure is a BackendWarning once."""
        if self._answer is None:
            return None
        code, answer, errors = self._answer
        try:
            return str(json.loads(answer.strip().splitlines()[-1])["backend"])
        except (IndexError, ValueError, KeyError, TypeError):
            said = errors.strip().splitlines()[-1:] or [f"exit status {code}"]
            warnings.warn(BackendWarning(f"{FAILED}: {said[0]}"), stacklevel=2)
            self._answer = (0, json.dumps({"backend": "eager"}), "")
            return "eager"


def _talk(ahead: weakref.ref[Ahead], process: subprocess.Popen[bytes], payload: bytes) -> None:
    """Nothing of torch is called here: the thread waits, and reads what it is told."""
    try:
        answer, errors = process.communicate(payload)
    except (OSError, ValueError) as error:  # the process ended early
        answer, errors = b"", str(error).encode()
    if (waiting := ahead()) is not None:
        waiting._answer = (process.poll() or 0, answer.decode(errors="replace"),
                           errors.decode(errors="replace"))


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        process.kill()


def _packed(graph: fx.GraphModule, inputs: Sequence[Tensor], fixed: Sequence[bool]) -> bytes:
    described = [(tuple(x.shape), x.stride(), x.dtype,
                  None if x.is_floating_point() else x.detach().clone()) for x in inputs]
    written = io.BytesIO()
    torch.save((fx.GraphModule(graph, graph.graph), described, list(fixed)), written)
    return written.getvalue()


def main() -> None:
    """Reads what `Ahead` sends, and prints which backend is the fastest."""
    if hasattr(os, "nice"):
        os.nice(10)
    graph, described, fixed = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=False)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    inputs = [_filled(*parts) for parts in described]
    _with_values(graph, inputs)
    backend = compile_step(graph, inputs, "auto", fixed)[1]
    print(json.dumps({"backend": backend}), flush=True)


def _filled(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype,
            values: Tensor | None) -> Tensor:
    tensor = torch.empty_strided(shape, stride, dtype=dtype)
    return tensor.normal_(std=0.1) if values is None else tensor.copy_(values)


def _with_values(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Puts fake values into `meta["val"]`, which does not travel with a graph."""
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fakes, torch.no_grad():
        interpreter = fx.Interpreter(graph, garbage_collect_values=False)
        interpreter.run(*(fakes.from_tensor(x, static_shapes=True) for x in inputs))
    for node, value in interpreter.env.items():
        node.meta["val"] = value
