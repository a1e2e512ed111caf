"""What weights that somebody else trained return on every task that they know.

    python lib/study/many_tasks.py --profile paper

Writes to `data/results/<profile>/many_tasks/`, for the profile's `many_tasks`, `returns.csv`, a row per episode, and
`summary.csv`, a row per task and one for all. A task whose episodes were played before is not played again. The weights
are fetched by name, and have to be those of the profile's checksum.
"""

from __future__ import annotations

import argparse
import dataclasses

import pandas as pd
from tqdm import tqdm

from lib.config import ConfigError
from lib.records import paths
from lib.records.keys import file_hash
from lib.records.store import write_table
from lib.study.cards import measured_card
from lib.study.cells import Cell, Settings
from lib.study.profiles import PROFILES, ManyTasks, Profile
from lib.weights.native import teacher_path
from lib.weights.official import TASK_SETS

COLUMNS = ["teacher", "task", "samples", "iterations", "episode_seed", "return"]


def returns(profile: Profile, study: ManyTasks) -> pd.DataFrame:
    """A row per task and episode, in `COLUMNS`: whole episodes of the study's planner at every step, on the seeds of
    cards.

    Raises `ConfigError` for weights of another checksum, `CheckpointError` for weights that do not know such a task.
    """
    if (found := file_hash(teacher_path(study.teacher))) != study.sha256:
        raise ConfigError(f"{study.teacher} has the sha256 {found}, and profiles.toml says {study.sha256}.")
    rows, profile = [], dataclasses.replace(profile, planner=study.planner)
    for task in tqdm(study.tasks or TASK_SETS[study.count], desc=study.teacher, unit="task"):
        cell = Cell.of_teacher(study.teacher, task, seed=1)
        card = measured_card(Settings(profile, (cell,), study.teacher, "cpu"), cell, study.teacher, study.episodes)
        played = zip(card["episode_seeds"], card["returns"], strict=True)
        budget = study.planner.samples, study.planner.iterations
        rows += [(study.teacher, task, *budget, seed, result) for seed, result in played]
    return pd.DataFrame(rows, columns=COLUMNS)


def summary(returns: pd.DataFrame) -> pd.DataFrame:
    """Mean, lowest and highest return of each task, and of all: the mean of the tasks' means, and their extremes."""
    tasks = returns.groupby("task", sort=False)["return"].agg(["count", "mean", "min", "max"]).reset_index()
    whole = {"task": "all", "count": len(returns), "mean": tasks["mean"].mean()}
    whole |= {"min": tasks["mean"].min(), "max": tasks["mean"].max()}
    table = pd.concat([tasks, pd.DataFrame([whole])], ignore_index=True)
    return table.rename(columns={"count": "episodes"} | {name: f"return_{name}" for name in ("mean", "min", "max")})


def main() -> None:
    parser = argparse.ArgumentParser(description="Play every task of weights from elsewhere.")
    parser.add_argument("--profile", default="paper", choices=[name for name, p in PROFILES.items() if p.many_tasks])
    profile = PROFILES[parser.parse_args().profile]
    study, folder = profile.many_tasks, paths.results(profile.name) / "many_tasks"
    table, about = returns(profile, study), {"teacher": study.teacher, "sha256": study.sha256}
    print(write_table(folder / "summary.csv", summary(table), **about))
    print(write_table(folder / "returns.csv", table, **about))


if __name__ == "__main__":
    main()
