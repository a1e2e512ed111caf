"""Evaluating the arms: paired episodes of every way to control, recorded per episode and per depth.

    rows, depths, configurations = evaluate(cell, ["teacher", "open-loop-3"], episodes=50, profile="paper")

An arm is one way to control; its whole configuration is in the results' sidecars. All arms start from the same states.
Finished episodes are kept: asking for 50 where 20 exist runs 30, and a killed run goes on where it was.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lib import paths
from lib.arms import Arm, make_arm, make_controller
from lib.checkpoints import load_world_model, teacher_key
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

BLOCK = 10  # episodes that run as one batch, and are saved together


# ------------------------------------------------------------------------------------------------------- episodes


def run_episodes(
    arm: Arm, controller, task: str, seeds: list[int], decisions: int, what: str = ""
) -> tuple[list, list]:
    """Run one episode per seed as a batch. Returns rows per episode, and rows per episode and depth."""
    planner = getattr(controller, "planner", None)
    if planner is not None:
        planner.reset_streams()  # not from a seed: an episode must not depend on which others share its block
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
    for i, seed in enumerate(seeds):
        mine = [r for r in records if r["episode"] == i]
        calls = sum(int(r["planner_called"]) for r in mine)
        corrected = [r for r in mine if arm.corrector and not r["planner_called"]]
        episodes.append(
            {
                "arm": arm.name,
                "execution_horizon": arm.execution_horizon,
                "episode_seed": seed,
                "return": float(sum(r["reward"] for r in mine)),
                "length": len(mine),
                "planner_calls": calls,
                "model_evaluations": calls * evaluations,
                "fallbacks": sum(int(r["fallback"]) for r in mine),
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
    if arm.planner:
        settings["planner"].pop("mode")  # how a plan is computed, not which plan
    weights = [teacher_key(teacher), file_hash(corrector_file) if arm.corrector else None]
    return combine(code, settings, str(cell), weights, decisions)


def evaluate(
    cell: Cell,
    arms: list[str],
    episodes: int,
    profile: str,
    teacher: str = "",
    corrector_files: dict[str, Path] | None = None,
    planner: PlannerConfig | None = None,
    decisions: int = 500,
    device: str = "cpu",
) -> tuple[list[dict], list[dict], dict[str, dict]]:
    """Rows per episode, rows per depth, and arm → configuration, for `episodes` episodes of every arm.

    Start states that the paper reports are played under the paper profile alone: whoever tunes on quick sees others.

    Episodes recorded under the same key, in the cache or in the profile's committed results, are not run again.
    """
    teacher = teacher or str(cell)
    corrector_files = corrector_files or {}
    wm = load_world_model(teacher, task=cell.task, device=device)
    standard = planner or PlannerConfig.standard(wm.action_dim)
    chosen = list(dict.fromkeys(make_arm(name, standard) for name in arms))  # an arm that is named twice runs once
    for arm in chosen:
        if arm.corrector and arm.corrector not in corrector_files:
            raise ConfigError(
                f"arm {arm.name} needs a {arm.corrector} corrector; train it with 03_train_corrector first."
            )
    correctors = {arch: load_corrector(f, teacher_key(teacher)).to(wm.device) for arch, f in corrector_files.items()}
    seeds = episode_seeds("report" if profile == "paper" else "trial", episodes)
    all_episodes, all_depths, configurations = [], [], {}
    for arm in chosen:
        key = arm_key(arm, cell, teacher, corrector_files.get(arm.corrector), decisions)
        done, depths = _recorded(cell, profile, arm.name, key)
        missing = [s for s in seeds if s not in {r["episode_seed"] for r in done}]
        controller = make_controller(arm, wm, correctors)
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            what = f"{cell} {arm.name} {len(seeds) - len(missing) + start + len(block)}/{len(seeds)}"
            new, new_depths = run_episodes(arm, controller, cell.task, block, decisions, what)
            done, depths = done + new, depths + new_depths
            _record(key, done, depths)
        columns = {
            "task": cell.task,
            "size": cell.size,
            "teacher_seed": cell.seed,
            "corrector_seed": 0 if arm.corrector else None,
        }
        wanted = set(seeds)
        all_episodes += [
            columns | r for r in sorted(done, key=lambda r: r["episode_seed"]) if r["episode_seed"] in wanted
        ]
        all_depths += [r for r in depths if r["episode_seed"] in wanted]
        configurations[arm.name] = as_dict(arm) | {"key": key, "decisions": decisions}
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


def write_results(cell: Cell, profile: str, episodes: list, depths: list, configurations: dict, **provenance) -> None:
    """Write a cell's episode and depth tables under `data/results/<profile>/horizon/`; their sidecars keep the arms."""
    folder = paths.results(profile) / "horizon"
    write_table(folder / f"{cell}-depth.csv", depths, arms=configurations, **provenance)
    write_table(folder / f"{cell}.csv", episodes, arms=configurations, **provenance)


def evaluated_cells(profile: str) -> list[str]:
    """Names of the cells that have been evaluated under a profile; `ConfigError` when there are none."""
    tables = (paths.results(profile) / "horizon").glob("*.csv")
    cells = sorted(p.stem for p in tables if p.stem != "summary" and not p.stem.endswith("-depth"))
    if not cells:
        raise ConfigError(f"profile {profile} has no evaluated cell; run make all PROFILE={profile} first.")
    return cells
