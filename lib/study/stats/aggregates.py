"""Arms over all tasks: normalised returns, their aggregates and profiles, with a bootstrap that respects the design.

    cells = {"walker-walk-1m-1": rows, "cartpole-swingup-1m-1": rows}  # the records of `horizon/<cell>.csv`
    table = aggregate(cells)
    profiles = performance_profiles(cells)

The *normalised return* of an episode is its return divided by the mean return of the cell's teacher. A resample keeps
the tasks (they are strata, a task at another model size being another one), draws teacher seeds within a task where it
has several, then episodes of a drawn seed, with their teacher's episodes from the same start states: the teacher's mean
is that of the resample. Every task counts the same, every seed the same within its task. (Agarwal et al. 2021,
arXiv:2108.13264, pool runs in the same way.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr, stdtrit

from lib.study.stats.intervals import MIN_INTERVAL, StatisticsError, arms_by_seed, shared, slice_mean, vector

STRATUM = ["task", "size"]
ALL = "all"  # the scope of a row over all tasks
TAUS = tuple(round(0.01 * i, 2) for i in range(121))  # of performance profiles, as parts of the teacher's mean
RESAMPLES = 2_000


@dataclass(frozen=True)
class Stratum:
    """One task: the paired returns of an arm and the teacher, a pair of vectors (n,) for each teacher seed."""

    name: str
    seeds: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True)
class Scores:
    """Normalised returns with their weights, which sum to 1 within each task, both (resamples, tasks, episodes).

    `better` has, in the place of each, whether the episode returned more than the teacher's (½ for a tie).
    """

    values: np.ndarray
    weights: np.ndarray
    better: np.ndarray


def scores(strata: list[Stratum], resamples: int = 0, seed: int = 0) -> Scores:
    """The normalised returns of bootstrap resamples, or with `resamples=0` those of the data themselves (1, …).

    nan where the teacher's mean is not positive.
    """
    rng, parts = np.random.default_rng(seed), []
    for stratum in strata:
        arm, teacher = (np.concatenate([pair[i] for pair in stratum.seeds]) for i in (0, 1))
        counts = np.array([len(returns) for returns, _ in stratum.seeds])
        starts, k, most = np.cumsum(counts) - counts, len(counts), counts.max()
        place = np.arange(most)
        if resamples:
            drawn_seed = rng.integers(k, size=(resamples, k)) if k > 1 else np.zeros((resamples, 1), int)
            count = counts[drawn_seed][..., None]
            episode = (rng.random((resamples, k, most)) * count).astype(int)
        else:
            drawn_seed, count = np.arange(k)[None], counts[None, :, None]
            episode = np.minimum(place, count - 1)
        index = starts[drawn_seed][..., None] + episode  # (resamples, seeds, episodes)
        weights = (place < count) / count  # a seed with fewer episodes leaves places empty
        mean = (teacher[index] * weights).sum(-1, keepdims=True)
        values = arm[index] / np.where(mean > 0, mean, math.nan)
        better = (arm[index] > teacher[index]) + 0.5 * (arm[index] == teacher[index])
        parts.append([x.reshape(len(index), 1, -1) for x in (values, weights / k, better)])
    width = max(values.shape[-1] for values, _, _ in parts)
    padded = [[np.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1]))) for x in part] for part in parts]
    return Scores(*(np.concatenate(arrays, axis=1) for arrays in zip(*padded, strict=True)))


def _task_means(s: Scores) -> np.ndarray:
    return (s.values * s.weights).sum(-1)


def _pooled(s: Scores, low: float, high: float) -> np.ndarray:
    values, weights = (x.reshape(len(x), -1) for x in (s.values, s.weights / s.weights.shape[1]))
    return slice_mean(values, low, high, weights)


STATISTICS = {
    "mean": lambda s: _task_means(s).mean(-1),
    "median": lambda s: np.median(_task_means(s), axis=-1),
    "iqm": lambda s: _pooled(s, 0.25, 0.75),
    "worst5": lambda s: _pooled(s, 0, 0.05),
    "improvement": lambda s: (s.better * s.weights).sum(-1).mean(-1),
}


def aggregate(
    cells: dict[str, pd.DataFrame], level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """One row per scope (a task and size, or `all`), arm and statistic: `estimate`, `low`, `high`.

    cells: cell name → its episodes, as `summarise` takes them. Statistics of normalised returns: `mean` over tasks of
    the mean over episodes, `median` of the tasks' means, `iqm` and `worst5` (the worst 5 %) over all episodes; and
    `improvement`, the mean over tasks of the probability that an episode returns more than the teacher's. `tasks` and
    `episodes` say how much an arm was evaluated, `resampled` what the interval speaks of: "episodes", or "seeds and
    episodes" where tasks have several teacher seeds. Few seeds make an interval that is too narrow.

    Intervals lie between percentiles, somewhat further out the fewer episodes there are (`percentiles`); there is none
    for a single episode and where the teacher's mean is not positive, in any resample.
    """
    table = []
    for scope, arm, strata in scopes(cells):
        data, drawn = scores(strata), scores(strata, resamples, seed)
        fewest = min(len(returns) for stratum in strata for returns, _ in stratum.seeds)
        for name, statistic in STATISTICS.items():
            low, high = (
                np.quantile(statistic(drawn), percentiles(fewest, level)) if fewest >= MIN_INTERVAL else 2 * [math.nan]
            )
            table.append(
                {
                    "scope": scope,
                    "arm": arm,
                    "statistic": name,
                    "estimate": float(statistic(data)[0]),
                    "low": float(low),
                    "high": float(high),
                    "tasks": len(strata),
                    "seeds": sum(len(stratum.seeds) for stratum in strata),
                    "episodes": sum(len(returns) for stratum in strata for returns, _ in stratum.seeds),
                    "resampled": resampled(strata),
                }
            )
    return pd.DataFrame(table)


def performance_profiles(
    cells: dict[str, pd.DataFrame], taus=TAUS, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """The share of episodes whose normalised return is above τ, over all tasks: one row per arm and τ.

    `estimate` with the ends of its interval at that τ, `low` and `high`; else as `aggregate`.
    """
    table = []
    for scope, arm, strata in scopes(cells):
        if scope != ALL:
            continue
        data, drawn = scores(strata), scores(strata, resamples, seed)
        fewest = min(len(returns) for stratum in strata for returns, _ in stratum.seeds)
        for tau in taus:
            share, shares = (((s.values > tau) * s.weights).sum(-1).mean(-1) for s in (data, drawn))
            low, high = np.quantile(shares, percentiles(fewest, level)) if fewest >= MIN_INTERVAL else 2 * [math.nan]
            table.append({"arm": arm, "tau": tau, "estimate": float(share[0]), "low": float(low), "high": float(high)})
    return pd.DataFrame(table)


def percentiles(n: int, level: float) -> tuple[float, float]:
    """The percentiles between which an interval at `level` lies, for n ≥ 2 episodes of the smallest cell.

    Resamples of n values vary less than samples do, by (n − 1)/n, and the interval of a normal mean is wider than its
    quantiles by Student's t; Hesterberg (2015, arXiv:1411.5279) moves the percentiles outwards by both.
    """
    tail = float(ndtr(stdtrit(n - 1, (1 - level) / 2) * math.sqrt(n / (n - 1))))
    return tail, 1 - tail


def resampled(strata: list[Stratum]) -> str:
    """What a resample of these tasks draws: "episodes", "seeds and episodes", or where it draws seeds."""
    several = sum(len(stratum.seeds) > 1 for stratum in strata)
    if several in (0, len(strata)):
        return "seeds and episodes" if several else "episodes"
    return f"episodes, and seeds in {several} of {len(strata)} tasks"


def scopes(cells: dict[str, pd.DataFrame]) -> list[tuple[str, str, list[Stratum]]]:
    """(scope, arm, strata) for each task alone, then for all tasks that have the arm.

    Raises `StatisticsError` for no cells, a cell's table that holds several cells, and as `summarise` does.
    """
    if not cells:
        raise StatisticsError("There are no cells to aggregate.")
    found: dict[str, dict[str, list]] = {}  # arm → task and size → (returns, teacher's returns) of each seed
    for cell, rows in cells.items():
        kinds = rows[STRATUM].drop_duplicates()
        if len(kinds) != 1 or rows["teacher_seed"].nunique() != 1:
            raise StatisticsError(f"Cell {cell} must have the episodes of one task, size and teacher seed.")
        arms = arms_by_seed(rows, cell)
        stratum = " ".join(map(str, kinds.iloc[0]))
        for name in arms:
            arm, teacher = shared(arms[name], arms["teacher"])
            pair = (vector(arm["return"], f"arm {name!r} of {cell}"), vector(teacher["return"], f"teacher of {cell}"))
            found.setdefault(name, {}).setdefault(stratum, []).append(pair)
    strata = {arm: [Stratum(name, tuple(seeds)) for name, seeds in tasks.items()] for arm, tasks in found.items()}
    alone = [(stratum.name, arm, [stratum]) for arm, tasks in strata.items() for stratum in tasks]
    return sorted(alone, key=lambda entry: entry[0]) + [(ALL, arm, tasks) for arm, tasks in strata.items()]
