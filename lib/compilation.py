"""One function, several ways to run it: as it is, compiled, or captured in a CUDA graph.

    mode = resolve_mode("auto", device)                  # eager, compiled or cudagraph
    fast = Compiled(function, "planner")                 # falls back to `function` where compiling is not possible
    replay = Captured(function)                          # one CUDA graph for each set of shapes

    keep_compiled_code(folder)                           # elsewhere than in `compiled_folder()`

Compiled code is kept, so that only the first run on a machine waits for the C++ compiler.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.config import ConfigError, can_be_written, compiled_folder, is_plain

SLOW_START = 5.0  # seconds of compilation that are worth a line on the terminal
# Norm and activation of a layer are one pass over memory only if the compiler may recompute what is read twice.
CPU_OPTIONS = {
    "realize_reads_threshold": 30,
    "realize_opcount_threshold": 200,
    "cpp.enable_floating_point_contract_flag": "fast",
    "cpp_wrapper": True,
}
# A step without planning takes less than a millisecond on a CPU, and much of that is not arithmetic: torch would check
# at every call that tensors have the shapes it gave them, and call a library for each product of one row with a matrix,
# which a loop of its own does as fast. (Its guards stay: all controllers of a process share what is compiled.)
STEP_OPTIONS = CPU_OPTIONS | {
    "size_asserts": False,
    "alignment_asserts": False,
    "scalar_asserts": False,
    "post_grad_fusion_options": {"decompose_mm_pass": {}},
}


def why_not_compiled(device: torch.device) -> str:
    """The reason why nothing can be compiled here, or an empty string."""
    if device.type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return "triton is not installed"
        return ""
    if not shutil.which(os.environ.get("CXX", "c++")):
        return "no C++ compiler was found"
    keep_compiled_code()
    return _why_not_kept() or _why_not_told()


def _why_not_kept() -> str:
    """The reason why compiled code cannot be kept, or an empty string."""
    if not (folder := os.environ.get("TORCHINDUCTOR_CACHE_DIR")):
        return "no folder can be written"
    return "" if can_be_written(Path(folder).absolute()) else f"no compiled code can be kept in {folder!r}"


def _why_not_told() -> str:
    """The reason why the C++ compiler cannot be told of a folder that it needs, or an empty string."""
    needed = os.environ["TORCHINDUCTOR_CACHE_DIR"], torch.__path__[0], sysconfig.get_path("include")
    odd = [folder for folder in (*needed, tempfile.gettempdir()) if not is_plain(folder)]
    return f"{odd[0]!r} has a space, quote or backslash, which torch's calls of the compiler cannot take" if odd else ""


def resolve_mode(mode: str, device: torch.device, what: str = "planner", worthwhile: bool = True) -> str:
    """What "auto" means on this device; any other mode is returned as it is.

    auto captures on a GPU, and compiles on a CPU if that is `worthwhile` and possible; if not possible, it says why.
    Raises `ConfigError` for CUDA graphs without a CUDA device.
    """
    if mode == "cudagraph" and device.type != "cuda":
        raise ConfigError(f"mode='cudagraph' needs a CUDA device, but the world model is on {device}; use auto.")
    if mode != "auto":
        return mode
    if device.type == "cuda":
        return "cudagraph"
    if not worthwhile:
        return "eager"
    if reason := why_not_compiled(device):
        say_once(f"{what}: {reason}; going on uncompiled, which is slower")
        return "eager"
    return "compiled"


@functools.cache
def say_once(line: str) -> None:
    """A line on stderr, the first time only."""
    print(line, file=sys.stderr)


def keep_compiled_code(folder: Path | None = None) -> None:
    """Keep what is compiled from now on in `folder`.

    Without an argument that is `lib.config.compiled_folder()`, unless TORCHINDUCTOR_CACHE_DIR names a folder.
    """
    if folder or not os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        with contextlib.suppress(OSError):  # where no folder at all can be written, compiling says so
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder or compiled_folder())


class Compiled:
    """`function` through torch.compile, and as it is from the first failure of the compiler on.

    `batched` are the arguments (or tuples of them) that begin with the batch dimension: the function is compiled for
    batch 1, and once for all larger batches. `seconds` is what compiling has cost so far.
    """

    def __init__(self, function, what: str, options: dict | None = None, batched: Sequence[int] = ()):
        self.function, self.what, self.batched, self.seconds, self._compiled = function, what, batched, 0.0, None
        keep_compiled_code()
        if reason := _why_not_kept():  # torch would not even be imported as a whole
            return self._say(reason)
        # Every budget and model size is compiled for itself; the default of 8 would silently stop that.
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.accumulated_recompile_limit = 1024
        self._compiled = torch.compile(function, dynamic=False, options=options)

    def _say(self, reason: str) -> None:
        say_once(f"{self.what}: compilation is not possible here, going on without it ({reason})")

    def __call__(self, *inputs):
        if self._compiled is None:
            return self.function(*inputs)
        for i in self.batched:
            for x in inputs[i] if isinstance(inputs[i], (tuple, list)) else inputs[i : i + 1]:
                if x is not None and x.shape[0] > 1:
                    torch._dynamo.maybe_mark_dynamic(x, 0)
        compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        started = time.perf_counter()
        try:
            result = self._compiled(*inputs)
        except (RuntimeError, OSError) as error:
            # Inductor raises these for a missing compiler, header or operator, or a full disk. An error of the
            # function's own is raised again by the next line, and says nothing about compiling.
            result = self.function(*inputs)
            reason = _why_not_told() or (str(error).strip() or type(error).__name__).splitlines()[0]
            self._say(reason)
            self._compiled = None
            return result
        if torch._dynamo.utils.counters["stats"]["unique_graphs"] > compilations:
            seconds = time.perf_counter() - started
            self.seconds += seconds
            if seconds > SLOW_START:
                print(f"{self.what}: compiled in {seconds:.0f} s, kept for later runs", file=sys.stderr)
        return result


class Captured:
    """`function` of tensors (and None) as one CUDA graph for each set of shapes: no launches, no Python.

    `reads` are the parameters that `function` reads beside its arguments: where one was moved, it is captured anew.
    What else it reads must stay where it is. Results are copies (None stays None). Graphs are replayed one at a time
    and share memory.
    """

    def __init__(self, function, reads: Sequence[Tensor] = ()):
        self.function, self.reads, self._graphs, self._pool = function, reads, {}, None

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        device = next((x.device for x in inputs if x is not None), None)
        places = tuple(p.data_ptr() for p in self.reads)
        key = places, tuple(None if x is None else (x.shape, x.dtype, x.device) for x in inputs)
        with torch.cuda.device(device):
            if key not in self._graphs:
                self._graphs = {k: v for k, v in self._graphs.items() if k[0] == places}
                self._graphs[key] = self._capture(inputs)
            graph, static, results = self._graphs[key]
            for held, given in zip(static, inputs, strict=True):
                if held is not None:
                    held.copy_(given)
            graph.replay()
            return tuple(None if r is None else r.clone() for r in results)

    def _capture(self, inputs):
        static = [None if x is None else x.clone() for x in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is set up lazily (cuBLAS, Triton) must be there before the capture
            for _ in range(3):
                self.function(*static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool):
            results = self.function(*static)
        return graph, static, results


def prepared(mode: str, function: functools.partial, batched):
    """A controller's step, a function of tensors bound to its modules, run as planners run: as it is, compiled, or
    captured (uncompiled: a graph has no launches to save). `batched`: see `Compiled`."""
    modules = [m for m in function.args if isinstance(m, nn.Module)]
    if mode == "eager":
        return function
    if mode == "compiled":
        return Compiled(function, "controller", STEP_OPTIONS if modules[0].device.type == "cpu" else None, batched)
    return Captured(function, [p for m in modules for p in m.parameters()])
