"""Candidates played on calibration episodes, which are never reported.

    rows = try_out(stage, names, planner, calibration, episodes=20)  # cell by cell, in notebook 04

`lib.study.selection` picks one of them over the cells.
"""

from __future__ import annotations

import pandas as pd

from lib.config import PlannerConfig
from lib.records import paths
from lib.records.ledger import same
from lib.records.seeds import episode_seeds
from lib.records.store import intact, read_sidecar, read_table
from lib.study.arms import Arm, arm_name, make_arm
from lib.study.evaluate import Stage

COLUMNS = ["arm", "episode_seed", "return", "planner_calls", "model_evaluations"]


def try_out(
    stage: Stage, names: list[str], standard: PlannerConfig, calibration: dict[str, dict], episodes: int
) -> pd.DataFrame:
    """A row per episode of the teacher and of every named arm, in `COLUMNS`; empty without names or episodes.

    All start from the same states; the ladder's thresholds are calibrated on the first of them. Episodes that were
    played before are not played again. Arguments are those of `lib.study.evaluate.evaluate`.
    """
    seeds, rows = episode_seeds("calibrate", episodes, stage.cell.seed), []
    for name in ["teacher", *map(arm_name, names)] if names and episodes else []:
        arm = make_arm(name, standard, calibration.get(name))
        if len(kept := _kept(stage, arm, seeds)) == len(seeds):
            rows += kept
            continue
        played, _ = stage.play(arm, seeds)
        rows += [{"arm": name} | row for row in played.episodes]
    return pd.DataFrame(rows, columns=COLUMNS)


def _kept(stage: Stage, arm: Arm, seeds: list[int]) -> list[dict]:
    """The rows of an arm's episodes in the cell's table of candidates, where the evaluation that was written right
    after it has the arm under today's key."""
    table = paths.results(stage.profile) / "corrector" / f"{stage.cell}-candidates.csv"
    after = paths.results(stage.profile) / "horizon" / f"{stage.cell}.csv"
    if not (intact(table) and intact(after)):
        return []
    if not same(read_sidecar(after).get("arms", {}).get(arm.name, {}).get("key"), stage.key(arm)):
        return []
    rows = read_table(table)
    return rows[(rows["arm"] == arm.name) & rows["episode_seed"].isin(seeds)].to_dict("records")
