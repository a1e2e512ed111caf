"""The mean time of a control step over the evaluated episodes, and how many times shorter than the teacher's it is.

    table = step_time(steps, episodes)  # one row per arm that was timed

A gate asks for a plan where the episode makes it ask, so the few decisions that `lib.study.steps` times hold more or
fewer plans than the evaluation. What was timed is therefore how long a step takes that asks for one, and how long any
other does; how often an arm asks is counted over all of its episodes.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import t as student

KINDS = ("plan", "between")  # of steps: those that ask a planner or a refiner, and the others
BASELINE = "teacher"


def step_time(steps: pd.DataFrame, episodes: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Columns arm, step_ms, speedup, `_low` and `_high` of both, step_p95_ms and steps_per_s.

    steps: rows of `lib.study.steps.measure` at one batch; episodes: rows of one cell as
    `lib.study.stats.intervals.summarise` takes them. step_ms is the mean in milliseconds, speedup the teacher's over
    the arm's. step_p95_ms is the percentile of the timed steps that plan, the longest that a robot waits for, or of all
    where none does. A ladder's refinements count as plans, in the mixture that was timed.

    Errors are propagated to first order, relative to the mean: those of both kinds of step add up, because a machine
    that slows down slows both; that of how often an arm plans, and those of two arms, are independent. Quantiles are
    Student's with one degree of freedom less than there are turns, which are taken as independent: a machine that
    drifts over many of them, or another one, is not in the interval. An arm of which a kind of step was seen only in
    the episodes has no times, and one with a single turn or a single episode of several kinds no interval.
    """
    table = pd.DataFrame([_of_episodes(arm, rows, steps) for arm, rows in episodes.groupby("arm", sort=False)])
    table = table.dropna(subset="step_ms").set_index("arm")
    teacher = table.loc[BASELINE] if BASELINE in table.index else dict.fromkeys(table, math.nan)
    table["speedup"] = (teacher["step_ms"] / table["step_ms"]).mask(table.index == BASELINE)  # not of itself
    both = np.hypot(table["error"], teacher["error"]), np.minimum(table["turns"], teacher["turns"])
    for column, error, turns in (("step_ms", table["error"], table["turns"]), ("speedup", *both)):
        width = student.ppf((1 + level) / 2, turns - 1) * error
        table[f"{column}_low"], table[f"{column}_high"] = (table[column] * np.exp(sign * width) for sign in (-1, 1))
    table["steps_per_s"] = 1e3 / table["step_ms"]
    return table.drop(columns=["error", "turns"]).reset_index()


def _of_episodes(arm: str, episodes: pd.DataFrame, steps: pd.DataFrame) -> dict:
    """step_ms with its relative error, over the shares of both kinds of step in these episodes; fewest turns of a kind
    that counts; the measured p95 of the slower kind."""
    mine = steps[steps["arm"] == arm].set_index("part")
    shares = (episodes["planner_calls"] + episodes["refinements"]) / episodes["length"]
    planned = shares.mean()
    parts = {kind: share for kind, share in zip(KINDS, (planned, 1 - planned), strict=True) if share}
    found = dict.fromkeys(("step_ms", "error", "turns", "step_p95_ms"), math.nan)
    if set(parts) <= set(mine.index):
        mean, error = (sum(w * mine.loc[k, c] for k, w in parts.items()) for c in ("mean_ms", "mean_error_ms"))
        if len(parts) > 1:
            error = math.hypot(error, shares.sem() * (mine.loc["plan", "mean_ms"] - mine.loc["between", "mean_ms"]))
        turns = min(mine.loc[kind, "turns"] for kind in parts)
        longest = mine.loc["plan" if planned else "between", "p95_ms"]
        found = {"step_ms": mean, "error": error / mean, "turns": turns, "step_p95_ms": longest}
    return {"arm": arm} | found
