"""Mean step times over episodes: closed forms, coverage, and what is not known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from lib.study.stats.step_time import step_time
from lib.study.steps import turn_error


def rows_of(arm, turns=9, **parts):
    """Timing rows of an arm; parts: (mean, error)."""
    kinds = {"step": (math.nan, math.nan)} | parts
    return [
        {"arm": arm, "part": part, "mean_ms": mean, "mean_error_ms": error, "turns": turns, "p95_ms": 1.5 * mean}
        for part, (mean, error) in kinds.items()
    ]


def played(**arms):
    """Episodes of 100 decisions; arms: (planner calls, refinements) of each."""
    rows = [
        {"arm": arm, "planner_calls": calls, "refinements": refined, "length": 100}
        for arm, counts in arms.items()
        for calls, refined in counts
    ]
    return pd.DataFrame(rows)


def test_kinds_of_step_are_weighed_by_how_often_the_episodes_plan():
    steps = pd.DataFrame(
        rows_of("teacher", plan=(80.0, 0.4))
        + rows_of("gated", plan=(8.0, 0.2), between=(0.5, 0.05))
        + rows_of("policy", turns=5, between=(0.1, 0.01))
    )
    episodes = played(teacher=[(100, 0)] * 3, gated=[(20, 2), (30, 4), (25, 3)], policy=[(0, 0)] * 3)
    table = step_time(steps, episodes).set_index("arm")
    shares = np.array([0.22, 0.34, 0.28])
    p, spread = shares.mean(), shares.std(ddof=1) / math.sqrt(3)
    mean, error = p * 8 + (1 - p) * 0.5, math.hypot(p * 0.2 + (1 - p) * 0.05, spread * 7.5)
    gated, t = table.loc["gated"], student.ppf(0.975, 8)
    assert gated["step_ms"] == pytest.approx(mean) and gated["steps_per_s"] == pytest.approx(1e3 / mean)
    ends = (mean * math.exp(-t * error / mean), mean * math.exp(t * error / mean))
    assert (gated["step_ms_low"], gated["step_ms_high"]) == pytest.approx(ends)
    assert gated["step_p95_ms"] == 12.0 and gated["speedup"] == pytest.approx(80 / mean)
    width = t * math.hypot(error / mean, 0.4 / 80)
    ends = (gated["speedup"] * math.exp(-width), gated["speedup"] * math.exp(width))
    assert (gated["speedup_low"], gated["speedup_high"]) == pytest.approx(ends)
    assert table.loc["policy", ["step_ms", "step_p95_ms"]].tolist() == pytest.approx([0.1, 0.15])
    assert math.isnan(table.loc["teacher", "speedup"])
    t = student.ppf(0.975, 4)  # five turns, and no plan whose time it could miss
    low, fewest = 0.1 * math.exp(-t * 0.1), 800 * math.exp(-t * math.hypot(0.1, 0.005))
    assert table.loc["policy", ["step_ms_low", "speedup_low"]].tolist() == pytest.approx([low, fewest])


def test_what_was_not_timed_is_not_known():
    steps = pd.DataFrame(rows_of("gated", between=(0.5, 0.05)) + rows_of("once", turns=1, plan=(8.0, math.nan)))
    episodes = played(gated=[(0, 0), (1, 0)], other=[(1, 0)], once=[(100, 0)])
    table = step_time(steps, episodes)
    assert table["arm"].tolist() == ["once"]  # gated planned in an episode, and never while it was timed
    once = table.iloc[0]
    assert once["step_ms"] == 8.0 and all(math.isnan(once[c]) for c in ("step_ms_low", "speedup", "speedup_high"))
    steps = pd.DataFrame(rows_of("gated", plan=(8.0, 0.2), between=(0.5, 0.05)))
    one = step_time(steps, played(gated=[(25, 0)])).iloc[0]  # an episode says nothing of how others would plan
    assert one["step_ms"] == 2.375 and math.isnan(one["step_ms_low"])
    nothing = step_time(pd.DataFrame(columns=["arm", "part"]), episodes)
    assert nothing.empty and {"step_ms", "step_ms_high", "speedup_low", "step_p95_ms"} <= set(nothing)


def test_intervals_hold_the_mean_where_turns_differ():
    """A machine whose speed is another one in every turn, and episodes that plan unequally often: nominal 95 %."""
    rng, held, runs, turns = np.random.default_rng(0), 0, 600, 9
    truth = 0.25 * 4.0 + 0.75 * 1.5
    for _ in range(runs):
        speed = np.repeat(rng.normal(1, 0.05, turns), 24)
        planned = np.tile(np.arange(24) % 4 == 0, turns)
        times = np.where(planned, 4.0, 1.5) * speed * rng.normal(1, 0.1, speed.size)
        which = np.repeat(np.arange(turns), 24)
        kinds = {
            kind: (times[mask].mean(), turn_error(times[mask], which[mask]))
            for kind, mask in (("plan", planned), ("between", ~planned))
        }
        calls = rng.normal(25, 3, 20)
        table = step_time(pd.DataFrame(rows_of("gated", **kinds)), played(gated=[(c, 0) for c in calls]))
        held += table["step_ms_low"].iloc[0] <= truth <= table["step_ms_high"].iloc[0]
    assert 0.93 <= held / runs <= 0.985
