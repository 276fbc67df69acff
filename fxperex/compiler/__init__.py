"""Step graph -> callable: Inductor or eager, one CUDA graph on a GPU, remembered choices, clear errors when memory ends."""

from fxperex.compiler.backends import BACKENDS, Step, compile_step
from fxperex.compiler.memory import guarded

__all__ = ["BACKENDS", "Step", "compile_step", "guarded"]
