"""Evaluating the arms: paired episodes of every way to control, recorded per episode and per depth.

    stage = Stage.of(Cell.parse("walker-walk-1m-1"), "paper")
    rows, depths, configurations = evaluate(stage, ["teacher", "open-loop-3"], episodes=50)

An arm is one way to control; its whole configuration is in the results' sidecars. All arms start from the same states.
Finished episodes are kept: asking for 50 where 20 exist runs 30, and a killed run goes on where it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lib import paths
from lib.arms import Arm, arm_name, make_arm, make_controller
from lib.checkpoints import load_world_model, size_of, teacher_key
from lib.config import Cell, ConfigError, PlannerConfig, as_dict, episode_seeds
from lib.correctors import load_corrector
from lib.results import (
    SETTINGS_MODULES,
    combine,
    file_hash,
    intact,
    module_key,
    read_sidecar,
    read_table,
    write_json,
    write_table,
)
from lib.tasks import make_env
from lib.world_model import WorldModel

BLOCK = 10  # episodes that run as one batch, and are saved together


# ------------------------------------------------------------------------------------------------------- episodes


def run_episodes(
    arm: Arm, controller, task: str, seeds: list[int], decisions: int, what: str = ""
) -> tuple[list, list]:
    """Run one episode per seed as a batch. Returns rows per episode, and rows per episode and depth."""
    controller.reset(len(seeds), [torch.Generator().manual_seed(s) for s in seeds])
    envs = [make_env(task, s) for s in seeds]
    obs = np.stack([env.reset(seed=s)[0] for env, s in zip(envs, seeds, strict=True)])
    alive, records = list(range(len(seeds))), []
    for _ in tqdm(range(decisions), desc=what, unit="decision", disable=not what, mininterval=2):
        actions, info = controller.act(torch.from_numpy(obs))
        info = {k: v.cpu().numpy() for k, v in info.items()}
        actions, kept_obs, still = actions.cpu().numpy(), [], []
        for row, i in enumerate(alive):
            o, reward, terminated, truncated, _ = envs[i].step(actions[row])
            records.append({"episode": i, "reward": reward} | {k: v[row] for k, v in info.items()})
            if not (terminated or truncated):
                kept_obs.append(o), still.append(row)
        if len(still) < len(alive):
            controller.keep(still)
        obs, alive = np.array(kept_obs), [alive[row] for row in still]
        if not alive:
            break
    return summarise_records(arm, records, seeds)


def summarise_records(arm: Arm, records: list[dict], seeds: list[int]) -> tuple[list, list]:
    """Per-episode and per-depth rows from one record per decision."""
    episodes, depths = [], []
    evaluations = arm.planner.model_evaluations if arm.planner else 0
    refining = arm.refiner.model_evaluations if arm.refiner else 0
    for i, seed in enumerate(seeds):
        mine = [r for r in records if r["episode"] == i]
        calls = sum(int(r["planner_called"]) for r in mine)
        refined = sum(int(r["refined"]) for r in mine)
        # A fallback of an arm with a refiner has tried that first, in vain.
        tried = refined + sum(int(r["fallback"]) for r in mine) if arm.refiner else 0
        corrected = [r for r in mine if arm.corrector and not (r["planner_called"] or r["refined"])]
        episodes.append(
            {
                "arm": arm.name,
                "execution_horizon": arm.execution_horizon,
                "episode_seed": seed,
                "return": float(sum(r["reward"] for r in mine)),
                "length": len(mine),
                "planner_calls": calls,
                "model_evaluations": calls * evaluations + tried * refining,
                "fallbacks": sum(int(r["fallback"]) for r in mine),
                "refinements": refined,
                "corrector_calls": len(corrected),
                "delta_abs": float(np.mean([r["delta_abs"] for r in corrected])) if corrected else None,
            }
        )
        for depth in sorted({int(r["depth"]) for r in mine}):
            at = [r for r in mine if r["depth"] == depth]
            drift = [float(r["mismatch"]) for r in at if np.isfinite(r["mismatch"])]
            depths.append(
                {
                    "arm": arm.name,
                    "episode_seed": seed,
                    "depth": depth,
                    "mismatch": float(np.mean(drift)) if drift else None,
                    "delta_abs": float(np.mean([r["delta_abs"] for r in at])),
                    "reward": float(np.mean([r["reward"] for r in at])),
                    "count": len(at),
                }
            )
    return episodes, depths


# ---------------------------------------------------------------------------------------- recorded and resumable


def arm_key(arm: Arm, cell: Cell, teacher: str, corrector_file: Path | None, decisions: int) -> str:
    """Everything that one episode of an arm depends on, beside its seed."""
    code = module_key("lib.evaluation", without=SETTINGS_MODULES)
    settings = as_dict(arm)
    for planner in filter(None, (settings["planner"], settings["refiner"])):
        planner.pop("mode")  # how a plan is computed, not which plan
    weights = [teacher_key(teacher), file_hash(corrector_file) if arm.corrector else None]
    return combine(code, settings, str(cell), weights, decisions)


@dataclass
class Stage:
    """Where arms are played: a teacher's cell, its world model and correctors (by architecture, with their files)."""

    cell: Cell
    profile: str
    teacher: str
    wm: WorldModel
    corrector_files: dict[str, Path]
    decisions: int = 500

    @classmethod
    def of(cls, cell: Cell, profile: str, teacher="", corrector_files=None, decisions=500, device="cpu") -> Stage:
        """With the teacher's weights loaded; empty means the shipped teacher of the cell."""
        teacher = teacher or str(cell)
        wm = load_world_model(teacher, task=cell.task, device=device)
        return cls(cell, profile, teacher, wm, corrector_files or {}, decisions)

    @cached_property
    def correctors(self) -> dict[str, nn.Module]:
        key = teacher_key(self.teacher)
        return {arch: load_corrector(f, key).to(self.wm.device) for arch, f in self.corrector_files.items()}

    def play(self, arm: Arm, seeds: list[int]) -> tuple[list[dict], list[dict], str]:
        """Rows per episode and per depth of an arm, for these seeds in order, and the arm's key.

        Episodes recorded under the same key, in the cache or in the profile's committed results, are not run again.
        """
        if arm.corrector and arm.corrector not in self.corrector_files:
            raise ConfigError(
                f"arm {arm.name} needs a {arm.corrector} corrector; train it with 03_train_corrector first."
            )
        key = arm_key(arm, self.cell, self.teacher, self.corrector_files.get(arm.corrector), self.decisions)
        done, depths = _recorded(self.cell, self.profile, arm.name, key)
        missing = [s for s in seeds if s not in {r["episode_seed"] for r in done}]
        controller = make_controller(arm, self.wm, self.correctors) if missing else None
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            what = f"{self.cell} {arm.name} {len(seeds) - len(missing) + start + len(block)}/{len(seeds)}"
            new, new_depths = run_episodes(arm, controller, self.cell.task, block, self.decisions, what)
            done, depths = done + new, depths + new_depths
            _record(key, done, depths)
        wanted = set(seeds)
        done = sorted((r for r in done if r["episode_seed"] in wanted), key=lambda r: r["episode_seed"])
        return done, [r for r in depths if r["episode_seed"] in wanted], key


def evaluate(
    stage: Stage,
    arms: list[str],
    episodes: int,
    planner: PlannerConfig | None = None,
    calibration: dict[str, dict] | None = None,
) -> tuple[list[dict], list[dict], dict[str, dict]]:
    """Rows per episode, rows per depth, and arm → configuration, for `episodes` episodes of every arm.

    `planner` is the teacher's, the standard one unless given; `calibration` has the gates' numbers by arm. Start states
    that the paper reports are played under the paper profile alone: whoever tunes on quick sees others.
    """
    standard = planner or PlannerConfig.standard(stage.wm.action_dim)
    calibration = calibration or {}
    made = [make_arm(name, standard, calibration.get(arm_name(name))) for name in arms]
    seeds = episode_seeds("report" if stage.profile == "paper" else "trial", episodes)
    all_episodes, all_depths, configurations = [], [], {}
    for arm in dict.fromkeys(made):  # an arm that is named twice runs once
        rows, depths, key = stage.play(arm, seeds)
        columns = {
            "task": stage.cell.task,
            "size": size_of(stage.wm.config) if stage.cell.name else stage.cell.size,
            "teacher_seed": stage.cell.seed,
            "corrector_seed": 0 if arm.corrector else None,
        }
        all_episodes += [columns | r for r in rows]
        all_depths += depths
        configurations[arm.name] = as_dict(arm) | {"key": key, "decisions": stage.decisions}
    return all_episodes, all_depths, configurations


def _store(key: str) -> Path:
    return paths.CACHE / "rollouts" / f"{key[:24]}.json"


def _record(key: str, episodes: list[dict], depths: list[dict]) -> None:
    write_json(_store(key), {"key": key, "episodes": episodes, "depths": depths})


def _recorded(cell: Cell, profile: str, arm: str, key: str) -> tuple[list[dict], list[dict]]:
    """Episodes already recorded under this key, from the cache, else from the profile's result files."""
    if _store(key).is_file():
        stored = json.loads(_store(key).read_text(encoding="utf-8"))
        return stored["episodes"], stored["depths"]
    found = []
    for name in (f"{cell}.csv", f"{cell}-depth.csv"):
        file = paths.results(profile) / "horizon" / name
        arms = read_sidecar(file).get("arms", {}) if intact(file) else {}  # not when edited by hand
        if arms.get(arm, {}).get("key") != key:
            return [], []
        table = read_table(file)
        table = table[table["arm"] == arm].drop(
            columns=["task", "size", "teacher_seed", "corrector_seed"], errors="ignore"
        )
        found.append(table.astype(object).where(table.notna(), None).to_dict("records"))
    return found[0], found[1]


def write_results(stage: Stage, episodes: list, depths: list, configurations: dict, **provenance) -> None:
    """Write a cell's episode and depth tables under `data/results/<profile>/horizon/`.

    Their sidecars keep the teacher, the task, and the arms' configurations.
    """
    folder = paths.results(stage.profile) / "horizon"
    about = {"teacher": stage.teacher, "task": stage.cell.task, "arms": configurations} | provenance
    write_table(folder / f"{stage.cell}-depth.csv", depths, **about)
    write_table(folder / f"{stage.cell}.csv", episodes, **about)


def evaluated_cells(profile: str) -> list[str]:
    """Names of the cells that have been evaluated under a profile; `ConfigError` when there are none."""
    tables = (paths.results(profile) / "horizon").glob("*.csv")
    cells = sorted(p.stem for p in tables if p.stem != "summary" and not p.stem.endswith(("-depth", "-action-error")))
    if not cells:
        raise ConfigError(f"profile {profile} has no evaluated cell; run make all PROFILE={profile} first.")
    return cells
