"""How much the benchmark measures, on which device, and under which name.

scope = SCOPES["quick"].narrowed("1m")         # what `lib.study.speed.benchmark.measure_part` is given
slug("cuda")                                   # nvidia-h200, the stem of the device's tables
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from functools import cache

import torch

from lib.records.store import machine

BUDGETS = ((512, 6), (64, 2))  # samples, iterations: the standard planner and the right-sized one
SIZES = {"cpu": ("1m", "5m"), "cuda": ("1m", "5m", "19m", "48m", "317m")}
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 64, 512)}
# "official-compiled" is the twin under torch.compile(mode="reduce-overhead"), as the official code runs on a GPU.
MODES = {"cpu": ("eager", "compiled"), "cuda": ("eager", "compiled", "cudagraph", "official-compiled")}
PARTS = ("solves", "step", "updates", "memory")


@dataclass(frozen=True)
class Scope:
    """How much is measured; None takes the device's own list (see above, and `benchmark_solves`).

    Budgets are samples × iterations: `budgets` of the solves, `small` and `standard` of the control step and of the
    episodes that compare dtypes, `collect` of a training decision, `memory` of the 317m model. `mode` is the planner's
    beside the solves; `seconds` and `rounds` are for each group of functions, see `lib.study.speed.timing.timed`.
    """

    sizes: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None
    budgets: tuple[tuple[int, int], ...] = BUDGETS
    modes: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    step_sizes: tuple[str, ...] = ("1m", "5m")
    update_sizes: tuple[str, ...] = ("1m", "5m")
    update_batch: int = 256
    small: tuple[int, int] = (64, 2)
    standard: tuple[int, int] = (512, 6)
    collect: tuple[int, int] = (128, 2)
    memory: tuple[tuple[int, int], ...] = ()
    mode: str = "auto"
    episodes: int = 0
    seconds: float = 10.0
    rounds: int = 5

    def narrowed(self, size: str, seconds: float = 0.0) -> Scope:
        """This scope for one model size ("all" leaves it as it is), with other seconds where they are not 0."""
        sizes = {} if size == "all" else dict.fromkeys(("sizes", "step_sizes", "update_sizes"), (size,))
        return dataclasses.replace(self, seconds=seconds or self.seconds, **sizes)


SCOPES = {  # by profile; smoke compiles nothing, quick no more than a few minutes allow
    "smoke": Scope(
        batches=(1,),
        budgets=((32, 1),),
        modes=("eager",),
        step_sizes=("1m",),
        update_sizes=("1m",),
        update_batch=16,
        small=(16, 1),
        standard=(32, 1),
        collect=(16, 1),
        mode="eager",
        episodes=2,
        seconds=0.0,
        rounds=2,
    ),
    "quick": Scope(batches=(1,), step_sizes=("1m",), update_sizes=("1m",), seconds=2.0),
    "paper": Scope(memory=BUDGETS[:1], episodes=40, seconds=5.0, rounds=4),
}

# -------------------------------------------------------------------------------------------------------------- device


def chosen_device(device: str) -> str:
    """ "auto" is the first GPU where there is one, else the CPU. (`lib.weights.native` needs more installed.)"""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


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
