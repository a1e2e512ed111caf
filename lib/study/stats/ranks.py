"""Rank correlations of few cells, where snapshots of one training run share a trend.

    row = association(metric, target, strata=decisions)   # a dict: correlations, p-values, intervals and their caveats
    gain = difference(-m1, m4, teacher_return, strata=decisions)

Nearly everything improves while a model trains, so two numbers of one run's snapshots correlate whether or not they
have to do with each other. Permutations and resamples therefore exchange runs within a training step (`strata`), which
the trend has no part in; with a single run there is nothing to exchange, and then there is neither p nor interval. What
is called naive beside them takes all cells for independent. Arrays are (…, n), n cells; Spearman's ρ is Pearson's of
mean ranks, Kendall's τ is τ_b.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from lib.study.stats.intervals import Estimate, StatisticsError, vector

MIN_CELLS = 6  # fewer give no p and no interval: the smallest exact p of five would be 1 / 60
MOST, DRAWN = 10_000, 2_000  # permutations that are enumerated; and, where there are more, how many are drawn
TINY = 1e-12  # what rounding may add to a correlation


# ---------------------------------------------------------------------------------------------------- correlations


def pearson(a, b) -> np.ndarray:
    """Linear correlation along the last axis, nan where either is constant; (…, n), (…, n) → (…)."""
    a, b = (np.asarray(x, dtype=float) for x in (a, b))
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    known = scale > 0
    return np.where(known, np.clip((a * b).sum(-1) / np.where(known, scale, 1), -1, 1), math.nan)


def spearman(a, b) -> np.ndarray:
    """Spearman's ρ along the last axis, nan where either is constant; (…, n), (…, n) → (…)."""
    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


def kendall(a, b) -> np.ndarray:
    """Kendall's τ_b along the last axis, nan where either is constant; (…, n), (…, n) → (…)."""
    a, b = (np.sign(x[..., :, None] - x[..., None, :]) for x in (np.asarray(a, float), np.asarray(b, float)))
    untied = np.sqrt(np.abs(a).sum((-1, -2)) * np.abs(b).sum((-1, -2)))
    known = untied > 0
    return np.where(known, (a * b).sum((-1, -2)) / np.where(known, untied, 1), math.nan)


def partial_spearman(a, b, given) -> float:
    """Spearman's ρ of a and b with the ranks of `given` held fixed, all (n,); nan where these determine either."""
    ab, ag, bg = spearman(a, b), spearman(a, given), spearman(b, given)
    if np.isnan(ag) or np.isnan(bg):  # nothing to hold fixed, or nothing to correlate
        return float(ab)
    left = (1 - ag**2) * (1 - bg**2)
    return float(np.clip((ab - ag * bg) / math.sqrt(left), -1, 1)) if left > TINY else math.nan


def leave_one_out(statistic: Callable, a, b) -> tuple[float, float]:
    """The smallest and the largest value of statistic(a, b) when any one of the n cells is left out."""
    n = len(a)
    others = np.array([[j for j in range(n) if j != i] for i in range(n)])
    values = statistic(np.asarray(a)[others], np.asarray(b)[others])
    values = values[~np.isnan(values)]
    return (float(values.min()), float(values.max())) if len(values) else (math.nan, math.nan)


def attenuation(target, errors) -> float:
    """How far noise of the target shrinks a correlation with it: √(share of its variance that is not noise).

    target, errors (n,): values and their standard errors. A metric that tells the target perfectly would correlate
    about this much; 0 where noise explains all of the variance, nan where an error is not known.
    """
    target, errors = np.asarray(target, float), np.asarray(errors, float)
    spread = target.var(ddof=1) if len(target) > 1 else 0.0
    if np.isnan(errors).any() or not spread > 0:
        return math.nan
    return math.sqrt(max(0.0, 1 - float(np.mean(errors**2)) / spread))


# ------------------------------------------------------------------------------------- exchanging runs within a step


@functools.lru_cache(maxsize=16)
def _permutations(strata: tuple[int, ...], seed: int) -> tuple[np.ndarray, bool]:
    """Index arrays (P, n) that permute cells within strata, and whether they are all of them."""
    groups = [np.flatnonzero(np.array(strata) == s) for s in dict.fromkeys(strata)]
    if math.prod(math.factorial(len(g)) for g in groups) <= MOST:
        orders = itertools.product(*(list(itertools.permutations(g)) for g in groups))
        places = np.concatenate(groups)
        index = np.empty((math.prod(math.factorial(len(g)) for g in groups), len(strata)), int)
        for row, order in enumerate(orders):
            index[row, places] = np.concatenate(order)
        return index, True
    rng, index = np.random.default_rng(seed), np.tile(np.arange(len(strata)), (DRAWN, 1))
    for group in groups:
        index[:, group] = rng.permuted(index[:, group], axis=1)
    return index, False


def permutation_p(statistic: Callable, a, b, strata, seed: int = 0) -> float:
    """Two-sided p of statistic(a, b) against exchanging the values of b within strata; all (n,).

    Exact while there are at most 10,000 permutations, else from 2,000 random ones. nan with fewer than 6 cells, when no
    stratum holds two cells, and where the statistic is not defined.
    """
    a, b = vector(a, "a"), vector(b, "b")
    strata = _codes(strata)
    observed = statistic(a, b)
    if len(a) < MIN_CELLS or len(set(strata)) == len(strata) or np.isnan(observed):
        return math.nan
    index, exact = _permutations(strata, seed)
    extreme = int((np.abs(_permuted(statistic, a, b, index)) >= abs(observed) - TINY).sum())
    return extreme / len(index) if exact else (1 + extreme) / (1 + len(index))


def _permuted(statistic: Callable, a, b, index: np.ndarray) -> np.ndarray:
    """statistic(a, b[row]) for each row of `index` (P, n); ranks and signs of pairs are permuted, not found anew."""
    if statistic is spearman:
        return pearson(rankdata(a), rankdata(b)[index])
    if statistic is kendall:
        first, second = np.triu_indices(len(a), 1)
        of_a, of_b = (np.sign(x[:, None] - x).astype(np.float32) for x in (a, b))
        pairs = of_a[first, second]
        untied = math.sqrt(np.abs(of_a).sum() * np.abs(of_b).sum()) / 2
        return (of_b[index[:, first], index[:, second]] @ pairs).astype(float) / untied  # sums of signs are exact
    return statistic(a[None], b[index])


@functools.lru_cache(maxsize=16)
def _draws(strata: tuple[int, ...], resamples: int, seed: int) -> np.ndarray:
    """Index arrays (resamples, n) that draw the cells of each stratum anew, with replacement."""
    rng, index = np.random.default_rng(seed), np.empty((resamples, len(strata)), int)
    for s in dict.fromkeys(strata):
        group = np.flatnonzero(np.array(strata) == s)
        index[:, group] = group[rng.integers(len(group), size=(resamples, len(group)))]
    return index


def bootstrap(statistic: Callable, columns, strata, level: float = 0.95, resamples: int = 1_000, seed: int = 0):
    """Percentile interval (low, high) of statistic(*columns) when the cells of each stratum are drawn anew.

    columns: arrays (n,). (nan, nan) with fewer than 6 cells and when no stratum holds two; resamples in which the
    statistic is not defined are left out.
    """
    strata = _codes(strata)
    if len(strata) < MIN_CELLS or len(set(strata)) == len(strata):
        return math.nan, math.nan
    index = _draws(strata, resamples, seed)
    values = statistic(*(np.asarray(c, float)[index] for c in columns))
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _codes(strata) -> tuple[int, ...]:
    """Labels as small numbers, so that equal partitions have equal permutations."""
    known: dict = {}
    return tuple(known.setdefault(s, len(known)) for s in np.asarray(strata).tolist())


# ------------------------------------------------------------------------------------------------------ in one row


def association(metric, target, strata, given=None, errors=None, groups=None, seed: int = 0) -> dict:
    """How a metric goes with a target over n cells; metric, target, strata (n,), missing cells left out beforehand.

    `p_permutation`, `p_kendall` and `low`…`high` (of ρ) exchange runs within strata; `p_naive` and `low_naive`…
    `high_naive` take all cells for independent, or those of each group where `groups` (n,) are given. `partial` holds
    `given` fixed (the strata unless it is given), and `attenuation` is the largest ρ to be expected with targets of
    these standard `errors`. Below three cells there is no correlation, below six neither p nor interval.
    """
    metric, target, strata = np.asarray(metric, float), np.asarray(target, float), np.asarray(strata)
    if not metric.shape == target.shape == strata.shape or metric.ndim != 1:
        raise StatisticsError(
            f"metric, target and strata must be vectors of one length, not {metric.shape}, {target.shape} and "
            f"{strata.shape}."
        )
    row = {"n": len(metric)} | dict.fromkeys(
        "spearman kendall p_permutation p_kendall low high p_naive low_naive high_naive partial loo_min loo_max "
        "attenuation".split()
    )
    if len(metric) < 3:
        return row
    alone = np.zeros(len(metric)) if groups is None else groups
    row |= {"spearman": float(spearman(metric, target)), "kendall": float(kendall(metric, target))}
    row["p_permutation"] = permutation_p(spearman, metric, target, strata, seed)
    row["p_kendall"] = permutation_p(kendall, metric, target, strata, seed)
    row["low"], row["high"] = bootstrap(spearman, (metric, target), strata, seed=seed)
    row["p_naive"] = permutation_p(spearman, metric, target, alone, seed)
    row["low_naive"], row["high_naive"] = bootstrap(spearman, (metric, target), alone, seed=seed)
    row["partial"] = partial_spearman(metric, target, strata if given is None else given)
    row["loo_min"], row["loo_max"] = leave_one_out(spearman, metric, target)
    row["attenuation"] = math.nan if errors is None else attenuation(target, errors)
    return row


def difference(baseline, metric, target, strata, seed: int = 0) -> Estimate:
    """ρ(metric, target) − ρ(baseline, target) with its interval; all (n,), signed so that larger means better.

    Both correlations are computed from the same resampled cells. The interval exchanges runs within strata.
    """

    def gain(m, b, t):
        return spearman(m, t) - spearman(b, t)

    columns = [np.asarray(x, float) for x in (metric, baseline, target)]
    return Estimate(float(gain(*columns)), *bootstrap(gain, columns, strata, seed=seed))
