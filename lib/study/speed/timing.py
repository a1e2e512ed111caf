"""Timing functions against each other, on a CPU or a GPU, for `lib.study.speed.benchmark`. Needs torch and numpy.

times = timed({"ours": planner, "theirs": twin}, seconds=5)      # name -> milliseconds of every call
summary(times["ours"])                                           # {"p50_ms": …, "p95_ms": …}
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Hashable
from functools import cache

import numpy as np
import torch
from torch import nn

from lib.config import PlannerConfig, WorldModelConfig
from lib.records.store import machine
from lib.world_model import WorldModel

OBS_DIM, ACTION_DIM = 24, 6  # walker: the task of the shipped teacher


def synchronise(device: str | torch.device) -> None:
    """Wait for a GPU to finish; nothing on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    functions: dict[Hashable, Callable], seconds: float = 5.0, rounds: int = 5, device: str = "cpu", warm_up: int = 2
) -> dict[Hashable, np.ndarray]:
    """Milliseconds of every call of every function, in the order of the calls.

    The functions take turns (A, B, C, A, B, C, …), so that a machine that slows down slows all of them; `warm_up`
    rounds come first. Rounds go on for about `seconds`, and are at least `rounds`.
    """
    for _ in range(warm_up):
        for function in functions.values():
            function()
    synchronise(device)
    times = {name: [] for name in functions}
    done, end = 0, time.perf_counter() + seconds
    while done < rounds or time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            synchronise(device)
            times[name].append(1e3 * (time.perf_counter() - start))
        done += 1
    return {name: np.array(values) for name, values in times.items()}


def first_call(function: Callable, device: str) -> float:
    """Seconds of a call, meant for the first one, which compiles or captures."""
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def started(makers: dict[Hashable, Callable[[], Callable]], device: str) -> tuple[dict, dict]:
    """Make each function and call it once: (functions, seconds of the first calls).

    A function for which there is not enough memory on the GPU is left out, and this is said.
    """
    functions, first = {}, {}
    for name, make in makers.items():
        try:
            function = make()
            first[name] = first_call(function, device)
        except torch.OutOfMemoryError:
            print(f"benchmark: {name} does not fit into memory and is left out", file=sys.stderr)
            torch.cuda.empty_cache()
            continue
        functions[name] = function
    return functions, first


def summary(times: np.ndarray) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds."""
    return {"p50_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))}


def random_model(size: str | WorldModelConfig, device: str = "cpu", seed: int = 0) -> WorldModel:
    """A world model of a named size (or of given shapes) whose last layers are random too, in training mode.

    Times hardly depend on weights, but with fresh, zero last layers every plan would tie and every latent be equal.
    """
    torch.manual_seed(seed)
    c = WorldModelConfig.from_size(size, OBS_DIM, ACTION_DIM) if isinstance(size, str) else size
    with torch.device(device):
        wm = WorldModel(c)
        for last in (wm.reward_head[-1].weight, wm.q_heads.layers[-1].weight):
            nn.init.trunc_normal_(last, std=0.02)
    wm.target_q_heads.load_state_dict(wm.q_heads.state_dict())
    return wm.train()  # which switches dropout off in the target heads


def budget(samples: int, iterations: int, mode: str = "eager", dtype: str = "float32") -> PlannerConfig:
    """A planner of a given size that is executed in a given way."""
    return PlannerConfig.budget(samples, iterations, mode=mode, dtype=dtype)


def forget_compiled() -> None:
    """Start compiling anew: what was compiled for other shapes is checked at every call, and there is a limit to it."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def fast_dtypes(device: str) -> tuple[str, ...]:
    """The dtypes worth measuring: bfloat16 only where a matrix product in it is not slower than in float32."""
    if torch.device(device).type == "cuda":
        return "float32", "bfloat16"
    x = torch.randn(256, 256)
    halves = x.bfloat16()
    times = timed({"float32": lambda: x @ x, "bfloat16": lambda: halves @ halves}, 0.05)
    return ("float32", "bfloat16") if np.median(times["bfloat16"]) < np.median(times["float32"]) else ("float32",)


# -------------------------------------------------------------------------------------------------------------- device


def device_name(device: str) -> str:
    """What the timings are of: the GPU's name, or the machine's cores and processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return machine().partition(",")[0]


def slug(device: str) -> str:
    """Stem of the device's tables: "cpu", or the GPU's name as in nvidia-h200."""
    kind = torch.device(device).type
    return kind if kind == "cpu" else re.sub("[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


@cache
def load_before() -> float:
    """Load of the last minute when this is first asked: what else was running, on a machine that should be idle."""
    return os.getloadavg()[0]
