"""Step graph -> callable: Inductor or eager, one CUDA graph on a GPU, remembered choices; all
compared with the eager step.
"""

from fxperex.compiler import backend_cache
from fxperex.compiler.ahead import Ahead
from fxperex.compiler.backends import BACKENDS, Step, compile_step, options, recorded
from fxperex.compiler.check import Check, first_difference
from fxperex.compiler.cuda_graph import host_waits
from fxperex.compiler.out_of_memory import Forecast, forecast, guarded
from fxperex.compiler.predict import may_pay
from fxperex.compiler.stand_ins import tries

__all__ = [
    "BACKENDS", "Ahead", "Check", "Forecast", "Step", "backend_cache", "compile_step",
    "first_difference", "forecast", "guarded", "host_waits", "may_pay", "options", "recorded",
    "tries"
]
