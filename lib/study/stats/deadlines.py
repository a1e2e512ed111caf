"""What is kept of the return when plans take time, and down to how slow a computer.

    table = summarise("walker-run-1m-1", episodes, steps, period_ms=50.0)
    beside = worlds("walker-run-1m-1", episodes)         # the same arms beside what never plans, in changed worlds too
    delay_on(20.0, solve_ms=7.5, period_ms=50.0)         # 3 decisions, on a computer 20 times slower than the one timed

**What is in time.** A decision has one control period, the physics of it. While a solve takes no more than that it is
waited for, and the world waits: all that plan are the planner at every step. A solve that takes x > 1 periods is used
at the first decision after it is done, ⌈x⌉ decisions after the observation that it was begun with; there is no delay of
1. Who plans in the background first finds where its plan will arrive, d decisions on, which is not timed: it is told as
d steps in the foreground. A step in the foreground that takes more than a period is late itself: no arm is followed
beyond that. Times are 95th percentiles, so that 19 of 20 solves are there by then. The computer has two cores of that
speed, one that plans and one that acts; solves are timed one after the other, as the first makes them.

Between delays that were played, the return is taken to be that of the next longer one; beyond the longest it is not
known.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lib.study.stats.intervals import Estimate, StatisticsError, bootstrap_ci, kept_return, paired_difference

KEEP = 0.95  # of the return without delay, for the slowest computer that still has it
EVERY_STEP = "every-step"  # the planner without delay
RIVAL = "cloned"  # acts at once, and plans never
WAY = ["arm", "planner"]
MEANS = ("plan_age", "action_change", "planner_calls")
TIME = "p95_ms"
_nothing = Estimate(math.nan, math.nan, math.nan)


def delay_on(slower: float, solve_ms: float, period_ms: float) -> int:
    """Decisions until a plan is used, on a computer so many times slower."""
    periods = slower * solve_ms / period_ms
    return 0 if periods <= 1 else math.ceil(periods)


def slowest_with(delay: int, solve_ms: float, period_ms: float) -> float:
    """How many times slower a computer is at most on which plans are used after so many decisions, or earlier."""
    return max(delay, 1) * period_ms / solve_ms


def slowest_keeping(ends, kept, last: float, keep: float = KEEP) -> tuple[float, bool]:
    """The slowest computer on which an arm still keeps a share `keep`, and whether it might on slower ones, too, with
    longer delays than were played.

    ends, kept: (n,), of each delay, the shortest first, the slowest computer that has it and the share kept; `last` is
    the slowest on which the step in the foreground is in time. 0 where the shortest delay keeps less already; nan
    where a time is missing.
    """
    if math.isnan(last) or np.isnan(np.asarray(ends, dtype=float)).any():
        return math.nan, False
    reached = 0.0
    for end, share in zip(ends, kept, strict=True):
        if end > reached and not share >= keep:
            return min(reached, last), False
        reached = max(end, reached)
    return min(reached, last), reached < last


def summarise(cell: str, episodes: pd.DataFrame, steps: pd.DataFrame, period_ms: float) -> pd.DataFrame:
    """One row per arm, planner and delay of a cell.

    episodes: rows of `lib.study.delays` (arm, planner, delay, episode_seed, return, `MEANS`); steps: rows of arm,
    planner, part (`foreground`, `solve`) and times; period_ms: of a decision, nan where it is not known.

    `return` and `kept` with their 95 % intervals, the latter of the cell's `reference`, the largest planner without
    delay; `kept_own` of the arm's own planner without delay. Means of `MEANS`. Times `foreground_ms` and `solve_ms`,
    and `slower`, the slowest computer that has this delay (see the module). The same in all rows of an arm and planner:
    `slower_95`, the slowest computer on which it still keeps `KEEP` of the reference, and `open`, whether it is only
    known that it is at least that; `slower_95_low`, the same of the lower ends of the intervals. Raises
    `StatisticsError` where no planner was played without delay, and for an arm that has an episode twice, or one that
    the reference has not.
    """
    rows, parts = [], {one: mine.set_index("episode_seed") for one, mine in episodes.groupby(
        [*WAY, "delay"], dropna=False, sort=False)}  # fmt: skip
    own = {planner: mine for (arm, planner, _), mine in parts.items() if arm == EVERY_STEP}
    if not own:
        raise StatisticsError(f"Cell {cell} has no planner without delay, of whose return others keep a share.")
    reference = max(own, key=_evaluations)
    for (arm, planner, delay), mine in parts.items():
        row = {"cell": cell, "arm": arm, "planner": planner, "delay": delay, "episodes": len(mine)}
        row |= _with_ends("return", Estimate(mine["return"].mean(), *bootstrap_ci(mine["return"])))
        row |= {"reference": reference} | _with_ends("kept", _kept(cell, arm, mine, own[reference]))
        row |= _with_ends("kept_own", _kept(cell, arm, mine, own[planner]) if planner in own else [math.nan] * 3)
        row |= {name: mine[name].mean() for name in MEANS} | _times(arm, planner, steps) | {"period_ms": period_ms}
        last = period_ms / row["foreground_ms"]
        rolled = delay * row["foreground_ms"] if arm.startswith("async") else 0.0
        planned = slowest_with(delay, row["solve_ms"] + rolled, period_ms) if isinstance(planner, str) else math.inf
        row["slower"] = (
            math.nan if math.isnan(planned) else min(last, planned)
        )  # of a solve that was not timed: unknown
        rows.append(row)
    table = pd.DataFrame(rows).astype({"delay": "Int64"}).assign(slower_95=math.nan, open=False, slower_95_low=math.nan)
    for (arm, planner), mine in table.groupby(WAY, dropna=False, sort=False):
        way = with_start(table, arm, planner)
        found = slowest_keeping(way["slower"], way["kept"], period_ms / mine["foreground_ms"].iloc[0])
        table.loc[mine.index, "slower_95"], table.loc[mine.index, "open"] = found
        low, _ = slowest_keeping(way["slower"], way["kept_low"], period_ms / mine["foreground_ms"].iloc[0])
        table.loc[mine.index, "slower_95_low"] = low
    return table


def worlds(cell: str, episodes: pd.DataFrame) -> pd.DataFrame:
    """One row per world, arm, planner and delay of a cell.

    episodes: as of `summarise`, and perturbation and severity, which is nan in the teacher's own world, "none".
    `return`; `of_planner`, the share of the return of the arm's own planner without delay in the same world, and for
    what plans never of the largest one's; `difference` to the `RIVAL` there, which acts at once: each with its 95 %
    interval over pairs of episodes, and nan where there is nothing to stand beside; `above_rival`, whether that
    interval is above 0.
    """
    rows, parts = [], {one: mine.set_index("episode_seed") for one, mine in episodes.groupby(
        ["perturbation", "severity", *WAY, "delay"], dropna=False, sort=False)}  # fmt: skip
    own = {(str(world), planner): mine for (*world, arm, planner, _), mine in parts.items() if arm == EVERY_STEP}
    largest = max((planner for _, planner in own), key=_evaluations, default="")
    rivals = {str(world): mine for (*world, arm, _, _), mine in parts.items() if arm == RIVAL}
    for (*world, arm, planner, delay), mine in parts.items():
        row = {"cell": cell} | dict(zip(("perturbation", "severity"), world, strict=True))
        row |= {"arm": arm, "planner": planner, "delay": delay, "episodes": len(mine)}
        row |= _with_ends("return", Estimate(mine["return"].mean(), *bootstrap_ci(mine["return"])))
        reference = own.get((str(world), planner if isinstance(planner, str) else largest))
        rival = rivals.get(str(world))
        row |= _with_ends("of_planner", _nothing if reference is None else _kept(cell, arm, mine, reference))
        row |= _with_ends("difference", _nothing if rival is None else _difference(cell, arm, mine, rival))
        rows.append(row | {"above_rival": row["difference_low"] > 0})
    return pd.DataFrame(rows).astype({"delay": "Int64"})


def with_start(table: pd.DataFrame, arm: str, planner) -> pd.DataFrame:
    """The rows of a cell that are an arm on a planner, the shortest delay first: that of the planner at every step."""
    if pd.isna(planner):
        return table[table["planner"].isna() & (table["arm"] == arm)]
    mine = table[table["planner"].eq(planner) & table["arm"].isin([arm, EVERY_STEP])]
    return mine.sort_values("delay", kind="stable")


def computers(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of cell, arm, planner, delay, `from` and `to`: between which computers an arm has a delay, how many times
    slower than the one that was timed; `kept` and its ends there.

    table: as `summarise` gives it. A delay that no computer has, because the step in the foreground is late itself or
    another delay is as fast, has no row.
    """
    rows = []
    for (_, arm, planner), mine in table.groupby(["cell", *WAY], dropna=False, sort=False):
        begin = 0.0
        for _, row in with_start(table[table["cell"] == mine["cell"].iloc[0]], arm, planner).iterrows():
            if row["slower"] > begin:
                about = {name: row[name] for name in ("cell", "planner", "delay", "kept", "kept_low", "kept_high")}
                rows.append(about | {"arm": arm, "from": begin, "to": row["slower"], "episodes": row["episodes"]})
                begin = row["slower"]
    columns = ["cell", *WAY, "delay", "from", "to", "kept", "kept_low", "kept_high", "episodes"]
    return pd.DataFrame(rows, columns=columns)


def _evaluations(planner: str) -> int:
    return math.prod(map(int, planner.split("×")))


def _with_ends(name: str, estimate) -> dict:
    return dict(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))


def _kept(cell: str, arm: str, mine: pd.DataFrame, reference: pd.DataFrame) -> Estimate:
    """The share of the reference's return over the same episodes."""
    return kept_return(mine["return"], _beside(cell, arm, mine, reference))


def _difference(cell: str, arm: str, mine: pd.DataFrame, reference: pd.DataFrame) -> Estimate:
    """The mean difference to the reference's return over the same episodes."""
    return paired_difference(mine["return"], _beside(cell, arm, mine, reference))


def _beside(cell: str, arm: str, mine: pd.DataFrame, reference: pd.DataFrame) -> pd.Series:
    """The reference's returns of an arm's episodes."""
    if mine.index.has_duplicates or not mine.index.isin(reference.index).all():
        raise StatisticsError(
            f"Cell {cell}: {arm} has episodes twice, or others than what it stands beside; play them again."
        )
    return reference.loc[mine.index, "return"]


def _times(arm: str, planner, steps: pd.DataFrame) -> dict:
    """foreground_ms and solve_ms of an arm on a planner; nan where they were not measured.

    `late` does nothing but hand over what `late-hold` does; the planner at every step does nothing but solve.
    """
    on = steps["planner"].eq(planner) if isinstance(planner, str) else steps["planner"].isna()
    step = {"late": "late-hold"}.get(arm, arm)
    foreground = steps.loc[on & (steps["arm"] == step) & (steps["part"] == "foreground"), TIME]
    solve = steps.loc[on & (steps["part"] == "solve"), TIME]
    first = {"foreground_ms": foreground, "solve_ms": solve}
    found = {name: float(times.iloc[0]) if len(times) else math.nan for name, times in first.items()}
    return found | ({"foreground_ms": found["solve_ms"]} if arm == EVERY_STEP else {})
