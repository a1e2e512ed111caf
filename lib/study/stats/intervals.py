"""Means, intervals and paired comparisons of episode returns.

    low, high = bootstrap_ci(returns)
    kept = kept_return(arm_returns, teacher_returns)  # kept.value, kept.low, kept.high
    table = summarise(rows)

Episodes are drawn with replacement and the statistic is recomputed. All arms of a cell start from the same states, so
comparisons draw *pairs* of episodes. Returns are skewed, as an episode can fall but not do better than perfect:
intervals of means are therefore studentised (bootstrap-t), whose error rates `lib.study.stats.coverage` compares with
those of other methods. With one teacher seed the intervals speak about episodes of that teacher only, not about other
training runs; `lib.study.stats.aggregates` has the bootstrap over seeds and tasks.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from lib.study.arms import ARM_COLUMNS

CELL = ["task", "size", "teacher_seed"]
PLANNER = ["standard_planner", "planner_samples", "planner_iterations"]  # columns that tell what an arm stands on
MIN_INTERVAL = 2  # episodes: a single one says nothing about spread


class StatisticsError(ValueError):
    """The data cannot answer the question; the message says why and what to do."""


class Estimate(NamedTuple):
    """A value with the ends of its interval; the ends are nan where there is no interval."""

    value: float
    low: float
    high: float


def vector(x, name: str) -> np.ndarray:
    """`x` as a float vector (n,), n ≥ 1, without nan; else a `StatisticsError` that bears `name`."""
    x = np.asarray(x, dtype=float)
    if x.ndim != 1 or x.size == 0:
        raise StatisticsError(f"{name} must be a vector with at least one value, not an array of shape {x.shape}.")
    if np.isnan(x).any():
        raise StatisticsError(f"{name} holds {int(np.isnan(x).sum())} missing values among {x.size}.")
    return x


def pair(a, b, name_a: str, name_b: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as vectors of one length; else a `StatisticsError`."""
    a, b = vector(a, name_a), vector(b, name_b)
    if a.size != b.size:
        raise StatisticsError(
            f"{name_a} has {a.size} episodes and {name_b} has {b.size}; pairs need the same episodes in both."
        )
    return a, b


# ---------------------------------------------------------------------------------------------------- point values


def slice_mean(x, low: float, high: float, weights=None):
    """Mean of the part of the distribution of `x` that lies between its quantiles `low` and `high`.

    Each sorted value stands for a slice of the distribution as large as its weight (1/n without `weights`) and counts
    with the part of its slice that lies in between, so the result is exact for any n: values at the edges have
    fractional weight.

    x, weights: (..., n) → (...); a float for a vector. Weights sum to 1 along the last axis.
    """
    x = np.asarray(x, dtype=float)
    n = x.shape[-1]
    if n == 0:
        raise StatisticsError("The mean of no values is not defined.")
    order = np.argsort(x, axis=-1)
    upto = np.arange(1, n + 1) / n if weights is None else np.take_along_axis(weights, order, axis=-1).cumsum(axis=-1)
    inside = np.diff(np.clip(upto, low, high), axis=-1, prepend=low) / (high - low)
    return (np.take_along_axis(x, order, axis=-1) * inside).sum(axis=-1)


def iqm(x, axis: int = -1):
    """Interquartile mean: the mean of the middle half of the sorted values, see `slice_mean`.

    A 25 % trimmed mean for n divisible by 4; the value itself for n = 1. x: (..., n) → (...); a float for a vector.
    """
    return slice_mean(np.moveaxis(np.asarray(x, dtype=float), axis, -1), 0.25, 0.75)


def worst(x, fraction: float = 0.05) -> float:
    """Mean of the worst `fraction` of the distribution (conditional value at risk), see `slice_mean`; x: (n,).

    With n ≤ 1 / fraction values it is the smallest of them.
    """
    return float(slice_mean(vector(x, "x"), 0, fraction))


# ------------------------------------------------------------------------------------------------------- intervals


@functools.lru_cache(maxsize=8)
def draw_counts(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of n episodes is in each resample, (resamples, n). The same for every arm of a cell."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    counts.flags.writeable = False  # it is shared by all callers
    return counts


def studentised(x, y=1.0, resamples: int = 10_000, seed: int = 0):
    """mean(x) / mean(y) over pairs: its value, its standard error, and its t in each resample.

    The standard error is that of the mean for y = 1 and else of the ratio's linear expansion. t is the distance of a
    resample's value from `value` in units of the resample's own standard error, so that a resample that happens to
    hold the large errors also has a large unit: this is what corrects for skewness. A resample without any spread has
    a t of ±1e12.

    x: (..., n), y: the same or a number → value (...), error (...), t (..., resamples). A resample whose mean(y) is not
    positive has a t of nan.
    """
    x = np.asarray(x, dtype=float)
    y = np.broadcast_to(np.asarray(y, dtype=float), x.shape)
    n, counts = x.shape[-1], draw_counts(x.shape[-1], resamples, seed).T
    mean_y = np.where(y.mean(-1) > 0, y.mean(-1), math.nan)
    value = x.mean(-1) / mean_y
    residual = x - value[..., None] * y  # centred, so that no digits are lost in the sums of squares below
    error = np.sqrt((residual**2).sum(-1) / (n - 1) / n) / mean_y
    drawn_y = y @ counts / n
    drawn_y = np.where(drawn_y > 0, drawn_y, math.nan)
    shift = residual @ counts / n / drawn_y
    square = (residual**2 @ counts - 2 * shift * (residual * y @ counts) + shift**2 * (y**2 @ counts)) / n
    drawn_error = np.sqrt(np.maximum(square, 0) / (n - 1)) / drawn_y
    rounding = 1e-12 * np.abs(x).max(-1, keepdims=True) / mean_y[..., None]
    shift = np.where(np.abs(shift) > rounding, shift, 0)
    t = np.clip(shift / np.maximum(drawn_error, np.maximum(rounding, 1e-300)), -1e12, 1e12)
    return value, error, t


def studentised_ends(x, y=1.0, level: float = 0.95, resamples: int = 10_000, seed: int = 0):
    """Ends (low, high) of the bootstrap-t interval of mean(x) / mean(y) over pairs, each (...) for x: (..., n).

    They stay within the range of x / y, as every resample does: with two or three episodes that range is the interval.
    """
    value, error, t = studentised(x, y, resamples, seed)
    low_t, high_t = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(np.asarray(y) > 0, np.asarray(x, dtype=float) / y, math.nan)
    # A ratio of means is a mean of ratios only for positive y; elsewhere there is no range to stay in.
    least, most = ratio.min(-1), ratio.max(-1)
    low, high = value - high_t * error, value - low_t * error
    return np.where(low < least, least, low), np.where(high > most, most, high)


def bootstrap_ci(x, statistic=np.mean, level: float = 0.95, resamples: int = 10_000, seed: int = 0):
    """Bootstrap interval (low, high) of `statistic(x)`, x: (n,).

    Of the mean it is the studentised interval; of another statistic, which takes `(resamples, n)` with `axis=-1` as
    `np.median` and `iqm` do, it lies between percentiles. Seeded: the same data give the same interval. n = 1 gives
    (nan, nan), constant data an interval of no width. With fewer than about ten episodes it covers too little.
    """
    x = vector(x, "x")
    if not 0 < level < 1:
        raise StatisticsError(f"level={level} must lie between 0 and 1.")
    if x.size < MIN_INTERVAL:
        return math.nan, math.nan
    if statistic is np.mean:
        low, high = studentised_ends(x, 1.0, level, resamples, seed)
    else:
        draws = np.random.default_rng(seed).integers(x.size, size=(resamples, x.size))
        low, high = np.quantile(statistic(x[draws], axis=-1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(a, b, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean of a − b over pairs, with its bootstrap interval; a, b: (n,) in the same order of episodes."""
    a, b = pair(a, b, "a", "b")
    difference = a - b
    return Estimate(float(difference.mean()), *bootstrap_ci(difference, level=level, resamples=resamples, seed=seed))


def kept_return(arm, teacher, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Fraction of the teacher's return that an arm keeps: mean(arm) / mean(teacher), with its bootstrap interval.

    Pairs of episodes are drawn, and the teacher's mean is recomputed in every resample, so its noise is part of the
    interval. arm, teacher: (n,) in the same order of episodes. All nan when the teacher's mean is not positive (a
    fraction of nothing means nothing); no interval when that happens in a resample, or when n = 1.
    """
    arm, teacher = pair(arm, teacher, "arm", "teacher")
    if teacher.mean() <= 0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(arm.mean() / teacher.mean())
    if arm.size < MIN_INTERVAL:
        return Estimate(value, math.nan, math.nan)
    low, high = studentised_ends(arm, teacher, level, resamples, seed)
    return Estimate(value, float(low), float(high))


def share_limit(count: int, n: int, level: float = 0.95) -> float:
    """Upper end of the exact two-sided interval (Clopper and Pearson) of a probability: `count` among n episodes.

    What did not happen in n episodes may still happen: at 95 %, none in 10 leaves up to 31 %, none in 50 up to 7 %.
    """
    return float(binomtest(count, n).proportion_ci(level, method="exact").high)


# ------------------------------------------------------------------------------------------------------ one table


def summarise(rows: pd.DataFrame, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """One row per cell and arm from one row per episode, in order of first appearance.

    rows: those of one or more cells, as `lib.study.evaluate.read_cell` reads them. Returns are sums of reward;
    `planner_calls`, `model_evaluations`, `fallbacks` and `delta_abs` are means per episode; `kept`, `calls_kept` and
    `evaluations_kept` are fractions of the teacher's over the same episodes. `difference` is to the teacher, `gain` to
    the open-loop arm of the same planner and execution horizon (empty where there is none), both in return and paired
    by `episode_seed`. The columns of the arm itself are those of `Arm.columns`.
    `return_worst5` is the mean of the worst 5 % of episodes. `failures` counts episodes that ended before the cell's
    longest or returned less than half of the teacher's mean, and `failures_share_high` is the upper end of the interval
    of their share: no bootstrap knows of falls that are not among its episodes. Missing is nan, never 0.

    An arm may have fewer episodes than others: it is compared over those that both have. Raises `StatisticsError` when
    a cell has no teacher, an arm repeats an episode seed, or has one that the teacher has not.
    """
    if rows.empty:
        raise StatisticsError("There are no episodes to summarise.")
    options = dict(level=level, resamples=resamples, seed=seed)
    table = []
    for cell, episodes in rows.groupby(CELL, sort=False):
        arms = arms_by_seed(episodes, "-".join(map(str, cell)))
        full_length = episodes["length"].max()
        for name in arms:
            row = dict(zip(CELL, cell, strict=True)) | {"arm": name}
            table.append(row | _summary(name, arms, full_length, options))
    # Where an arm has no planner, pandas would make floats of the others' whole numbers.
    return pd.DataFrame(table).astype({f"planner_{name}": "Int64" for name in ("samples", "iterations", "horizon")})


def arms_by_seed(episodes: pd.DataFrame, cell: str) -> dict[str, pd.DataFrame]:
    """The arms of one cell, each indexed by episode seed in the teacher's order; raises as `summarise` does."""
    arms = {name: arm.set_index("episode_seed") for name, arm in episodes.groupby("arm", sort=False)}
    if "teacher" not in arms:
        raise StatisticsError(f"Cell {cell} has no arm 'teacher', to which the others are compared; evaluate it too.")
    seeds = arms["teacher"].index
    for name, arm in arms.items():
        if arm.index.has_duplicates:
            repeated = arm.index[arm.index.duplicated()][0]
            raise StatisticsError(f"Cell {cell}: arm {name!r} has episode_seed {repeated} more than once.")
        if other := sorted(set(arm.index) - set(seeds)):
            raise StatisticsError(
                f"Cell {cell}: arm {name!r} was evaluated on {len(other)} episode seeds that the teacher was not, "
                f"{other[0]} for one; run the teacher's."
            )
    return {name: arm.loc[seeds[seeds.isin(arm.index)]] for name, arm in arms.items()}


def shared(arm: pd.DataFrame, reference: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two arms of `arms_by_seed`, each at the episodes that both have, in the same order."""
    seeds = arm.index[arm.index.isin(reference.index)]
    return arm.loc[seeds], reference.loc[seeds]


def on_planner_of(name: str, arms: dict[str, pd.DataFrame], scheme: str, execution_horizon: int) -> str | None:
    """The arm of a scheme and execution horizon that stands on the planner of the named one; None if there is none."""
    columns = [*PLANNER, "scheme", "execution_horizon"]
    wanted = [*arms[name].iloc[0][PLANNER], scheme, execution_horizon]
    return next((other for other, rows in arms.items() if [*rows.iloc[0][columns]] == wanted), None)


def _summary(name: str, arms: dict[str, pd.DataFrame], full_length: int, options: dict) -> dict:
    arm, teacher = shared(arms[name], arms["teacher"])
    returns, teacher_returns = arm["return"].to_numpy(float), teacher["return"].to_numpy(float)
    low, high = bootstrap_ci(returns, **options)
    kept = kept_return(returns, teacher_returns, **options)
    difference = paired_difference(returns, teacher_returns, **options)
    steps = arm["execution_horizon"].iloc[0]
    gain, twin = Estimate(math.nan, math.nan, math.nan), on_planner_of(name, arms, "open-loop", steps)
    if steps > 1 and twin not in (None, name):
        gain = paired_difference(*(both["return"] for both in shared(arm, arms[twin])), **options)
    means = {c: float(arm[c].mean()) for c in ("planner_calls", "model_evaluations", "fallbacks", "delta_abs")}
    failed = (arm["length"] < full_length) | (returns < 0.5 * teacher_returns.mean())
    return {
        **{column: arm[column].iloc[0] for column in ARM_COLUMNS},
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
        "failures_share_high": share_limit(int(failed.sum()), len(arm), options["level"]),
    }


def _fraction(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan
