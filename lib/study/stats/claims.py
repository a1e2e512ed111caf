"""What the evaluation's tables show, as named facts: no sentence and no figure concludes anything by itself.

    facts = evaluation(summary, comparisons, rival="budget-64×2") | {"headline": headline(picks, summary)}

Facts are plain values: `lib.study.claims` writes them to `claims.json`. *Good* is an arm that played all of its
teacher's episodes and is shown to lose less than the margin, by a test that is corrected for the number of arms. Of
good arms the cheapest is the one with the fewest model evaluations. *Own* cells are those of this project's teachers.
"""

from __future__ import annotations

import math

import pandas as pd

from lib.config import PlannerConfig
from lib.study.arms import Arm, make_arm
from lib.study.stats.comparisons import COSTS, MARGIN

LEVEL = 0.05  # of a test
SHARED = ("calls_kept", "evaluations_kept")  # columns whose averages over the own cells are facts


def side(low: float, high: float, least: float = 0.0, most: float | None = None) -> str | None:
    """Where an interval lies: "above" or "below" a number or another interval, else "unclear"; None without one."""
    most = least if most is None else most
    if any(pd.isna(end) for end in (low, high, least, most)):
        return None
    return "above" if low > most else "below" if high < least else "unclear"


def value(number) -> float | None:
    """A number of a table; None where it is missing."""
    return None if pd.isna(number) else float(number)


# ----------------------------------------------------------------------------------------------------------- cells


def evaluation(summary: pd.DataFrame, comparisons: pd.DataFrame, rival: str) -> dict:
    """The facts about arms, about cells, and about all own cells together.

    summary, comparisons: the tables of these names; `rival` is the smaller planner at every step that arms on it are
    measured by. `margin`, `rival`; the `schemes` that were evaluated; `arms`: cell → arm → `arm_facts`; `cells`: cell
    → `cell_facts`; and `over_cells`.
    """
    p = comparisons[comparisons["role"] == "teacher"].set_index(["cell", "arm"])["p_holm"]
    arms = {cell: rows.set_index("arm") for cell, rows in summary.groupby("cell", sort=False)}
    for cell, rows in arms.items():
        rows["whole"] = rows["episodes"] == rows["episodes"].get("teacher")
        rows["shown"] = [p.get((cell, arm), math.nan) < LEVEL for arm in rows.index]
    facts = {cell: {arm: arm_facts(arm, row) for arm, row in rows.iterrows()} for cell, rows in arms.items()}
    return {
        "margin": MARGIN,
        "rival": rival,
        "schemes": list(dict.fromkeys(parts(arm).scheme for arm in summary["arm"])),
        "arms": facts,
        "cells": {cell: cell_facts(rows, facts[cell], rival) for cell, rows in arms.items()},
    } | over_cells({cell: rows for cell, rows in arms.items() if is_own(cell, rows.iloc[0])})


def is_own(cell: str, row: pd.Series) -> bool:
    """Whether a cell bears the name of its task, size and seed: a teacher from elsewhere has a name of its own."""
    return cell == f"{row['task']}-{row['size']}-{row['teacher_seed']}"


def parts(arm: str) -> Arm:
    """What an arm is made of, by its name."""
    return make_arm(arm, PlannerConfig())


def budget(arm: Arm) -> tuple[int, int] | None:
    return arm.planner and (arm.planner.samples, arm.planner.iterations)


def arm_facts(name: str, row: pd.Series) -> dict:
    """Facts of one arm in one cell.

    `whole`: it played all of its teacher's episodes; `non_inferior`: it is shown to be. `gain`: where the interval of
    its gain over open loop lies. `plans`: whose plans it executes for several steps, "standard", "smaller" or None;
    `corrected`: by a corrector that sees the plan, without a gate; `gated`: a gate may end a plan early; `every_step`:
    the arm that asks its planner at every step (for one that never plans the teacher).
    """
    arm = parts(name)
    standard = arm.standard_planner or not arm.planner
    return {
        "whole": bool(row["whole"]),
        "non_inferior": bool(row["shown"]),
        "gain": side(row["gain_low"], row["gain_high"]),
        "plans": None if arm.execution_horizon == 1 else "standard" if standard else "smaller",
        "corrected": arm.corrector in ("two_tower", "temporal") and not arm.gate,
        "gated": bool(arm.gate),
        "every_step": "teacher" if standard else "budget-{}×{}".format(*budget(arm)),
    }


def cell_facts(rows: pd.DataFrame, arms: dict[str, dict], rival: str) -> dict:
    """Facts of one cell; rows: its arms, by name.

    `good`: these arms, cheapest first. `cheapest`: the first of all, of those with fewer samples or iterations at every
    step, and of those with several steps per plan of the standard and of a smaller planner; None where there is none.
    `below_rival`: those with fewer model evaluations than the rival. `rival`: "not shown" to be good, or "cheapest" of
    the good arms, or "undercut". `least`: for each cost the good arms that the interval of no other one lies below.
    """
    good = rows[rows["whole"] & rows["shown"] & (rows.index != "teacher")]
    good = good.sort_values("model_evaluations", kind="stable")
    names, limit = list(good.index), rows["model_evaluations"].get(rival, math.nan)

    def first(these) -> str | None:
        return next((name for name in names if these(name)), None)

    return {
        "good": names,
        "cheapest": {
            "all": first(lambda name: True),
            "every step": first(lambda name: parts(name).scheme == "budget"),
            "standard": first(lambda name: arms[name]["plans"] == "standard"),
            "smaller": first(lambda name: arms[name]["plans"] == "smaller"),
        },
        "below_rival": list(good.index[good["model_evaluations"] < limit]),
        "rival": "not shown" if rival not in names else "cheapest" if rival == names[0] else "undercut",
        "least": {cost: least(good, cost) for cost in (*COSTS, "step_ms")},
    }


def least(arms: pd.DataFrame, cost: str) -> list[str]:
    """The arms of which this cost is the least, or not told from it: the interval of no other one lies below theirs."""
    ends = arms.reindex(columns=[f"{cost}_low", f"{cost}_high"]).astype(float).dropna()
    return list(ends.index[ends.iloc[:, 0] <= ends.iloc[:, 1].min()])


def over_cells(own: dict[str, pd.DataFrame]) -> dict:
    """Facts of all own cells together; own: their arms, by cell.

    `everywhere`: where there are several, the arms that all of them have, `averages` of their shares of the teacher's
    costs, and `shown_on`, on how many they are non-inferior. `steady`: of the smaller planners that are asked at every
    step the one that is non-inferior on most of them, of several the cheapest; `steady_on_all`: the cheapest one that
    is on all of them, or None.
    """
    first, *others = own.values() or [pd.DataFrame()]
    everywhere = [arm for arm in first.index if all(arm in rows.index for rows in others)] if others else []
    averages = {
        arm: {column: value(sum(rows.loc[arm, column] for rows in own.values()) / len(own)) for column in SHARED}
        for arm in everywhere
    }
    shown_on = {arm: sum(bool(rows.loc[arm, "shown"]) for rows in own.values()) for arm in everywhere}
    cheap = sorted(
        (arm for arm in everywhere if parts(arm).scheme == "budget"), key=lambda arm: averages[arm]["evaluations_kept"]
    )
    return {
        "own": list(own),
        "everywhere": everywhere,
        "averages": averages,
        "shown_on": shown_on,
        "steady": max(cheap, key=shown_on.get, default=None),
        "steady_on_all": next((arm for arm in cheap if shown_on[arm] == len(own)), None),
    }


# -------------------------------------------------------------------------------------------- the one configuration


def headline(picks: pd.DataFrame, summary: pd.DataFrame, rival: str) -> dict | None:
    """Facts of the one configuration; picks: the table of `lib.study.selection.pick`. None where it chose none.

    `arm`; `picked`, by the rule on these episodes, and whether that `passes` on every cell; `earlier`, picked before,
    and whether ours is `repicked` since. `tried`: own cells that it is picked on, `untried`: the others, of these
    `known` with the task of one that it is picked on, and `unseen`. `on_rival`: its planner is the rival's. `twin`:
    open loop on the same planner with as many steps, and whether it is `twin_everywhere` in the own cells.
    `gate_isolated`: it has no gate, or an arm has its gate and no corrector. `best_cell`: the own cell of which it
    keeps most, and `kept_elsewhere`, the mean over the others.
    """
    chosen = picks.loc[picks["chosen"].astype(bool), "arm"].unique()
    if not len(chosen):
        return None
    name, cells = chosen[0], {cell: rows.set_index("arm") for cell, rows in summary.groupby("cell", sort=False)}
    own = {cell: rows for cell, rows in cells.items() if is_own(cell, rows.iloc[0])}
    picked = picks[picks["picked"].astype(bool)]
    before = picks[picks["earlier"].astype(bool)] if "earlier" in picks else picks[:0]
    earlier = before["arm"].iloc[0] if len(before) else None
    tried = [cell for cell in own if cell in set(picks["cell"])]
    untried = [cell for cell in own if cell not in tried]
    tasks = {own[cell]["task"].iloc[0] for cell in tried}
    known = [cell for cell in untried if own[cell]["task"].iloc[0] in tasks]
    mine, others = parts(name), {arm: parts(arm) for arm in summary["arm"].unique()}
    twins = [arm for arm, of in others.items() if of.scheme == "open-loop" and budget(of) == budget(mine)]
    twins = [arm for arm in twins if others[arm].execution_horizon == mine.execution_horizon]
    kept = pd.Series({cell: rows["kept"].get(name, math.nan) for cell, rows in own.items()}, dtype=float)
    best = kept.idxmax() if kept.notna().any() else None
    return {
        "arm": name,
        "picked": picked["arm"].iloc[0],
        "passes": bool((picked.loc[picked["cell"].isin(tried), "p_non_inferior"] < picked["level"]).all()),
        "earlier": earlier,
        "repicked": earlier not in (None, name),
        "tried": tried,
        "untried": untried,
        "known": known,
        "unseen": [cell for cell in untried if cell not in known],
        "on_rival": budget(mine) == budget(parts(rival)),
        "twin": twins[0] if twins else None,
        "twin_everywhere": bool(twins) and all(twins[0] in rows.index for rows in own.values()),
        "gate_isolated": not mine.gate or any(arm.gate == mine.gate and not arm.corrector for arm in others.values()),
        "best_cell": best,
        "kept_elsewhere": value(kept.drop(best).mean()) if best and len(kept) > 1 else None,
    }


# ------------------------------------------------------------------------------------------------------ correctors


def removed(depths: pd.DataFrame) -> dict:
    """Of the error between plan and floor, the share that a corrector removes at each depth (`shares`), and whether it
    adds error somewhere (`worse`); 0 where the plan is at the floor. depths: errors of a corrector by depth."""
    plan, mine, floor = (depths[f"{column}_mse"] for column in ("plan", "corrector", "teacher_floor"))
    shares = ((plan - mine) / (plan - floor)).where(plan > floor, 0.0).where((plan + mine + floor).notna())
    return {"shares": [value(share) for share in shares], "worse": bool(shares.notna().all() and (shares < 0).any())}
