"""What each part of the method adds by itself: pairs of arms that differ in nothing else, over the same episodes.

table = parts(rows)        # one row per cell and part, as far as both of its arms were played
"""

from __future__ import annotations

import pandas as pd

from lib.study.stats.intervals import CELL, arms_by_seed, paired_difference, shared

PARTS = {  # part → the arm that has it, and the arm that lacks it
    "right-sizing": ("budget-64×2", "teacher"),
    "plan reuse": ("64×2+open-loop-6", "budget-64×2"),
    "planning as far": ("64×2+plan-ahead-6", "64×2+open-loop-6"),
    "corrector": ("64×2+two-tower-6", "64×2+open-loop-6"),
    "gate": ("64×2+gate-only-mismatch-6", "64×2+open-loop-6"),
    "gate beside the corrector": ("64×2+gated-6", "64×2+two-tower-6"),
    "distillation": ("distilled", "budget-128×2"),
    "gate and planner beside the draft": ("128×2+draft+gated-3-r30", "distilled"),
}


def parts(rows: pd.DataFrame, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Columns of the cell, `part`, `arm`, `reference`, `episodes`; the mean `difference` in return with its interval,
    and the `share` of the teacher's mean return that it is; `evaluations`, those of the arm per one of the reference.

    rows: as `lib.study.stats.intervals.summarise` takes them; raises `StatisticsError` as that does.
    """
    table = []
    for cell, episodes in rows.groupby(CELL, sort=False):
        arms = arms_by_seed(episodes, "-".join(map(str, cell)))
        for part, names in PARTS.items():
            if not set(names) <= arms.keys():
                continue
            mine, other = shared(*(arms[name] for name in names))
            estimate = paired_difference(mine["return"], other["return"], level, resamples, seed)
            spent = [one["model_evaluations"].mean() for one in (mine, other)]
            row = dict(zip(CELL, cell, strict=True)) | {"part": part, "arm": names[0], "reference": names[1]}
            row |= {"episodes": len(mine)}
            row |= dict(zip(("difference", "difference_low", "difference_high"), estimate, strict=True))
            row |= {"share": estimate.value / arms["teacher"].loc[mine.index, "return"].mean()}
            table.append(row | {"evaluations": spent[0] / spent[1] if spent[1] else float("nan")})
    columns = [*CELL, "part", "arm", "reference", "episodes", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(table, columns=[*columns, "share", "evaluations"])
