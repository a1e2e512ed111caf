"""Which cheaper ways to control may stand in for the teacher, so that the whole choice is seldom wrong.

    p = [keeps_less(arm, teacher) for arm in candidates]     # returns of the same start states, in the chain's order
    admitted = fixed_sequence(p, ALPHA / CHAINS)             # of one of the chains
    verdict(kept_above(fresh_arm, fresh_teacher))            # "shown", "broken" or "inconclusive"

The promise is that a pick *keeps* 98 % of what the teacher's return is above a floor. Candidates of a chain are tested
in an order that is fixed beforehand, each at the chain's whole level, and the first that fails ends the chain (Learn
then Test, Angelopoulos et al. 2021, arXiv:2110.01052): with four chains at a fourth of 5 % each, the chance that
anything is admitted that keeps less is at most 5 %, whichever of the admitted ones is then picked.

**As far as the test is valid.** No test on 50 episodes knows of falls that are in none of them. `validity_table` plays
the whole procedure on simulated returns and says how often a pick keeps less, and how much less.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.special import stdtr

from lib.config import ConfigError
from lib.study.stats.comparisons import MARGIN, one_sided_p
from lib.study.stats.intervals import MIN_INTERVAL, Estimate, StatisticsError, kept_return, pair

KEEP = 1 - MARGIN  # of the teacher's return above the floor
ALPHA = 0.05  # chance that any pick of a cell keeps less
CHAINS = 4  # that share it in the paper


# ------------------------------------------------------------------------------------------------------- the test


def keeps_less(arm, teacher, floor: float = 0.0, keep: float = KEEP, resamples: int = 10_000, seed: int = 0) -> float:
    """p-value of "the arm keeps at most `keep` of the teacher's mean return above `floor`"; small admits it.

    arm, teacher: (n,) in the same order of episodes; nan for a single one. Tested is that the mean of (arm − floor) −
    keep · (teacher − floor) is at most 0. The floor counts as known: its error enters with the weight 1 − keep.

    Of two studentised tests the larger p-value, because each of them errs where the other does not (the table of
    `validity_table`). Student's t admits an arm that falls now and then and is better in between too often: samples
    with few falls have a high mean and, at once, a small error. The bootstrap-t corrects for that skewness, and errs
    with few episodes where the teacher falls as often as the arm.

    Raises `NothingToKeep` for a teacher that is not above the floor, `StatisticsError` for missing returns and for a
    `keep` that is no share.
    """
    arm, teacher = pair(arm, teacher, "arm", "teacher")
    if not 0 < keep < 1:
        raise StatisticsError(f"keep={keep} must lie between 0 and 1, as 0.98 for 98 %.")
    above(teacher, floor)
    if arm.size < MIN_INTERVAL:
        return math.nan
    return float(TESTS["both"]((arm - floor) - keep * (teacher - floor), resamples, seed))


class NothingToKeep(ConfigError):
    """A teacher returns no more than what needs none."""


def above(teacher, least: float, what: str = "the floor") -> None:
    """Raises `NothingToKeep` unless the teacher's mean return is above `least`, which is that of `what`."""
    if not np.mean(teacher) > least:
        raise NothingToKeep(
            f"the teacher returns {np.mean(teacher):.4g} on average, and {what} is {least:.4g}: there is nothing to "
            "keep a share of; train it longer, or leave its cell out."
        )


def student_p(x):
    """p-value of "the mean of x is at most 0" by Student's t; x: (..., n) → (...). Without spread it is 0 or 1."""
    x = np.asarray(x, dtype=float)
    n, mean, error = x.shape[-1], x.mean(-1), x.std(-1, ddof=1) / math.sqrt(x.shape[-1])
    known = error <= 1e-12 * np.abs(x).max(-1)  # nothing but rounding
    return np.where(known, np.where(mean > 0, 0.0, 1.0), stdtr(n - 1, -mean / np.where(known, 1, error)))


def bootstrap_p(x, resamples: int = 10_000, seed: int = 0):
    """The same by bootstrap-t, at least 1 / (resamples + 1) where there is any spread."""
    x = np.asarray(x, dtype=float)
    known = x.std(-1, ddof=1) / math.sqrt(x.shape[-1]) <= 1e-12 * np.abs(x).max(-1)
    return np.where(known, student_p(x), one_sided_p(x, resamples, seed))


# name → (x, resamples, seed) → p-values
TESTS = {
    "t": lambda x, resamples, seed: student_p(x),
    "bootstrap-t": bootstrap_p,
    "both": lambda x, resamples, seed: np.maximum(student_p(x), bootstrap_p(x, resamples, seed)),
}


def fixed_sequence(p_values, level: float) -> list[bool]:
    """Which candidates are admitted: those before the first whose p-value is above `level` (or missing)."""
    passed = np.asarray(p_values, dtype=float) <= level
    return np.logical_and.accumulate(passed).tolist()


# -------------------------------------------------------------------------------------------- the promise, and falls


def kept_above(arm, teacher, floor: float = 0.0, **options) -> Estimate:
    """The share of the teacher's return above the floor that an arm keeps, see `kept_return`."""
    return kept_return(np.asarray(arm, dtype=float) - floor, np.asarray(teacher, dtype=float) - floor, **options)


def verdict(kept: Estimate, keep: float = KEEP) -> str:
    """What an interval of the share kept says of the promise: "shown" (all of it keeps it), "broken" (none of it does)
    or "inconclusive", also where there is no interval."""
    if kept.low >= keep:
        return "shown"
    return "broken" if kept.high < keep else "inconclusive"


def falls(arm: pd.DataFrame, teacher: pd.DataFrame, floor: float = 0.0) -> int:
    """Episodes of an arm that ended before the longest, or stayed under half of the teacher's mean above the floor.

    arm, teacher: rows with `return` and `length`. `lib.study.stats.intervals.share_limit` bounds their share.
    """
    longest = max(arm["length"].max(), teacher["length"].max())
    low = arm["return"] - floor < 0.5 * (teacher["return"].mean() - floor)
    return int(((arm["length"] < longest) | low).sum())


# -------------------------------------------------------------------------------------------------------- validity

# Shares of episodes that fall, of the teacher and of every candidate.
FALLS = ((0.0, 0.0), (0.0, 0.005), (0.0, 0.01), (0.0, 0.02), (0.0, 0.04), (0.05, 0.05), (0.1, 0.1))
FALLEN = 100.0  # a fall returns 0 to this
STEP = 0.01  # by which each candidate of a chain keeps less than the one before
CANDIDATES = 2
MOST = 1.02  # of the teacher's: what a candidate returns at most where neither falls


def validity(
    kept: float,
    falls: tuple[float, float],
    episodes: int,
    test: str = "both",
    cells: int = 1_200,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict | None:
    """How often the whole procedure picks wrongly, over simulated cells; a row of `validity_table`.

    Every cell has `CHAINS` chains, of which the first candidate keeps `kept` and the others less and less. What an
    episode lacks to 1000 is lognormal, one half of it the start state's, which all share; a share of the teacher's and
    of the candidates' episodes falls, independently. None where candidates would have to be better than `MOST`.
    """
    rng, lacking = np.random.default_rng(seed), 60 * math.exp(0.125)  # on average
    teacher_falls, arm_falls = falls
    standing, fallen = 1000 - lacking, FALLEN / 2
    truth = (1 - teacher_falls) * standing + teacher_falls * fallen
    start = 30 * rng.lognormal(0, 0.5, (cells, episodes))

    def returns(scale: float, share: float) -> np.ndarray:
        own = scale * (1000 - start - 30 * rng.lognormal(0, 0.5, start.shape))
        return np.where(rng.random(start.shape) < share, rng.uniform(0, FALLEN, start.shape), own)

    teacher, keeps = returns(1.0, teacher_falls), kept - STEP * np.arange(CANDIDATES)
    scales = (keeps * truth - arm_falls * fallen) / ((1 - arm_falls) * standing)
    if scales.max() > MOST:
        return None
    admitted = np.zeros((CHAINS, cells), int)  # how many of each chain
    for chain in range(CHAINS):
        for position, scale in enumerate(scales):
            going = np.flatnonzero(admitted[chain] == position)
            arm = returns(scale, arm_falls)
            for some in np.array_split(going, 1 + len(going) // 100):  # arrays that stay in the cache
                p = TESTS[test](arm[some] - KEEP * teacher[some], resamples, seed)
                admitted[chain, some] += p <= ALPHA / CHAINS
    # The teacher keeps all; at exactly 98 % a candidate counts as wrong, as it is there that errors are the likeliest.
    worst = np.array([1.0, *keeps])[admitted].min(axis=0)
    wrong = worst < KEEP + 1e-9
    return {
        "teacher_falls": teacher_falls,
        "falls": arm_falls,
        "kept": kept,
        "episodes": episodes,
        "test": test,
        "level": ALPHA,
        "wrong": float(wrong.mean()),
        "wrong_kept": float(worst[wrong].mean()) if wrong.any() else math.nan,
        "fallback": float((admitted == 0).mean()),
        "no_fall": (1 - arm_falls) ** episodes,
        "cells": cells,
    }


def validity_table(
    sizes=(30, 50), kept=(1.0, 0.98, 0.97, 0.96), cells: int = 1_200, resamples: int = 1_000
) -> pd.DataFrame:
    """One row per shares of falls, `kept`, number of episodes and test; about half a minute.

    `wrong` is the share of simulated cells of which any pick keeps 98 % or less, to be compared with `level`;
    `wrong_kept` what the worst pick of these keeps on average; `fallback` the share of chains that admit nothing, which
    is what it costs to ask. `no_fall` is the chance that a candidate does not fall in any of the episodes: where that
    is above a chain's share of the level, no test can be valid for a candidate that is good except when it falls, and
    it then costs about the share of the falls: up to 8 % of the return with 50 episodes, and 14 % with 30.
    """
    kinds = [(k, f, n, t) for f in FALLS for k in kept for n in sizes for t in TESTS]
    rows = [validity(*kind, cells=cells, resamples=resamples) for kind in kinds]
    return pd.DataFrame([row for row in rows if row])
