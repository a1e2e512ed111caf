"""How long a control step takes: every arm in its own environments, in turns.

    arms = ["teacher", "64x2+two-tower-3"]
    table = step_times(stage, planner, calibration, {1: (arms, 200), 10: (arms[1:], 36)})

A step is what a robot waits for: from the observation in host memory to the action in host memory. The arms take turns,
so that a machine that slows down slows all of them, and each turn lasts a while, because a robot runs one controller:
right after the others its weights are in no cache near the core. The first decisions warm up and do not count, and
those after them are the first of an episode. A robot is a batch of one; the evaluation plays many episodes in parallel.
`lib.study.stats.step_time` makes of these times the mean over whole episodes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from lib.compilation import prepared, resolve_mode
from lib.config import PlannerConfig
from lib.correctors import appended, token
from lib.environments import make_env
from lib.gates import Look
from lib.planner import MPPI
from lib.records import paths
from lib.records.keys import key_of, rest_of
from lib.records.ledger import renamed
from lib.records.seeds import episode_seeds
from lib.records.store import cached, intact, read_sidecar, read_table
from lib.rollout import start
from lib.speculation import SpeculativeController
from lib.study.arms import Arm, DelayArm, DraftArm, arm_name, make_arm, make_controller
from lib.study.evaluate import Stage, arm_key
from lib.study.speed.timing import summary, synchronise, timed
from lib.world_model import total_variation

WARM_UP = 12  # decisions: two plans of six steps, so that all of an arm's functions are compiled
TAIL = 1_000  # steps without which there is no 99.9th percentile
TURN = 24  # decisions of an arm before it is the next one's turn: four plans of six steps
PARTS = {"plan": True, "between": False}  # steps that asked a planner or refiner, and steps that did not


@dataclass
class _Playing:
    """An arm in its environments, one per seed; of every step the `times` (ms) of the controller and of the
    environments, and whether it `planned`; `calls` of the planner."""

    arm: Arm
    controller: object
    envs: list
    seeds: list[int]
    times: list[float] = field(default_factory=list)
    env_times: list[float] = field(default_factory=list)
    planned: list[bool] = field(default_factory=list)
    calls: int = 0

    def start(self) -> None:
        self.obs = torch.from_numpy(start(self.controller, self.envs, self.seeds))

    def step(self, device: torch.device, counts: bool) -> None:
        begin = time.perf_counter()
        actions, info = self.controller.act(self.obs)
        actions = actions.cpu().numpy()
        synchronise(device)
        decided = time.perf_counter()
        steps = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        if counts:
            self.times.append(1e3 * (decided - begin))
            self.env_times.append(1e3 * (time.perf_counter() - decided))
            self.planned.append(bool((info["planner_called"] | info["refined"]).any()))
            self.calls += int(info["planner_called"].sum())
        if any(terminated or truncated for _, _, terminated, truncated, _ in steps):
            self.start()
        else:
            self.obs = torch.from_numpy(np.stack([obs for obs, *_ in steps]))


def step_times(
    stage: Stage,
    standard: PlannerConfig,
    calibration: dict[str, dict],
    work: dict[int, tuple[list[str], int]],
    compile_all: bool = False,
    file: Path | None = None,
) -> pd.DataFrame:
    """The rows of `measure` for every batch: the names of its arms, and decisions of each of them.
    `compile_all` compiles, as for a robot, also planners so small that whoever plays episodes does not wait for it.

    Kept as the result file `latency/<cell>.csv`, or as `file`, while arms, weights and device stay the same, whatever
    code says: no audit can carry a time over, so it keeps its commit and date, and is measured again once the file is
    removed."""
    arms, key = steps_key(stage, standard, calibration, work, compile_all)

    def make(path: Path) -> None:
        timed = [(batch, [arms[name] for name in wanted], count) for batch, (wanted, count) in work.items()]
        rows = [row for batch, wanted, count in timed for row in measure(stage, wanted, count, batch)]
        pd.DataFrame(rows).to_csv(path, index=False)

    file = file or paths.results(stage.profile) / "latency" / f"{stage.cell}.csv"
    if not (intact(file) and rest_of(renamed(read_sidecar(file).get("key", "-"))) == rest_of(key)):
        cached(file, key, make, f"step times of {stage.cell}", load=os.getloadavg()[0])
    return read_table(file)


def steps_key(stage: Stage, standard: PlannerConfig, calibration: dict, work: dict, compile_all: bool):
    """The arms that are timed, by name, and the key of their times; arguments as of `step_times`."""
    names = dict.fromkeys(name for wanted, _ in work.values() for name in wanted)
    arms = {name: make_arm(name, standard, calibration.get(arm_name(name))) for name in names}
    if compile_all:
        arms = {name: compiled(arm, stage.wm.device) for name, arm in arms.items()}
    files = [stage.corrector_files.get(arm.corrector) for arm in arms.values()]
    keys = [arm_key(arm, stage.cell, stage.teacher, file, 0) for arm, file in zip(arms.values(), files, strict=True)]
    how = [stage.wm.device.type, [arm.planner and arm.planner.mode for arm in arms.values()]]
    return arms, key_of([measure], [rest_of(key) for key in keys], how, sorted(work.items()))


def compiled(arm: Arm, device: torch.device) -> Arm:
    """The arm with its planner and refiner compiled or captured where that is possible, however small they are."""
    planners = {name: planner for name in ("planner", "refiner") if (planner := getattr(arm, name))}
    fastest = {n: replace(p, mode=resolve_mode(p.mode, device)) for n, p in planners.items()}
    return replace(arm, **fastest)


def measure(stage: Stage, arms: list[Arm], decisions: int = 300, batch: int = 1) -> list[dict]:
    """Rows of arm × part of the step: `step` (all of the controller's), `plan` (those in which a row asked a planner or
    refiner), `between` (the others), `env` (the environments' own), and what is in `between`, each by itself: `encode`,
    `predict`, `correct` and `gate` (see `alone`). Of an arm with a delay it is the `solve` by itself: that is in
    the background in earnest, and `between` the step in the foreground.

    Milliseconds p50_ms, p95_ms, p99_ms (of a tenth of `TAIL` steps or more), p999_ms (of `TAIL`), max_ms, mean_ms, and
    mean_error_ms, the standard error over so many turns (not for parts by themselves); the number of `steps`, and their
    share; steps_per_s, of the mean; planner calls per decision of an episode; the batch, the device, and threads of the
    CPU. A part that an arm does not have has no row.
    """
    seeds, device = episode_seeds("latency", batch), stage.wm.device
    playing = []
    for arm in dict.fromkeys(arms):
        envs = [make_env(stage.cell.task, seed) for seed in seeds]
        playing.append(_Playing(arm, make_controller(arm, stage.wm, stage.correctors), envs, seeds))
    for one in playing:
        one.start()
        for planner in filter(
            None, (one.controller.planner, getattr(one.controller, "refiner", None)) if one.arm.gate else ()
        ):
            for rows in range(1, batch + 1):  # as many as a gate may first let through after the warm-up
                planner(torch.zeros(rows, stage.wm.latent_dim, device=device))
    starts = range(0, WARM_UP + decisions, TURN)
    turns = [(one, range(start, min(start + TURN, WARM_UP + decisions))) for start in starts for one in playing]
    with _without_collector():
        for one, turn in tqdm(turns, desc=f"{stage.cell} latency, batch {batch}", unit="turn", mininterval=2):
            for decision in turn:
                one.step(device, counts=decision >= WARM_UP)
    functions = {}
    for one in playing:
        functions |= alone(one)
    parts = timed(functions, rounds=decisions, seconds=0, device=device.type)
    return [row for one in playing for row in _rows(one, parts, device)]


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Python's garbage collector would look through the environments of all arms, in the midst of one arm's step."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def turn_error(values, turns) -> float:
    """Standard error of the mean of `values` (n,), each of one of m `turns` (n,) whose members go together.

    A machine that slows down slows all steps of a turn, so that turns are independent and steps are not. Linearised,
    as for a ratio estimate over clusters (Cochran 1977, chapter 6), with the factor m / (m − 1) for few of them; nan
    for a single turn.
    """
    values, (names, members) = np.asarray(values, dtype=float), np.unique(turns, return_inverse=True)
    if len(names) < 2:
        return math.nan
    sums = np.bincount(members, weights=values - values.mean())
    return float(np.sqrt(len(names) / (len(names) - 1) * np.sum(sums**2)) / len(values))


def _rows(one: _Playing, parts: dict[tuple[str, str], np.ndarray], device: torch.device) -> Iterator[dict]:
    times, planned = np.array(one.times), np.array(one.planned)
    found = {"step": times} | {part: times[planned == asked] for part, asked in PARTS.items()}
    shares = {part: len(values) / len(times) for part, values in found.items()}
    shares |= {"env": 1.0, "solve": shares["plan"]}
    found["env"], turns = np.array(one.env_times), (WARM_UP + np.arange(len(times))) // TURN
    of = {"step": turns, "env": turns} | {part: turns[planned == asked] for part, asked in PARTS.items()}
    if shares["between"] or isinstance(one.arm, DelayArm):
        found |= {part: parts[part, which] for part, which in _made_of(one.arm).items() if (part, which) in parts}
    for part, values in found.items():
        if len(values):
            yield {
                "arm": one.arm.name,
                "part": part,
                "batch": len(one.seeds),
                **summary(values),
                "p99_ms": float(np.quantile(values, 0.99)) if len(values) >= TAIL / 10 else math.nan,
                "p999_ms": float(np.quantile(values, 0.999)) if len(values) >= TAIL else math.nan,
                "max_ms": float(values.max()),
                "mean_ms": float(values.mean()),
                "mean_error_ms": turn_error(values, of[part]) if part in of else math.nan,
                "turns": len(np.unique(of[part])) if part in of else math.nan,
                "steps": len(values),
                "share": shares.get(part, shares["between"]),
                "steps_per_s": 1e3 / float(values.mean()),
                "calls_per_decision": one.calls / len(times) / len(one.seeds),
                "device": device.type,
                "threads": torch.get_num_threads(),
                "dtype": one.arm.planner.dtype if one.arm.planner else "float32",
            }


# ------------------------------------------------------------------------------------------------ parts by themselves


def _made_of(arm: Arm) -> dict[str, object]:
    """Part of a step without a plan -> which one: arms with the same corrector or kind of gate share it."""
    if arm.planner is None or isinstance(arm, DraftArm):  # a draft and its gate are one function
        return {}
    if isinstance(arm, DelayArm):  # and so is what acts at once
        return {"solve": arm.planner}
    beyond = arm.tail == "policy" and arm.execution_horizon > arm.planner.horizon
    found = {"encode": "whole", "predict": "beyond" if beyond else "within", "correct": arm.corrector, "gate": arm.gate}
    return {part: which for part, which in found.items() if which}


def alone(one: _Playing) -> dict[tuple[str, str], Callable[[], object]]:
    """Calls of each part of a step without a plan by itself, run as the controller runs: (part, which) -> function.

    `encode` the observation; `predict` the latent, the prior's action, the mismatch, and `beyond` the plan's end the
    prior's action at that latent too; `correct` the planned action; the `gate`. In the controller all of them are one
    function, and its weights may be in no cache behind a plan; here they are near.
    """
    if not (made_of := _made_of(one.arm)):
        return {}
    controller = one.controller
    if isinstance(one.arm, DelayArm):
        return {("solve", one.arm.planner): _solve(controller.planner, one.obs)}
    wm, corrector, gate = controller.wm, controller.corrector, controller.gate
    seen = controller.propose(one.obs)
    depth, history = torch.ones_like(seen.depth), None
    if length := getattr(corrector, "history_len", 0):
        current = token(seen.z, seen.z_pred, seen.a_plan, depth)
        history = appended(current.new_zeros(len(current), length, current.shape[1]), current)
    look = Look(seen.z, seen.z_pred, seen.mismatch, seen.a_plan, seen.a_policy, seen.action)
    calls = {
        "encode": (functools.partial(_encode, wm), (one.obs.to(wm.device),)),
        "predict": (
            functools.partial(_predict, wm, made_of["predict"] == "beyond"),
            (seen.z, seen.z_pred, seen.action),
        ),
        "correct": (functools.partial(_correct, wm, corrector), (*look, depth, history)),
        "gate": (functools.partial(_judge, wm, gate), look),
    }
    return {(part, which): _call(controller, *calls[part]) for part, which in made_of.items()}


def _solve(planner: MPPI, obs: Tensor) -> Callable[[], object]:
    """A call of the planner as a controller calls it, from where it is, with a start and the rows' random streams."""
    with torch.no_grad():
        z = planner.wm.encode(obs.to(planner.wm.device))
    start = z.new_zeros(len(z), planner.config.horizon, planner.wm.action_dim)
    streams = [torch.Generator().manual_seed(row) for row in range(len(z))]
    return torch.no_grad()(functools.partial(planner, z, start, streams))


def _call(controller: SpeculativeController, function: functools.partial, inputs: tuple) -> Callable[[], object]:
    ready = prepared(controller.planner.mode, function, range(len(inputs)))
    return torch.no_grad()(functools.partial(ready, *inputs))


def _encode(wm, obs):
    return (wm.encode(obs),)


def _predict(wm, beyond, z, z_pred, action):
    z_pred = wm.next(z_pred, action)
    planned = wm.policy(z_pred)[0] if beyond else action
    return z_pred, wm.policy(z)[0], total_variation(z, z_pred, wm.config.simnorm_dim), planned


def _correct(wm, corrector, z, z_pred, mismatch, a_plan, a_policy, corrected, depth, history):
    return (corrector(z, z_pred, a_plan, a_policy, depth, history),)


def _judge(wm, gate, *look):
    return gate(wm, Look(*look))
