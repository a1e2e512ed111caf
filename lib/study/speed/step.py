"""What a control step, an update and a decision of training cost, part by part, and the memory of the largest model.

    benchmark_step("cpu", "1m")          # encode, mismatch, correct, re-roll, plan, whole steps
    benchmark_updates("cpu", ["1m"])     # updates, and decisions of collection with their update
    memory_317m()                        # GiB at the peak of one plan

Everything is timed against the official manner (`lib.study.speed.official_manner`) in the same rounds: see
`lib.study.speed.timing.timed`.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.compilation import why_not_compiled
from lib.config import WorldModelConfig
from lib.correctors import TwoTowerCorrector
from lib.planner import MPPI
from lib.records.paths import ROOT
from lib.speculation import SpeculativeController
from lib.study.speed.official_manner import OfficialLearner, OfficialPlanner
from lib.study.speed.timing import budget, first_call, forget_compiled, random_model, summary, timed
from lib.teachers.config import TeacherConfig
from lib.teachers.learner import Learner
from lib.teachers.replay import Batch
from lib.world_model import WorldModel, total_variation

# ---------------------------------------------------------------------------------------------------- one control step


def official_step(
    wm: WorldModel, obs: Tensor, samples: int, iterations: int, compile: bool = False
) -> Callable[[], Tensor]:
    """A control step as the official code makes it: encode, plan at every step, the first action to the environment."""
    twin = OfficialPlanner(wm, budget(samples, iterations), compile)
    mean = torch.zeros(1, twin.config.horizon, wm.action_dim, device=wm.device)

    @torch.no_grad()
    def step():
        nonlocal mean
        warm = torch.zeros_like(mean)
        warm[:, :-1] = mean[:, 1:]
        actions, mean, _ = twin(twin.net.encode(obs.to(wm.device)), warm)
        return actions[:, 0].cpu()

    return step


class AlternatingStep:
    """`SpeculativeController.act` that plans at every other call; `planned` notes at which ones."""

    def __init__(self, planner: MPPI, corrector, obs: Tensor):
        self.controller = SpeculativeController(planner, corrector, execution_horizon=2)
        self.controller.reset(1, [torch.Generator(planner.wm.device).manual_seed(0)])
        self.obs, self.planned = obs, []

    def __call__(self) -> None:
        action, info = self.controller.act(self.obs)
        action.cpu()  # the environment needs it
        self.planned.append(info["planner_called"])


def benchmark_step(
    device: str = "cpu",
    size: str | WorldModelConfig = "1m",
    mode: str = "auto",
    dtype: str = "float32",
    small: tuple[int, int] = (64, 2),
    standard: tuple[int, int] = (512, 6),
    seconds: float = 10.0,
    rounds: int = 20,
) -> list[dict]:
    """One row per part of a control step at batch 1: median and 95th percentile in ms, and the ratio of its median to
    the whole step in the official manner. `small` and `standard` are samples × iterations."""
    name = size if isinstance(size, str) else "custom"
    print(f"benchmark: control step, {name}", file=sys.stderr, flush=True)
    forget_compiled()
    wm = random_model(size, device).eval().requires_grad_(False)
    obs = torch.randn(1, wm.native_obs_dim)
    z, z_pred = wm.encode(torch.randn(2, wm.native_obs_dim, device=device)).split(1)
    action, depth = torch.zeros(1, wm.action_dim, device=device), torch.ones(1, device=device, dtype=torch.long)
    warm = torch.zeros(1, 3, wm.action_dim, device=device)
    corrector = TwoTowerCorrector(wm.latent_dim, wm.action_dim).to(device).eval().requires_grad_(False)
    label = {shape: f"{shape[0]} × {shape[1]}" for shape in (small, standard)}
    generator = torch.Generator(wm.device).manual_seed(0)
    planners = {shape: MPPI(wm, budget(*shape, mode, dtype)) for shape in label}
    whole = {shape: AlternatingStep(planner, corrector, obs) for shape, planner in planners.items()}
    official = f"official step {label[standard]}"
    functions = {
        "encode": lambda: wm.encode(obs.to(device)),
        "mismatch": lambda: total_variation(z, z_pred, wm.config.simnorm_dim),
        "correct": lambda: corrector(z, z_pred, action, action, depth),
        "re-roll": lambda: wm.next(z_pred, action),
        official: official_step(wm, obs, *standard),
    }
    if torch.device(device).type == "cuda":
        functions[f"{official}, compiled"] = official_step(wm, obs, *standard, compile=True)
    for shape in whole:
        functions[f"plan {label[shape]}"] = partial(planners[shape], z, warm, generator)
        functions[f"step {label[shape]}"] = whole[shape]
    times = timed(functions, seconds, 2 * rounds, device)
    for shape, step in whole.items():
        mixed = times.pop(f"step {label[shape]}")
        planned = torch.stack(step.planned).any(1).cpu().numpy()[-len(mixed) :]
        times[f"step {label[shape]}, planning"] = mixed[planned]
        times[f"step {label[shape]}, not planning"] = mixed[~planned]
    base = np.median(times[official])
    return [
        {"size": name, "part": part, **summary(values), "ratio_to_official": float(np.median(values) / base)}
        | {"mode": mode, "dtype": dtype, "rounds": len(values), "device": device}
        for part, values in times.items()
    ]


# ------------------------------------------------------------------------------------------------- updates, collection


def random_batch(wm: WorldModel, size: int, horizon: int = 3) -> Batch:
    """Random sequences for an update, on the model's device."""
    kept = {"device": wm.device}
    return Batch(
        torch.randn(horizon + 1, size, wm.native_obs_dim, **kept),
        2 * torch.rand(horizon, size, wm.action_dim, **kept) - 1,
        torch.rand(horizon, size, **kept),
    )


def decision(learner, planner: Callable, data: Batch) -> Callable[[], None]:
    """One decision of training without its environment: encode, plan, then one update."""
    wm, obs = learner.wm, data.obs[0, :1]

    def run():
        wm.eval()
        with torch.no_grad():
            planner(wm.encode(obs))
        wm.train()
        learner.update(data)

    return run


def benchmark_updates(
    device: str = "cpu",
    sizes: Sequence[str | WorldModelConfig] = ("1m", "5m"),
    batch_size: int = 256,
    mode: str = "auto",
    compile: bool = True,
    collect: tuple[int, int] = (128, 2),
    standard: tuple[int, int] = (512, 6),
    seconds: float = 10.0,
    rounds: int = 5,
) -> list[dict]:
    """Updates and whole decisions of training per second: ours, eager and compiled, and in the official manner.

    Ours collects with a `collect` planner (samples × iterations), the official manner with the `standard` one.
    """
    rows = []
    for size in sizes:
        name = size if isinstance(size, str) else "custom"
        print(f"benchmark: updates, {name}", file=sys.stderr, flush=True)
        forget_compiled()
        start, settings = random_model(size, device), TeacherConfig(batch_size=batch_size, compile=False)
        data = random_batch(start, batch_size, settings.horizon)
        learners = {"eager": Learner(copy.deepcopy(start), settings)}
        if compile and not why_not_compiled(torch.device(device)):
            learners["compiled"] = Learner(copy.deepcopy(start), TeacherConfig(batch_size=batch_size, compile=True))
        learners["official"] = OfficialLearner(copy.deepcopy(start), settings)
        functions = {}
        for kind, learner in learners.items():
            if kind == "official":
                planner = OfficialPlanner(learner.wm, budget(*standard))
            else:
                planner = MPPI(learner.wm, budget(*collect, mode))
            functions["update", kind] = partial(learner.update, data)
            functions["decision", kind] = decision(learner, planner, data)
        first = {name: first_call(function, device) for name, function in functions.items()}
        times = timed(functions, seconds, rounds, device)
        for (part, kind), values in times.items():
            about = summary(values)
            ratio = about["p50_ms"] / float(np.median(times[part, "official"]))
            rows.append(
                {"size": name, "batch": batch_size, "part": part, "learner": kind, **about}
                | {"per_s": 1e3 / about["p50_ms"], "ratio_to_official": ratio, "compile_s": first[part, kind]}
                | {"rounds": len(values), "device": device}
            )
    return rows


# -------------------------------------------------------------------------------------------------------------- memory


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held before it started us
        (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def plan_once(size: str, samples: int, iterations: int) -> None:
    """Build a model directly in bfloat16 and plan from one latent."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.bfloat16)
    wm = random_model(size).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    planner = MPPI(wm, budget(samples, iterations, "eager", "bfloat16"))
    plan = planner(wm.encode(torch.randn(1, wm.native_obs_dim, dtype=torch.bfloat16)).float())
    if not torch.isfinite(plan.actions).all():
        raise RuntimeError(f"the plan of a {size} model in bfloat16 is not finite.")


def memory_317m(samples: int = 64, iterations: int = 2, size: str = "317m") -> float:
    """Peak resident memory, GiB, of a fresh process that plans once at batch 1 with the largest model in bfloat16."""
    code = f"from lib.study.speed.step import peak_gib, plan_once\nplan_once({size!r}, {samples}, {iterations})\n"
    done = subprocess.run([sys.executable, "-c", code + "print(peak_gib())"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the {size} model could not plan in a process of its own: {done.stderr.strip()[-400:]}")
    return float(done.stdout)


def benchmark_memory(budgets: Sequence[tuple[int, int]] = ((64, 2),)) -> list[dict]:
    """One row per budget: the peak memory of `memory_317m`, on the CPU."""
    made = {"size": "317m", "dtype": "bfloat16", "batch": 1}
    return [made | {"samples": n, "iterations": i, "peak_gib": memory_317m(n, i)} for n, i in budgets]
