"""Evaluating the arms: paired episodes of every way to control, recorded per episode and per depth.

    python -m lib.evaluation verify --profile paper      # re-runs a seeded sample of committed episodes and compares

An arm is one way to control (its whole configuration is in `arms.json` beside the results). All arms start from the
same states. Finished episodes are kept: asking for 50 where 20 exist runs 30, and a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lib import paths
from lib.arms import Arm, make_arm, make_controller
from lib.checkpoints import load_world_model, teacher_key
from lib.config import Cell, ConfigError, PlannerConfig, as_dict, episode_seeds
from lib.correctors import load_corrector
from lib.results import SETTINGS_MODULES, combine, file_hash, module_key, read_table, write_json, write_table
from lib.tasks import make_env

BLOCK = 10  # episodes that run as one batch, and are saved together


# ------------------------------------------------------------------------------------------------------- episodes


def run_episodes(
    arm: Arm, controller, task: str, seeds: list[int], decisions: int, what: str = ""
) -> tuple[list, list]:
    """Run one episode per seed as a batch. Returns rows per episode, and rows per episode and depth."""
    planner = getattr(controller, "planner", None)
    if planner is not None:
        planner.reset_streams(seeds[0])
    controller.reset(len(seeds), [torch.Generator().manual_seed(s) for s in seeds])
    envs = [make_env(task, s) for s in seeds]
    obs = np.stack([env.reset(seed=s)[0] for env, s in zip(envs, seeds, strict=True)])
    alive, records = list(range(len(seeds))), []
    for _ in tqdm(range(decisions), desc=what, unit="decision", disable=not what, mininterval=2):
        actions, info = controller.act(torch.from_numpy(obs))
        info = {k: v.cpu().numpy() for k, v in info.items()}
        actions, kept_obs, still = actions.cpu().numpy()[:, : controller.wm.native_action_dim], [], []
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
    """Rows per episode, rows per depth, and arm → configuration, for `episodes` report episodes of every arm.

    Episodes recorded under the same key, in the cache or in the profile's committed results, are not run again.
    """
    teacher = teacher or str(cell)
    corrector_files = corrector_files or {}
    wm = load_world_model(teacher, task=cell.task, device=device)
    standard = planner or PlannerConfig.standard(wm.action_dim)
    chosen = [make_arm(name, standard) for name in arms]
    for arm in chosen:
        if arm.corrector and arm.corrector not in corrector_files:
            raise ConfigError(
                f"arm {arm.name} needs a {arm.corrector} corrector; train it with 03_train_corrector first."
            )
    correctors = {arch: load_corrector(f, teacher_key(teacher)).to(device) for arch, f in corrector_files.items()}
    seeds = episode_seeds("report", episodes)
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
    folder = paths.results(profile) / "horizon"
    arms_file = folder / "arms.json"
    if not arms_file.is_file() or json.loads(arms_file.read_text()).get(str(cell), {}).get(arm, {}).get("key") != key:
        return [], []
    found = []
    for name in (f"{cell}.csv", f"{cell}-depth.csv"):
        table = read_table(folder / name)
        table = table[table["arm"] == arm].drop(
            columns=["task", "size", "teacher_seed", "corrector_seed"], errors="ignore"
        )
        found.append(table.astype(object).where(table.notna(), None).to_dict("records"))
    return found[0], found[1]


def write_results(cell: Cell, profile: str, episodes: list, depths: list, configurations: dict, **provenance) -> None:
    """Write a cell's episode and depth tables and its part of `arms.json` under `data/results/<profile>/horizon/`."""
    folder = paths.results(profile) / "horizon"
    arms_file = folder / "arms.json"
    known = json.loads(arms_file.read_text(encoding="utf-8")) if arms_file.is_file() else {}
    write_table(folder / f"{cell}-depth.csv", depths, **provenance)
    write_table(folder / f"{cell}.csv", episodes, **provenance)
    write_json(arms_file, dict(sorted((known | {str(cell): configurations}).items())))


# --------------------------------------------------------------------------------------------------------- verify


def verify(profile: str, sample: int = 1, seed: int = 0) -> list[str]:
    """Re-run a seeded sample of the committed episodes of every arm that plans at most every other step (the cheap
    ones) and compare. Floating point differs between machines and episodes are chaotic, so a return must lie within
    four standard deviations of the arm's committed mean, not be equal. Returns a sentence per arm that does not hold.
    """
    folder, wrong = paths.results(profile) / "horizon", []
    arms_file = folder / "arms.json"
    if not arms_file.is_file():
        raise ConfigError(f"{arms_file} does not exist; run make all PROFILE={profile} first.")
    random = np.random.default_rng(seed)
    for name, arms in json.loads(arms_file.read_text(encoding="utf-8")).items():
        cell, table = Cell.parse(name), read_table(folder / f"{name}.csv")
        wm = load_world_model(name, task=cell.task)
        for arm_name, settings in arms.items():
            budget = settings["planner"] and PlannerConfig(**settings["planner"])
            arm = Arm(arm_name, budget, settings["execution_horizon"], settings["corrector"], settings["tail"])
            if arm.planner and arm.execution_horizon == 1:
                continue
            committed = table[table["arm"] == arm_name]
            seeds = [
                int(s)
                for s in random.choice(committed["episode_seed"], size=min(sample, len(committed)), replace=False)
            ]
            corrector = folder.parent / "corrector" / f"{name}-{arm.corrector}.safetensors"
            correctors = {arm.corrector: load_corrector(corrector, teacher_key(name))} if arm.corrector else {}
            rows, _ = run_episodes(
                arm,
                make_controller(arm, wm, correctors),
                cell.task,
                seeds,
                settings["decisions"],
                f"verify {name} {arm_name}",
            )
            mean, spread = committed["return"].mean(), committed["return"].std(ddof=1) if len(committed) > 1 else 0.0
            for row in rows:
                before = committed.set_index("episode_seed").loc[row["episode_seed"], "return"]
                note = (
                    f"{name} {arm_name}, episode {row['episode_seed']}: {row['return']:.1f} now, {before:.1f} committed"
                )
                holds = abs(row["return"] - mean) <= max(4 * spread, 0.02 * abs(mean), 1.0)
                print(f"{'ok   ' if holds else 'WRONG'} {note}")
                wrong += [] if holds else [note]
    return wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.evaluation", description="Check committed episodes.")
    parser.add_argument("action", choices=("verify",))
    parser.add_argument("--profile", default="paper")
    given = parser.parse_args(arguments)
    try:
        wrong = verify(given.profile)
    except ConfigError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
