"""The mean time of a control step over the evaluated episodes, and how many times shorter than the teacher's it is.

    table = step_time(steps, episodes)  # one row per arm that was timed

A gate asks for a plan where the episode makes it ask, so the few decisions that `lib.latency` times hold more or fewer
plans than the evaluation. What was timed is therefore how long a step takes that asks for one, and how long any other
does; how often an arm asks is counted over all of its episodes.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import t as student

KINDS = ("plan", "between")  # of steps: those that ask a planner or a refiner, and the others
BASELINE = "teacher"


def turn_error(values, turns) -> float:
    """Standard error of the mean of `values` (n,), each of one of m `turns` (n,) whose members go together.

    A machine that slows down slows all steps of a turn, so that turns are independent and steps are not. Linearised,
    with the factor m / (m − 1) for few clusters (Cochran 1977, section 6.8); nan for a single turn.
    """
    values, (names, members) = np.asarray(values, dtype=float), np.unique(turns, return_inverse=True)
    if len(names) < 2:
        return math.nan
    sums = np.bincount(members, weights=values - values.mean())
    return float(np.sqrt(len(names) / (len(names) - 1) * np.sum(sums**2)) / len(values))


def step_time(steps: pd.DataFrame, episodes: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Columns arm, step_ms, step_p95_ms, steps_per_s and speedup, `_low` and `_high` of the first and the last.

    steps: rows of `lib.latency.measure` at one batch; episodes: rows of one cell as `lib.statistics.summarise` takes
    them. step_ms is the mean in milliseconds, step_p95_ms the percentile of the steps that were timed, speedup the
    teacher's step_ms over the arm's. Errors are propagated to first order: those of both kinds of step add up, because
    a machine that slows down slows both; that of how often an arm plans, and those of two arms, are independent, which
    turns side by side make too careful if anything. The quantiles are Student's, with one degree of freedom less than
    turns. An arm of which a kind of step was seen only in the episodes has no times.
    """
    table = pd.DataFrame([_of_episodes(arm, rows, steps) for arm, rows in episodes.groupby("arm", sort=False)])
    table = table.dropna(subset="step_ms").set_index("arm")
    t = student.ppf((1 + level) / 2, table["turns"] - 1)
    table["step_ms_low"], table["step_ms_high"] = (table["step_ms"] + sign * t * table["error"] for sign in (-1, 1))
    relative = table["error"] / table["step_ms"]
    whole, part = (s.get(BASELINE, math.nan) for s in (table["step_ms"], relative))
    table["speedup"], width = whole / table["step_ms"], t * np.hypot(relative, part)
    table.loc[table.index == BASELINE, "speedup"] = math.nan  # of itself
    table["speedup_low"], table["speedup_high"] = (table["speedup"] * np.exp(sign * width) for sign in (-1, 1))
    table["steps_per_s"] = 1e3 / table["step_ms"]
    return table.drop(columns=["error", "turns"]).reset_index()


def _of_episodes(arm: str, episodes: pd.DataFrame, steps: pd.DataFrame) -> dict:
    """step_ms and its error, over the shares of the two kinds of step in these episodes; turns; the measured p95."""
    mine = steps[steps["arm"] == arm].set_index("part")
    shares = (episodes["planner_calls"] + episodes["refinements"]) / episodes["length"]
    planned, spread = shares.mean(), shares.sem()
    mean, error = 0.0, 0.0
    for kind, share in zip(KINDS, (planned, 1 - planned), strict=True):
        if share > 0:
            timed = mine.loc[kind] if kind in mine.index else {"mean_ms": math.nan, "mean_error_ms": math.nan}
            mean, error = mean + share * timed["mean_ms"], error + share * timed["mean_error_ms"]
    if 0 < planned < 1 and spread > 0 and not math.isnan(mean):
        error = math.hypot(error, spread * (mine.loc["plan", "mean_ms"] - mine.loc["between", "mean_ms"]))
    found = {"arm": arm, "step_ms": mean, "error": error, "turns": math.nan, "step_p95_ms": math.nan}
    if "step" in mine.index:
        found |= {"turns": mine.loc["step", "turns"], "step_p95_ms": mine.loc["step", "p95_ms"]}
    return found
