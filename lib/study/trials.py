"""Candidates played on calibration episodes, which are never reported.

    rows = try_out(stage, names, planner, calibration, episodes=20)  # cell by cell, in notebook 04

`lib.study.selection` picks one of them over the cells.
"""

from __future__ import annotations

import pandas as pd

from lib.config import PlannerConfig
from lib.records.seeds import episode_seeds
from lib.study.arms import arm_name, make_arm
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
        played, _ = stage.play(make_arm(name, standard, calibration.get(name)), seeds)
        rows += [{"arm": name} | row for row in played.episodes]
    return pd.DataFrame(rows, columns=COLUMNS)
