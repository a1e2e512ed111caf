"""Means, intervals and paired comparisons of episode returns.

One bootstrap for everything: episodes are drawn with replacement, the statistic is recomputed, and the interval lies
between percentiles of the recomputed values (as in rliable, Agarwal et al. 2021, arXiv:2108.13264). All arms of a cell
start from the same states, so comparisons draw *pairs* of episodes. With one teacher seed the intervals speak about
episodes of that teacher only, not about other training runs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

CELL = ["task", "size", "teacher_seed"]
MIN_INTERVAL = 2  # episodes: a single one says nothing about spread


class StatisticsError(ValueError):
    """The data cannot answer the question; the message says why and what to do."""


class Estimate(NamedTuple):
    """A value with the ends of its interval; the ends are nan where there is no interval."""

    value: float
    low: float
    high: float


def _vector(x, name: str) -> np.ndarray:
    """`x` as a float vector (n,), n ≥ 1, without nan."""
    x = np.asarray(x, dtype=float)
    if x.ndim != 1 or x.size == 0:
        raise StatisticsError(f"{name} must be a vector with at least one value, not an array of shape {x.shape}.")
    if np.isnan(x).any():
        raise StatisticsError(f"{name} holds {int(np.isnan(x).sum())} missing values among {x.size}.")
    return x


def iqm(x, axis: int = -1):
    """Interquartile mean: the mean of the middle half of the sorted values.

    Each of the n sorted values stands for a slice 1/n of the distribution and counts with the part of its slice that
    lies between the 25th and the 75th percentile, so values at the edges have fractional weight and the result is
    exact for any n (a 25 % trimmed mean for n divisible by 4; the value itself for n = 1).

    x: (..., n) → (...); a float for a vector.
    """
    x = np.sort(np.asarray(x, dtype=float), axis=axis)
    n = x.shape[axis]
    if n == 0:
        raise StatisticsError("The interquartile mean of no values is not defined.")
    edges = np.clip(np.arange(n + 1) / n, 0.25, 0.75)
    weights = np.diff(edges) / 0.5
    return np.moveaxis(x, axis, -1) @ weights


def worst(x, fraction: float = 0.05) -> float:
    """Mean of the worst ⌈fraction · n⌉ values (conditional value at risk), x: (n,)."""
    x = np.sort(_vector(x, "x"))
    count = max(math.ceil(fraction * x.size - 1e-9), 1)  # 0.05 × 60 must count 3, not 4
    return float(x[:count].mean())


def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """Indices of the resampled episodes, (resamples, n). The same for every arm of a cell, as is the seed."""
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_ci(x, statistic=np.mean, level: float = 0.95, resamples: int = 10_000, seed: int = 0):
    """Percentile-bootstrap interval (low, high) of `statistic(x)`, x: (n,).

    `statistic` takes `(resamples, n)` with `axis=-1`, as `np.mean`, `np.median` and `iqm` do. Seeded: the same data
    give the same interval. n = 1 gives (nan, nan), constant data an interval of no width. Percentile intervals are a
    little narrow for few values: for a mean they cover about 94 % at n = 50, and much less below 10.
    """
    x = _vector(x, "x")
    if not 0 < level < 1:
        raise StatisticsError(f"level={level} must lie between 0 and 1.")
    if x.size < MIN_INTERVAL:
        return math.nan, math.nan
    return _interval(statistic(x[_draws(x.size, resamples, seed)], axis=-1), level)


def _pair(a, b, name_a: str, name_b: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = _vector(a, name_a), _vector(b, name_b)
    if a.size != b.size:
        raise StatisticsError(
            f"{name_a} has {a.size} episodes and {name_b} has {b.size}; pairs need the same episodes in both."
        )
    return a, b


def paired_difference(a, b, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean of a − b over pairs, with its bootstrap interval; a, b: (n,) in the same order of episodes."""
    a, b = _pair(a, b, "a", "b")
    difference = a - b
    return Estimate(float(difference.mean()), *bootstrap_ci(difference, level=level, resamples=resamples, seed=seed))


def kept_return(arm, teacher, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Fraction of the teacher's return that an arm keeps: mean(arm) / mean(teacher), with its bootstrap interval.

    Pairs of episodes are drawn, and the teacher's mean is recomputed in every resample, so its noise is part of the
    interval. arm, teacher: (n,) in the same order of episodes. All nan when the teacher's mean is not positive (a
    fraction of nothing means nothing); no interval when that happens in a resample, or when n = 1.
    """
    arm, teacher = _pair(arm, teacher, "arm", "teacher")
    if teacher.mean() <= 0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(arm.mean() / teacher.mean())
    if arm.size < MIN_INTERVAL:
        return Estimate(value, math.nan, math.nan)
    draws = _draws(arm.size, resamples, seed)
    below = teacher[draws].mean(axis=-1)
    if (below <= 0).any():
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, *_interval(arm[draws].mean(axis=-1) / below, level))


# ------------------------------------------------------------------------------------------------------ one table


def summarise(rows: pd.DataFrame, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """One row per cell and arm from one row per episode, in order of first appearance.

    rows: the records of one or more cells (`horizon/<cell>.csv`). Returns are sums of reward; `planner_calls`,
    `model_evaluations`, `fallbacks` and `delta_abs` are means per episode; `kept`, `calls_kept` and `evaluations_kept`
    are fractions of the teacher's. `difference` is to the teacher, `gain` to the open-loop arm of the same planner and
    execution horizon (empty where there is none), both in return and paired by `episode_seed`. `return_worst5` is the
    mean of the worst 5 % of episodes. `failures` counts episodes that ended before the cell's longest or returned less
    than half of the teacher's mean. Missing is nan, never 0.

    Raises `StatisticsError` when a cell has no teacher, an arm repeats an episode seed, or an arm was evaluated on
    other episode seeds than the teacher.
    """
    if rows.empty:
        raise StatisticsError("There are no episodes to summarise.")
    options = dict(level=level, resamples=resamples, seed=seed)
    table = []
    for cell, episodes in rows.groupby(CELL, sort=False):
        arms = _arms_by_seed(episodes, "-".join(map(str, cell)))
        full_length = episodes["length"].max()
        for name in arms:
            row = dict(zip(CELL, cell, strict=True)) | {"arm": name}
            table.append(row | _summary(name, arms, full_length, options))
    return pd.DataFrame(table)


def _arms_by_seed(episodes: pd.DataFrame, cell: str) -> dict[str, pd.DataFrame]:
    """The arms of one cell, each indexed by episode seed in the teacher's order."""
    arms = {name: arm.set_index("episode_seed") for name, arm in episodes.groupby("arm", sort=False)}
    if "teacher" not in arms:
        raise StatisticsError(f"Cell {cell} has no arm 'teacher', to which the others are compared; evaluate it too.")
    seeds = arms["teacher"].index
    for name, arm in arms.items():
        if arm.index.has_duplicates:
            repeated = arm.index[arm.index.duplicated()][0]
            raise StatisticsError(f"Cell {cell}: arm {name!r} has episode_seed {repeated} more than once.")
        if set(arm.index) != set(seeds):
            other = sorted(set(arm.index) ^ set(seeds))
            raise StatisticsError(
                f"Cell {cell}: arm {name!r} and the teacher were evaluated on different episode seeds "
                f"({len(arm)} and {len(seeds)} episodes; {len(other)} not shared, {other[0]} for one); "
                "run the missing ones."
            )
    return {name: arm.loc[seeds] for name, arm in arms.items()}


def _summary(name: str, arms: dict[str, pd.DataFrame], full_length: int, options: dict) -> dict:
    arm, teacher = arms[name], arms["teacher"]
    returns, teacher_returns = arm["return"].to_numpy(float), teacher["return"].to_numpy(float)
    horizon = int(arm["execution_horizon"].iloc[0])
    low, high = bootstrap_ci(returns, **options)
    kept = kept_return(returns, teacher_returns, **options)
    difference = paired_difference(returns, teacher_returns, **options)
    # The policy and the teacher have no plan to leave uncorrected, so an open-loop twin exists only for E > 1.
    planner = name[: name.find("+") + 1]  # "64×2+" of an arm on a smaller planner, else nothing
    twin = arms.get(f"{planner}open-loop-{horizon}")
    gain = Estimate(math.nan, math.nan, math.nan)
    if horizon > 1 and twin is not None and twin is not arm:
        gain = paired_difference(returns, twin["return"], **options)
    means = {c: float(arm[c].mean()) for c in ("planner_calls", "model_evaluations", "fallbacks", "delta_abs")}
    failed = (arm["length"] < full_length) | (returns < 0.5 * teacher_returns.mean())
    return {
        "execution_horizon": horizon,
        "episodes": len(arm),
        "return_mean": float(returns.mean()),
        "return_low": low,
        "return_high": high,
        "return_iqm": float(iqm(returns)),
        "return_median": float(np.median(returns)),
        "return_worst5": worst(returns),
        "kept": kept.value,
        "kept_low": kept.low,
        "kept_high": kept.high,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "planner_calls": means["planner_calls"],
        "calls_kept": _fraction(means["planner_calls"], teacher["planner_calls"].mean()),
        "model_evaluations": means["model_evaluations"],
        "evaluations_kept": _fraction(means["model_evaluations"], teacher["model_evaluations"].mean()),
        "fallbacks": means["fallbacks"],
        "delta_abs": means["delta_abs"],
        "failures": int(failed.sum()),
    }


def _fraction(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan
