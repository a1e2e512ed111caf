"""Is an arm better than another one, and is it not much worse? Tests and tables over the same episodes.

    table = compare(rows)  # one row per cell, arm and arm that it is compared with

*Probability of improvement* is the share of start states from which an arm returns more than the other one, ties
counting one half. *Non-inferior* is an arm that is shown to lose less than a margin, stated beforehand, of the other's
mean return: not finding a difference does not show that.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.special import ndtri

from lib.study.stats.intervals import (
    CELL,
    MIN_INTERVAL,
    Estimate,
    StatisticsError,
    arms_by_seed,
    bootstrap_ci,
    on_planner_of,
    pair,
    paired_difference,
    shared,
    studentised,
    vector,
)

EVERY_STEP = ("budget", "best-of", "policy")  # schemes of arms that look at every state anew
TWINS = {  # scheme → what it is compared with: a role, and the scheme that has it
    "no-plan": ("with the plan", "two-tower"),
    "sensitive": ("no corrector", "gate-only-sensitivity"),
    "gated": ("no corrector", "gate-only-mismatch"),
    "plan-ahead+two-tower": ("no corrector", "plan-ahead"),
    "trusted": ("at every depth", "two-tower"),
    "trusted-gated": ("at every depth", "gated"),
}
DISTILLED = "distilled"  # the draft alone, which other drafts and a draft with a planner are compared with
CLONED = "cloned"
DRAFTS = (DISTILLED, CLONED, "prior+")
CHECKED = ("draft+", "clone+")  # how schemes begin that ask a planner beside one of the first two
MARGIN = 0.02  # of the mean return of the arm compared with
COSTS = ("planner_calls", "model_evaluations")  # of an episode


def probability_of_improvement(a, b, level: float = 0.95) -> Estimate:
    """Probability that a > b for a new pair, ties counting one half; a, b: (n,) in the same order of episodes.

    With Wilson's interval, which has a width also where all pairs fall to one side.
    """
    a, b = pair(a, b, "a", "b")
    n, p, z = a.size, float(np.mean((a > b) + 0.5 * (a == b))), float(ndtri((1 + level) / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, centre - half, centre + half)


def non_inferiority(arm, reference, margin: float = MARGIN, resamples: int = 10_000, seed: int = 0) -> float:
    """One-sided p-value of "the arm's mean is at most (1 − margin) × the reference's mean"; small means non-inferior.

    A studentised bootstrap of the pairs arm − (1 − margin) × reference. A t test takes an arm that seldom falls for
    non-inferior too often: episodes without a fall have a high mean and, at once, a small standard error; the tests of
    this function count how often. arm, reference: (n,) in the same order of episodes; nan for a single one.
    """
    arm, reference = pair(arm, reference, "arm", "reference")
    if not 0 < margin < 1:
        raise StatisticsError(f"margin={margin} must lie between 0 and 1, as 0.02 for 2 %.")
    if arm.size < MIN_INTERVAL:
        return math.nan
    return float(one_sided_p(arm - (1 - margin) * reference, resamples, seed))


def one_sided_p(x, resamples: int = 10_000, seed: int = 0):
    """p-value of "the mean of x is at most 0", by bootstrap-t; x: (..., n) → (...). At least 1 / (resamples + 1)."""
    value, error, t = studentised(x, 1.0, resamples, seed)
    # Without any spread the mean is what it is: only its sign counts.
    observed = np.where(error > 0, value / np.where(error > 0, error, 1), np.where(value > 0, 1e12, -1e12))
    return (1 + (t >= observed[..., None]).sum(-1)) / (resamples + 1)


def holm(p_values) -> np.ndarray:
    """p-values adjusted for their number (Holm 1979): below 5 %, the chance of any false finding among them is ≤ 5 %.

    p_values: (m,) → (m,); nan (no test) stays nan and does not count.
    """
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if order.size else steps
    return adjusted


def compare(
    rows: pd.DataFrame,
    step_ms: dict[str, float] | None = None,
    margin: float = MARGIN,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every arm against those that `references`, `rivals` and `twins` name: rows of cell, role, arm, paired by seed.

    rows: as `summarise` takes them, of one cell if `step_ms` is given: milliseconds of a control step by arm, where it
    was measured. `improvement` is the probability of improvement over `reference`, `difference` the
    mean difference in return, both with intervals; `p_non_inferior` is the one-sided p-value at `margin` (a fraction of
    the reference's mean), `p_holm` the same corrected for the number of arms with this role in the cell, of those that
    played all episodes of what they are compared with: conclusions are drawn of no others.

    Raises `StatisticsError` as `summarise` does.
    """
    options, tables = dict(resamples=resamples, seed=seed), []
    for cell, episodes in rows.groupby(CELL, sort=False):
        arms, table = arms_by_seed(episodes, "-".join(map(str, cell))), []
        for name in arms:
            others = references(name, arms) | rivals(name, arms, step_ms) | twins(name, arms)
            for role, reference in others.items():
                both = shared(arms[name], arms[reference])
                mine, theirs = (
                    vector(arm["return"], which) for arm, which in zip(both, (name, reference), strict=True)
                )
                improvement = probability_of_improvement(mine, theirs, level)
                difference = paired_difference(mine, theirs, level, **options)
                row = dict(zip(CELL, cell, strict=True))
                row |= {"arm": name, "role": role, "reference": reference, "episodes": len(mine)}
                for quantity, estimate in (("improvement", improvement), ("difference", difference)):
                    row |= dict(zip((quantity, f"{quantity}_low", f"{quantity}_high"), estimate, strict=True))
                row |= {"margin": margin, "p_non_inferior": non_inferiority(mine, theirs, margin, **options)}
                table.append(row | {"whole": len(mine) == len(arms[reference])})
        if table:
            table = pd.DataFrame(table)
            tested = table["p_non_inferior"].where(table.pop("whole"))
            tables.append(table.assign(p_holm=tested.groupby(table["role"]).transform(holm)))
    if not tables:
        raise StatisticsError("No arm has another one to be compared with; evaluate arms beside the teacher.")
    return pd.concat(tables, ignore_index=True)


def cost_ends(rows: pd.DataFrame, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Intervals of what each arm costs per episode: rows of cell and arm, columns `<cost>_low` and `<cost>_high`.

    rows: as `summarise` takes them. An arm without a gate costs the same in every episode: its interval has no width.
    """
    table = []
    for cell, episodes in rows.groupby([*CELL, "arm"], sort=False):
        row = dict(zip((*CELL, "arm"), cell, strict=True))
        for cost in COSTS:
            ends = bootstrap_ci(episodes[cost], level=level, resamples=resamples, seed=seed)
            row |= dict(zip((f"{cost}_low", f"{cost}_high"), ends, strict=True))
        table.append(row)
    return pd.DataFrame(table)


def references(name: str, arms: dict[str, pd.DataFrame]) -> dict[str, str]:
    """What an arm is compared with, among the arms of its cell: role → name of that arm.

    `teacher`; `open loop`, on the same planner and execution horizon; `every step`, its planner replanning at every
    step where that is not the teacher: budget-64×2 for 64×2+two-tower-3.
    """
    mine = arms[name].iloc[0]
    found = {"teacher": "teacher" if "teacher" in arms else None}
    # At an execution horizon of 1 there is no plan to leave uncorrected, so an open-loop twin exists only beyond it.
    if mine["execution_horizon"] > 1:
        found["open loop"] = on_planner_of(name, arms, "open-loop", mine["execution_horizon"])
    if not mine["standard_planner"]:
        found["every step"] = on_planner_of(name, arms, "budget", 1)
    return {role: reference for role, reference in found.items() if reference not in (None, name)}


def rivals(name: str, arms: dict[str, pd.DataFrame], step_ms: dict[str, float] | None = None) -> dict[str, str]:
    """What is cheap without speculation, for a draft and for an arm that executes plans for several steps: role → name
    of an arm.

    `policy`, the prior alone; `equal compute`, of the planners that replan at every step the one with the fewest model
    evaluations that are not below the arm's own; `equal time`, of these, the prior and the best of its samples the
    fastest that is not faster than the arm by `step_ms` (arm → milliseconds of a control step) and that returns more
    than whatever is faster than itself: time that is wasted makes no rival.
    """
    scheme, execution_horizon = arms[name].iloc[0][["scheme", "execution_horizon"]]
    if execution_horizon == 1 and scheme not in DRAFTS and not scheme.startswith(CHECKED):
        return {}
    spent = {other: table["model_evaluations"].mean() for other, table in arms.items()}
    times = {other: time for other, time in (step_ms or {}).items() if other in arms and time > 0}  # nan is not
    returns = {other: arms[other]["return"].mean() for other in _of(EVERY_STEP, times, arms)}
    faster = {other: [r for rival, r in returns.items() if times[rival] < times[other]] for other in returns}
    worth_it = {other: times[other] for other in returns if returns[other] > max(faster[other], default=-math.inf)}
    found = {
        "equal compute": _next(name, spent, ("budget",), arms),
        "equal time": _next(name, worth_it | {name: times.get(name, math.inf)}, EVERY_STEP, arms),
        "policy": "policy" if "policy" in arms else None,
    }
    return {role: rival for role, rival in found.items() if rival}


def twins(name: str, arms: dict[str, pd.DataFrame]) -> dict[str, str]:
    """What an ablation takes away, by comparison with the arm that differs in nothing else: role → name of that arm.

    `with the plan`, for an arm whose corrector is blind to the plan; `no corrector`, for one with the gate, or with the
    planned tail, that another has without one; `at every depth`, for a corrector that is trusted at some; `draft
    alone`, for a draft that a planner is asked beside, and for drafts that learnt otherwise.
    """
    scheme, execution_horizon = arms[name].iloc[0][["scheme", "execution_horizon"]]
    if scheme.startswith(CHECKED) or scheme in DRAFTS:
        alone = CLONED if scheme.startswith(CHECKED[1]) else DISTILLED
        return {"draft alone": alone} if alone in arms and name != alone else {}
    role, other = TWINS.get(scheme, (None, None))
    twin = role and on_planner_of(name, arms, other, execution_horizon)
    return {role: twin} if twin else {}


def _of(schemes: tuple[str, ...], names, arms: dict[str, pd.DataFrame]) -> list[str]:
    return [name for name in names if arms[name]["scheme"].iloc[0] in schemes]


def _next(name: str, costs: dict[str, float], schemes: tuple[str, ...], arms: dict[str, pd.DataFrame]) -> str | None:
    """Of the arms of these schemes, the one with the least cost that is not below the named arm's; None if none."""
    enough = [other for other in _of(schemes, costs, arms) if costs[other] >= costs.get(name, math.inf)]
    return min(enough, key=costs.get, default=None)
