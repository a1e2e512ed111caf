"""One configuration of the method for all cells, picked on episodes that are not reported.

    rows = try_out(stage, names, planner, calibration, episodes=5)  # cell by cell, in notebook 04
    table = pick({"walker-walk-1m-1": pd.DataFrame(rows), ...})  # over the cells, in paper/summary.py

The candidates and the teacher start from the same states, those that thresholds are calibrated on as well.
"""

from __future__ import annotations

import pandas as pd

from lib.arms import arm_name, make_arm
from lib.calibration import WANTED
from lib.config import ConfigError, PlannerConfig
from lib.evaluation import Stage
from lib.profiles import episode_seeds

COLUMNS = ["arm", "episode_seed", "return", "planner_calls", "model_evaluations"]


def try_out(
    stage: Stage, names: list[str], standard: PlannerConfig, calibration: dict[str, dict], episodes: int
) -> pd.DataFrame:
    """A row per episode of the teacher and of every named arm, in `COLUMNS`; empty without names.

    Episodes that were played before are not played again. Arguments are those of `lib.evaluation.evaluate`.
    """
    seeds, rows = episode_seeds("calibrate", episodes, stage.cell.seed), []
    for name in ["teacher", *map(arm_name, names)] if names else []:
        played, _ = stage.play(make_arm(name, standard, calibration.get(name)), seeds)
        rows += [{"arm": name} | row for row in played.episodes]
    return pd.DataFrame(rows, columns=COLUMNS)


def pick(cells: dict[str, pd.DataFrame], wanted: float = WANTED, fixed: str = "") -> pd.DataFrame:
    """One row per cell and candidate that every cell has: what it keeps and spends, as parts of the teacher's, whether
    the rule picks it over these cells, and whether it is `chosen`: the `fixed` one, else the one that is `picked`.

    Picked is, of the arms that keep `wanted` of the teacher's mean return on every cell, the one with the fewest model
    evaluations on average over the cells; where there is none, the one that keeps most on its worst cell.
    Columns cell, arm, episodes, kept, calls_kept, evaluations_kept, wanted, picked, chosen. Raises `ConfigError` where
    there is no candidate, or the fixed one is none.
    """
    parts = []
    for cell, rows in cells.items():
        means = rows.groupby("arm", sort=False)[COLUMNS[2:]].mean()
        shares = (means / means.loc["teacher"]).drop("teacher")
        shares.columns = ["kept", "calls_kept", "evaluations_kept"]
        count = rows.groupby("arm")["episode_seed"].count()
        parts.append(shares.assign(cell=cell, episodes=count).reset_index())
    table = pd.concat(parts) if parts else pd.DataFrame(columns=["arm", "cell"])
    table = table[table.groupby("arm")["cell"].transform("nunique") == len(cells)]
    if table.empty:
        raise ConfigError("no arm was tried out on the calibration episodes of every cell; name candidates.")
    worst, spent = (table.groupby("arm", sort=False)[column] for column in ("kept", "evaluations_kept"))
    worst, spent = worst.min(), spent.mean()
    good = worst[worst >= wanted].index
    picked, fixed = spent[good].idxmin() if len(good) else worst.idxmax(), arm_name(fixed)
    if fixed and fixed not in worst:
        raise ConfigError(
            f"{fixed}, the one configuration, was not tried out on every cell; keep it among the candidates."
        )
    columns = ["cell", "arm", "episodes", "kept", "calls_kept", "evaluations_kept"]
    chosen = {"picked": table["arm"] == picked, "chosen": table["arm"] == (fixed or picked)}
    return table[columns].assign(wanted=wanted, **chosen).reset_index(drop=True)
