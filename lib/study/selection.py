"""One configuration of the method for all cells, picked on episodes that are not reported.

    table = pick({"walker-walk-1m-1": rows_of_try_out, ...}, fixed="64x2+gated-6", earlier="64x2+temporal-6")

`paper/summary.py` picks it from what `lib.study.trials` played.
"""

from __future__ import annotations

import pandas as pd

from lib.config import ConfigError
from lib.study.arms import arm_name
from lib.study.stats.comparisons import MARGIN, non_inferiority

LEVEL = 0.05  # of the test on each cell: a candidate must pass on all of them


def pick(
    cells: dict[str, pd.DataFrame], margin: float = MARGIN, fixed: str = "", earlier: str = "", resamples: int = 10_000
) -> pd.DataFrame:
    """One row per cell and candidate that every cell has: what it keeps and spends, as parts of the teacher's, and
    which is picked. cells: rows of `lib.study.trials.try_out` by name.

    Picked is, of the arms that are non-inferior to the teacher at `margin` on every cell (`p_non_inferior` below
    `LEVEL`), the one with the fewest model evaluations on average over the cells; where there is none, the one that
    keeps most on its worst cell. `chosen` is the `fixed` one, else the one that is `picked`; `earlier` says of a
    candidate that it once was the fixed one. Raises `ConfigError` where there is no candidate, or the fixed one is
    none.
    """
    parts = []
    for cell, rows in cells.items():
        returns = rows.pivot(index="episode_seed", columns="arm", values="return")
        means = rows.groupby("arm", sort=False)[["return", "planner_calls", "model_evaluations"]].mean()
        shares = (means / means.loc["teacher"]).drop("teacher")
        shares.columns = ["kept", "calls_kept", "evaluations_kept"]
        tests = {
            arm: non_inferiority(returns[arm], returns["teacher"], margin, resamples=resamples) for arm in shares.index
        }
        parts.append(shares.assign(cell=cell, episodes=len(returns), p_non_inferior=pd.Series(tests)).reset_index())
    table = pd.concat(parts) if parts else pd.DataFrame(columns=["arm", "cell"])
    table = table[table.groupby("arm")["cell"].transform("nunique") == len(cells)]
    if table.empty:
        raise ConfigError("no arm was tried out on the calibration episodes of every cell; name candidates.")
    candidates = table.groupby("arm", sort=False)
    worst, spent = candidates["kept"].min(), candidates["evaluations_kept"].mean()
    good = worst.index[candidates["p_non_inferior"].apply(lambda p: bool((p < LEVEL).all()))]
    picked, fixed = spent[good].idxmin() if len(good) else worst.idxmax(), arm_name(fixed)
    if fixed and fixed not in worst:
        raise ConfigError(
            f"{fixed}, the one configuration, was not tried out on every cell; keep it among the candidates."
        )
    columns = ["cell", "arm", "episodes", "kept", "calls_kept", "evaluations_kept", "p_non_inferior"]
    told = {"picked": picked, "chosen": fixed or picked, "earlier": arm_name(earlier)}
    marks = {column: table["arm"] == name for column, name in told.items()}
    return table[columns].assign(margin=margin, level=LEVEL, **marks).reset_index(drop=True)
