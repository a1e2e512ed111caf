"""How far an arm's actions are from the teacher's, on states that the arm itself visits.

    stage = Stage.of(Cell.parse("walker-walk-1m-1"), "paper", corrector_files={"two_tower": file})
    write_action_errors(stage, ["teacher", "policy", "64x2+two-tower-6"], planner, calibration, states=1000)

The arm plays episodes that no result reports; decisions are drawn from all of them, those that planned (depth 0) too;
the teacher plans at each drawn state, and its first action is compared with the one that the arm executed.

**What the errors can be.** The policy prior has no plan to start from, so the teacher starts cold for every arm: one
solve without a warm start. That solve is noisy. An arm that executed the mean of such solves would still have an error
of `teacher_floor_mse`: half the mean squared difference of two of them, measured at every fifth state. An arm whose own
action is such a solve, drawn independently, has twice the floor; the teacher has about that, and what its warm start
changes on top. So errors compare arms with each other and with the teacher's row, not with zero.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from lib.config import ConfigError, PlannerConfig, as_dict
from lib.environments import make_env
from lib.planner import MPPI
from lib.protocols import Controller
from lib.records import paths
from lib.records.keys import key_of, rest_of
from lib.records.ledger import name_of, same
from lib.records.seeds import episode_seeds
from lib.records.store import cached, intact, read_sidecar, read_table, write_table
from lib.rollout import rollout
from lib.study.arms import Arm, arm_name, make_arm, make_controller
from lib.study.evaluate import Stage, arm_key, arm_roots

PER_EPISODE = 100  # states drawn from each episode, on average
FIRST = 500_000  # of the trial seeds, of which the quick and smoke profiles report the first few
AGAIN = 5  # one in so many states is solved twice
CHUNK = 50  # states that are solved in one batch
COLUMNS = ["arm", "episode_seed", "decision", "depth", "action_mse", "delta_abs", "teacher_floor_mse"]


def write_action_errors(
    stage: Stage, arms: list[str], planner: PlannerConfig, calibration: dict[str, dict], states: int = 1000
) -> Path:
    """Write `horizon/<cell>-action-error.csv`: a row per arm and state, in `COLUMNS`; returns the file.

    `planner` is the teacher's; `calibration` has the gates' numbers by arm. `action_mse` and `teacher_floor_mse` are
    means over the action's dimensions, in squares of [−1, 1] actions; the latter is empty where the teacher was not
    asked twice. There are fewer than `states` rows of an arm whose episodes end early. Arms that were measured before
    with the same weights, settings and code are not measured again, so that a killed run goes on at the next arm.

    Raises `ConfigError` for fewer states than one, a planner that executes random elites, and an arm whose corrector
    is lacking.
    """
    if states < 1:
        raise ConfigError(f"states={states} must be at least 1.")
    if planner.action_selection != "mean":
        raise ConfigError('the teacher\'s action is the weighted mean of the elites; give a planner with "mean".')
    file = paths.results(stage.profile) / "horizon" / f"{stage.cell}-action-error.csv"
    teacher, tables, keys = MPPI(stage.wm, planner), [], {}
    for name in dict.fromkeys(map(arm_name, arms)):
        arm = make_arm(name, planner, calibration.get(name))
        keys[name] = key = error_key(stage, arm, planner, states)
        known = _committed(file, name, key)
        if known is None:
            store = paths.CACHE / "action-errors" / f"{name_of(key)}.csv"

            def make(path: Path, arm=arm) -> None:
                measure(stage, arm, teacher, states).to_csv(path, index=False)

            known = read_table(cached(store, key, make, f"action errors of {stage.cell} {name}"))
        tables.append(known)
    table = pd.concat(tables) if tables else pd.DataFrame(columns=COLUMNS)
    return write_table(file, table, teacher=stage.teacher, task=stage.cell.task, keys=keys)


def measure(stage: Stage, arm: Arm, teacher: MPPI, states: int) -> pd.DataFrame:
    """The rows of one arm, by episode and decision."""
    name = f"{stage.cell} {arm.name}"
    seeds = episode_seeds("trial", math.ceil(states / min(PER_EPISODE, stage.decisions)), first=FIRST)
    controller = make_controller(arm, stage.wm, stage.correctors)
    envs = partial(make_env, stage.cell.task)
    rows, obs, executed = visit(controller, envs, seeds, stage.decisions, states, f"{name} plays")
    label = teacher_actions(teacher, rows, obs, 0, f"{name} against the teacher")
    again = teacher_actions(teacher, rows[::AGAIN], obs[::AGAIN], 1)
    rows = rows.assign(arm=arm.name, action_mse=(torch.from_numpy(executed) - label).square().mean(-1).numpy())
    floor = 0.5 * (label[::AGAIN] - again).square().mean(-1)
    rows["teacher_floor_mse"] = pd.Series(floor.numpy(), index=rows.index[::AGAIN])
    return rows[COLUMNS]


def visit(
    controller: Controller, envs, seeds: list[int], decisions: int, states: int, what: str = ""
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Play one episode per seed and draw `states` of all decisions, the same ones for every arm unless episodes end.

    Returns a row per drawn decision (episode_seed, decision, depth, delta_abs), and what the controller saw there,
    obs (n, obs_dim), and executed, actions (n, A).
    """
    rank = np.random.default_rng(0).permutation(len(seeds) * decisions).reshape(len(seeds), decisions)
    rows, obs, actions = [], [], []
    for decision, step in enumerate(rollout(controller, envs, seeds, decisions, what)):
        for row, i in enumerate(step.rows):
            about = {"rank": rank[i, decision], "episode_seed": seeds[i], "decision": decision}
            rows.append(about | {name: step.info[name][row].item() for name in ("depth", "delta_abs")})
        obs.append(step.obs)
        actions.append(step.actions)
    drawn = pd.DataFrame(rows).nsmallest(states, "rank").sort_values(["episode_seed", "decision"])
    kept = drawn.index.to_numpy()
    return drawn.drop(columns="rank").reset_index(drop=True), np.concatenate(obs)[kept], np.concatenate(actions)[kept]


@torch.no_grad()
def teacher_actions(teacher: MPPI, rows: pd.DataFrame, obs: np.ndarray, solve: int, what: str = "") -> Tensor:
    """The teacher's first actions (n, A) at obs (n, obs_dim), planned without a warm start.

    The number of the `solve` picks independent random streams: a state's own, of its episode and decision, and that of
    the Q heads, which a batch has in common.
    """
    drawn = zip(rows["episode_seed"], rows["decision"], strict=True)
    streams = [stream(seed, decision, solve) for seed, decision in drawn]
    teacher.reset_streams(solve)
    found = []
    with tqdm(total=len(obs), desc=what, unit="state", disable=not what, mininterval=2) as bar:
        for start in range(0, len(obs), CHUNK):
            z = teacher.wm.encode(torch.from_numpy(obs[start : start + CHUNK]).to(teacher.wm.device))
            found.append(teacher(z, None, streams[start : start + CHUNK]).actions[:, 0].cpu())
            bar.update(len(z))
    return torch.cat(found)


def stream(seed: int, decision: int, solve: int) -> torch.Generator:
    """The random stream of one solve. Hashed: torch takes the low 32 bits of a seed, and arms plan with seed itself."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, decision, solve]).generate_state(1)[0]))


def error_key(stage: Stage, arm: Arm, planner: PlannerConfig, states: int) -> str:
    """All that an arm's rows depend on; `planner` is the teacher's."""
    labeller = as_dict(dataclasses.replace(planner, mode="auto"))
    return key_of((*arm_roots(arm), measure), rest_of(_arm_key(stage, arm)), labeller, states)


def _arm_key(stage: Stage, arm: Arm) -> str:
    """The key of the arm's episodes."""
    if arm.corrector and arm.corrector not in stage.corrector_files:
        raise ConfigError(f"arm {arm.name} needs a {arm.corrector} corrector; train it with 03_train_corrector first.")
    return arm_key(arm, stage.cell, stage.teacher, stage.corrector_files.get(arm.corrector), stage.decisions)


def _committed(file: Path, name: str, key: str) -> pd.DataFrame | None:
    """The rows of an arm in the results, if they were measured under this key."""
    if not intact(file) or not same(read_sidecar(file).get("keys", {}).get(name), key):
        return None
    table = read_table(file)
    return table[table["arm"] == name]
