"""How many episodes does an answer need, and do the intervals hold what they promise?

    power = power_table(rows)     # episodes that resolve 1, 2 and 5 % of the teacher's mean return
    coverage = coverage_table()   # how often 95 % intervals hold the true mean, in simulation

Neither depends on what the arms are; the first takes the spread of the paired differences that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import nctdtr, ndtri, stdtrit

from lib.study.stats.aggregates import percentiles
from lib.study.stats.intervals import (
    CELL,
    MIN_INTERVAL,
    StatisticsError,
    arms_by_seed,
    draw_counts,
    iqm,
    shared,
    slice_mean,
    studentised_ends,
)

EFFECTS = (0.01, 0.02, 0.05)  # of the teacher's mean return


# ----------------------------------------------------------------------------------------------------------- power


def power(effect: float, n: int, alpha: float = 0.05) -> float:
    """Chance that a two-sided paired t test at `alpha` finds a mean difference of `effect` standard deviations."""
    critical, shift = float(stdtrit(n - 1, 1 - alpha / 2)), effect * math.sqrt(n)
    return float(1 - nctdtr(n - 1, shift, critical) + nctdtr(n - 1, shift, -critical))


def episodes_needed(effect: float, alpha: float = 0.05, target: float = 0.8) -> int:
    """The fewest pairs of episodes with which `power(effect, n, alpha)` ≥ target; effect > 0 in standard deviations."""
    if not effect > 0:
        raise StatisticsError(f"effect={effect} must be above 0: no number of episodes finds a difference of nothing.")
    n = max(2, math.floor(((float(ndtri(1 - alpha / 2)) + float(ndtri(target))) / effect) ** 2))
    while power(effect, n, alpha) < target:  # a few steps: the normal approximation asks for a few episodes less
        n += 1
    return n


def power_table(rows: pd.DataFrame, effects=EFFECTS, alpha: float = 0.05, target: float = 0.8) -> pd.DataFrame:
    """Episodes needed to resolve differences to the teacher, one row per cell, arm and effect.

    rows: as `summarise` takes them. `effect` is a fraction of the teacher's mean return, `difference_std` the standard
    deviation of the paired differences over `episodes` episodes, in return, and `episodes_needed` the fewest pairs with
    which a two-sided paired t test at `alpha` finds the effect with probability `target`; missing for a single episode
    and for a teacher's mean that is not positive.
    """
    table = []
    for cell, episodes in rows.groupby(CELL, sort=False):
        arms = arms_by_seed(episodes, "-".join(map(str, cell)))
        for name in arms:
            if name == "teacher":
                continue
            arm, both = shared(arms[name], arms["teacher"])
            teacher = both["return"]
            spread = float((arm["return"] - teacher).std())  # pairs by episode seed; nan for one episode
            known = len(arm) >= MIN_INTERVAL and teacher.mean() > 0
            for effect in effects:
                size = effect * teacher.mean()
                row = dict(zip(CELL, cell, strict=True)) | {"arm": name, "effect": effect, "episodes": len(arm)}
                # Differences without spread would need no episodes at all; two are the fewest that show it.
                needed = episodes_needed(size / max(spread, 0.01 * size), alpha, target) if known else math.nan
                table.append(row | {"difference_std": spread, "episodes_needed": needed})
    return pd.DataFrame(table)


# -------------------------------------------------------------------------------------------------------- coverage


@dataclass(frozen=True)
class Population:
    """Returns of simulated episodes between 0 and 1000: `draw(rng, shape)`, and their true mean."""

    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    mean: float


def falling(share: float) -> Population:
    """Normal 940 ± 10, but a `share` of the episodes falls and returns 0 to 100."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.where(rng.random(shape) < share, rng.uniform(0, 100, shape), rng.normal(940, 10, shape))

    return Population(draw, share * 50 + (1 - share) * 940)


POPULATIONS = {
    "normal": Population(lambda rng, shape: rng.normal(900, 20, shape), 900),
    # What is missing to a perfect return is lognormal, of skewness 1.75.
    "lognormal": Population(lambda rng, shape: 1000 - 60 * rng.lognormal(0, 0.5, shape), 1000 - 60 * math.exp(0.125)),
    "20 % fall": falling(0.2),
    "5 % fall": falling(0.05),
}


def _percentile(x: np.ndarray, ends: tuple[float, float], resamples: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(x @ draw_counts(x.shape[-1], resamples, 0).T / x.shape[-1], ends, axis=-1)
    return low, high


def _t(x: np.ndarray, level: float, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    n = x.shape[-1]
    half = stdtrit(n - 1, (1 + level) / 2) * x.std(-1, ddof=1) / math.sqrt(n)
    return x.mean(-1) - half, x.mean(-1) + half


def bounded_ends(x, level: float = 0.95, resamples: int = 10_000, least: float = 0, most: float = 1000, seed: int = 0):
    """Ends (low, high) of an interval of the mean that also holds for falls that were not seen; x: (..., n) → (...).

    Weights of a Bayesian bootstrap, with one episode more: the worst possible one (`least`) for the lower end, the best
    (`most`) for the upper (Gaffke 2005; Phan et al. 2021, arXiv:2106.03163). For returns of 0 and 1 it is the interval
    of Clopper and Pearson.
    """
    x = np.sort(np.asarray(x, dtype=float), axis=-1)
    weights = np.random.default_rng(seed).dirichlet(np.ones(x.shape[-1] + 1), size=resamples)
    low = np.quantile(x @ weights[:, 1:].T + least * weights[:, 0], (1 - level) / 2, axis=-1)
    high = np.quantile(x @ weights[:, :-1].T + most * weights[:, -1], (1 + level) / 2, axis=-1)
    return low, high


METHODS = {
    "studentised": lambda x, level, resamples: studentised_ends(x, 1.0, level, resamples),
    "percentile": lambda x, level, resamples: _percentile(x, ((1 - level) / 2, (1 + level) / 2), resamples),
    "expanded": lambda x, level, resamples: _percentile(x, percentiles(x.shape[-1], level), resamples),
    "t": _t,
    "bounded": bounded_ends,
}


def expanded_iqm(x, teacher, level: float = 0.95, resamples: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """What `lib.study.stats.aggregates` gives for the IQM of one task: x, teacher (repeats, n) → two (repeats,).

    Pairs are drawn, and returns are parts of the teacher's mean in the same resample.
    """
    weights, ends = draw_counts(x.shape[-1], resamples, 0) / x.shape[-1], percentiles(x.shape[-1], level)
    drawn = [slice_mean(np.broadcast_to(a, weights.shape), 0.25, 0.75, weights) / (weights @ b)
             for a, b in zip(x, teacher, strict=True)]  # fmt: skip
    low, high = np.quantile(drawn, ends, axis=-1)
    return low, high


def _of_teacher(ends, alike: bool = False):
    """Of returns as parts of a teacher's, which has their mean: a steady one, normal with ± 20, or one that is `alike`,
    of whose returns one half are the arm's own and one half those of another such arm (a correlation of 0.7)."""

    def of(simulated: Population, n: int, level: float, repeats: int, resamples: int, seed: int):
        rng = np.random.default_rng(seed)
        x = simulated.draw(rng, (repeats, n))
        teacher = (x + simulated.draw(rng, x.shape)) / 2 if alike else rng.normal(simulated.mean, 20, x.shape)
        return ends(x, teacher, level, resamples)

    return of


def _of_mean(ends):
    def of(simulated: Population, n: int, level: float, repeats: int, resamples: int, seed: int):
        return ends(simulated.draw(np.random.default_rng(seed), (repeats, n)), level, resamples)

    return of


# (statistic, method) → its interval's ends for simulated samples, and the true value.
INTERVALS = {("mean", name): (_of_mean(ends), lambda population: population.mean) for name, ends in METHODS.items()}
INTERVALS["kept", "studentised"] = _of_teacher(studentised_ends), lambda population: 1.0
INTERVALS["kept of alike", "studentised"] = _of_teacher(studentised_ends, alike=True), lambda population: 1.0
INTERVALS["iqm", "expanded"] = _of_teacher(expanded_iqm), lambda population: true_iqm(population) / population.mean


def true_iqm(population: Population, draws: int = 2_000_000) -> float:
    """The interquartile mean of a population, from so many draws that its own error does not show."""
    return float(iqm(population.draw(np.random.default_rng(1), (draws,))))


def coverage(
    population: str,
    n: int,
    method: str,
    statistic: str = "mean",
    level: float = 0.95,
    repeats: int = 2_000,
    resamples: int = 2_000,
    seed: int = 0,
) -> dict:
    """How often an interval from n episodes of `population` holds the truth, by simulation; a row of `coverage_table`.

    The simulated samples share the resampling's draws, as the arms of a cell do.
    """
    simulated, (ends, truth) = POPULATIONS[population], INTERVALS[statistic, method]
    (low, high), true = ends(simulated, n, level, repeats, resamples, seed), truth(simulated)
    return {
        "population": population,
        "episodes": n,
        "statistic": statistic,
        "method": method,
        "level": level,
        "coverage": float(((low <= true) & (true <= high)).mean()),
        "too_high": float((low > true).mean()),
        "too_low": float((high < true).mean()),
        "width": float(np.median(high - low)),
        "repeats": repeats,
    }


def coverage_table(
    sizes=(10, 20, 50), level: float = 0.95, repeats: int = 2_000, resamples: int = 2_000
) -> pd.DataFrame:
    """One row per population, number of episodes, statistic and method; about half a minute.

    `coverage` is the share of intervals that hold the true value, to be compared with `level`; `too_high` the share
    that lies wholly above it, which is also how often a one-sided test at (1 − level)/2 finds an arm non-inferior that
    is exactly at the margin; `too_low` the share below; `width` the median width, in return or parts of the teacher's.
    "studentised" is what `bootstrap_ci`, `paired_difference` and `kept_return` give, "expanded" what
    `lib.study.stats.aggregates` does for one task, and "percentile" the plain bootstrap. Where 5 % of the episodes
    fall, samples without any fall are common, and only "bounded" intervals can hold the mean: they are as wide as that
    takes.
    """
    kinds = [(p, n, m, s) for p in POPULATIONS for n in sizes for s, m in INTERVALS]
    return pd.DataFrame([coverage(*kind, level, repeats, resamples) for kind in kinds])
