"""A function for one row, compiled ahead of time with the weights that it reads, and called without Python inside.

    step = packaged(function, modules, inputs)      # compiled now, or found among what was; None where neither can be
    outputs = step(*inputs)                         # tensors, and None where the function gives None

What torch.compile makes is as fast, but at every call Python checks some hundred tensors and hands them over, weights
too: for a step of a small model that is most of its time. Weights are copied, so that a later change is not seen.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lib.compilation import SLOW_START, STEP_OPTIONS, say_once, why_not_compiled
from lib.config import compiled_folder
from lib.files import temporary

OPTIONS = {name: value for name, value in STEP_OPTIONS.items() if name != "cpp_wrapper"}  # it always is, here


class _Given(nn.Module):
    """A function of the tensors among its inputs and outputs; torch.export takes modules."""

    def __init__(self, function: Callable, modules: Sequence[nn.Module], inputs: Sequence[Tensor | None]):
        super().__init__()
        self.function, self.parts, self.absent = function, nn.ModuleList(modules), [x is None for x in inputs]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        outputs = self.function(*(None if absent else next(given) for absent in self.absent))
        return tuple(x for x in outputs if x is not None)


@torch.no_grad()
def packaged(function: Callable, modules: Sequence[nn.Module], inputs: Sequence[Tensor | None]) -> Callable | None:
    """`function` of tensors and None, bound to `modules`, for inputs of these shapes on a CPU.

    None, with a line on stderr, where it cannot be compiled.
    """
    if reason := why_not_compiled(torch.device("cpu")):
        say_once(f"controller: {reason}; its steps go on as they are, which is slower")
        return None
    tensors = [
        x.clone().contiguous() for x in inputs if x is not None
    ]  # a tensor given twice would be taken for one input
    nothing = [x is None for x in function(*inputs)]
    try:
        program = torch.export.export(_Given(function, modules, inputs), tuple(tensors), strict=False)
        run = _loaded(program, tensors)
    except (RuntimeError, OSError, TypeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        say_once(f"controller: its step cannot be compiled ahead of time, going on without it ({why})")
        return None

    def step(*given: Tensor | None) -> tuple[Tensor | None, ...]:
        found = iter(run([x.contiguous() for x in given if x is not None]))  # strides are those of the example
        return tuple(None if absent else next(found) for absent in nothing)

    return step


def _loaded(program, tensors: Sequence[Tensor]) -> Callable:
    """A program's compiled code, kept under what it was made of."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    about = program.graph_module.code, torch.__version__, str(pick_vec_isa()), torch.get_num_threads(), OPTIONS
    shapes = [(x.shape, x.stride(), x.dtype) for x in tensors]
    digest = hashlib.sha256(repr((about, shapes)).encode())
    for name, value in sorted((program.state_dict | program.constants).items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    kept = compiled_folder() / "steps" / f"{digest.hexdigest()[:32]}.pt2"
    if not kept.is_file():
        started = time.perf_counter()
        with temporary(kept) as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of itself; and it would write to the options
            aoti_compile_and_package(program, package_path=str(place), inductor_configs=dict(OPTIONS))
            os.replace(place, kept)
        if (seconds := time.perf_counter() - started) > SLOW_START:
            print(f"controller: its step compiled in {seconds:.0f} s, kept for later runs", file=sys.stderr)
    return aoti_load_package(str(kept)).loader.run
