"""How long a control step takes: every arm at batch 1, in its own environment, in turns.

    rows = measure(stage, ["teacher", "64x2+two-tower-3"], planner, calibration, decisions=300)

A step is what a robot waits for: from the observation in host memory to the action in host memory. The arms take turns,
so that a machine that slows down slows all of them, and each turn lasts a while, because a robot runs one controller:
right after the others its weights are in no cache near the core. The first decisions warm up and do not count.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from lib.arms import Arm, arm_name, make_arm, make_controller
from lib.config import PlannerConfig
from lib.evaluation import Stage
from lib.profiles import episode_seeds
from lib.tasks import make_env
from lib.timing import summary, synchronise

WARM_UP = 12  # decisions: two plans of six steps, so that all of an arm's functions are compiled
TURN = 24  # decisions of an arm before it is the next one's turn: four plans of six steps
PARTS = {"plan": True, "between": False}  # steps that asked a planner or refiner, and steps that did not


@dataclass
class _Playing:
    """An arm in its environment; `times` (ms) and `planned` of every step, `calls` of the planner."""

    arm: Arm
    controller: object
    env: object
    seed: int
    times: list[float] = field(default_factory=list)
    planned: list[bool] = field(default_factory=list)
    calls: int = 0

    def start(self) -> None:
        self.obs = torch.from_numpy(self.env.reset(seed=self.seed)[0]).unsqueeze(0)
        self.controller.reset(1, [torch.Generator().manual_seed(self.seed)])

    def step(self, device: torch.device, counts: bool) -> None:
        begin = time.perf_counter()
        action, info = self.controller.act(self.obs)
        action = action[0].cpu().numpy()
        synchronise(device)
        milliseconds = 1e3 * (time.perf_counter() - begin)
        if counts:
            self.times.append(milliseconds)
            self.planned.append(bool(info["planner_called"] | info["refined"]))
            self.calls += int(info["planner_called"])
        obs, _, terminated, truncated, _ = self.env.step(action)
        if terminated or truncated:
            self.start()
        else:
            self.obs = torch.from_numpy(obs).unsqueeze(0)


def measure(
    stage: Stage, names: list[str], standard: PlannerConfig, calibration: dict[str, dict], decisions: int = 300
) -> list[dict]:
    """Rows of arm × part of the step: `step` (all), `plan` (those that asked a planner or refiner) and `between`.

    Milliseconds p50_ms, p95_ms, mean_ms; share of the steps; steps_per_s, of the mean; planner calls per decision; the
    device, and threads of the CPU. A
    part that an arm does not have has no row.
    """
    arms = [make_arm(name, standard, calibration.get(arm_name(name))) for name in names]
    seed, device = episode_seeds("latency", 1)[0], stage.wm.device
    playing = [
        _Playing(arm, make_controller(arm, stage.wm, stage.correctors), make_env(stage.cell.task, seed), seed)
        for arm in dict.fromkeys(arms)
    ]
    for one in playing:
        one.start()
        if refiner := getattr(one.controller, "refiner", None):  # which may first be asked after the warm-up
            refiner(torch.zeros(1, stage.wm.latent_dim, device=device))
    starts = range(0, WARM_UP + decisions, TURN)
    turns = [(one, range(start, min(start + TURN, WARM_UP + decisions))) for start in starts for one in playing]
    for one, turn in tqdm(turns, desc=f"{stage.cell} latency", unit="turn", mininterval=2):
        for decision in turn:
            one.step(device, counts=decision >= WARM_UP)
    return [row for one in playing for row in _rows(one, device)]


def _rows(one: _Playing, device: torch.device) -> list[dict]:
    times, planned = np.array(one.times), np.array(one.planned)
    parts = {"step": times} | {part: times[planned == asked] for part, asked in PARTS.items()}
    return [
        {
            "arm": one.arm.name,
            "part": part,
            **summary(values),
            "mean_ms": float(values.mean()),
            "share": len(values) / len(times),
            "steps_per_s": 1e3 / float(values.mean()),
            "calls_per_decision": one.calls / len(times),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "dtype": one.arm.planner.dtype if one.arm.planner else "float32",
        }
        for part, values in parts.items()
        if len(values)
    ]
