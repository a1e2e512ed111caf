"""What arms return in changed worlds: beside their own return in the teacher's world, and beside a planner there.

    table = summarise("walker-run-1m-1", episodes, reference="budget-128×2")
    counted(table)          # over the changed worlds: a row per arm

A planner that is asked at every step sees a changed world, and plans with a model that does not know it. Whether it is
needed there is a comparison in the same world, over the same start states.
"""

from __future__ import annotations

import pandas as pd

from lib.simulators.perturbations import KINDS
from lib.study.stats.intervals import Estimate, StatisticsError, bootstrap_ci, kept_return, paired_difference

WORLD = ["perturbation", "severity"]
NONE = "none"  # the teacher's own world


def summarise(cell: str, episodes: pd.DataFrame, reference: str) -> pd.DataFrame:
    """One row per arm and world of a cell.

    episodes: rows of arm, perturbation, severity (missing in the world "none"), episode_seed, return, planner_calls and
    length. `return`; `kept` of the arm's own return in the teacher's world; `of_planner`, the share of the `reference`
    arm's return in the same world, and `difference` to it: each with its 95 % interval over pairs of episodes;
    `calls` per decision; `gravest`, whether no world of this kind was changed more. Raises `StatisticsError` where an
    arm was not played in the teacher's world, or the reference not beside it, or with other episodes.
    """
    parts = {
        (arm, world, severity): mine.set_index("episode_seed").sort_index()
        for (arm, world, severity), mine in episodes.groupby(["arm", *WORLD], dropna=False, sort=False)
    }
    own = {arm: mine for (arm, world, _), mine in parts.items() if world == NONE}
    there = {(world, str(severity)): mine for (arm, world, severity), mine in parts.items() if arm == reference}
    gravest = {
        kind: max(mine["severity"], key=lambda severity: abs(severity - KINDS[kind]))
        for kind, mine in episodes[episodes["perturbation"] != NONE].groupby("perturbation")
    }
    rows = []
    for (arm, world, severity), mine in parts.items():
        planner, before = there.get((world, str(severity))), own.get(arm)
        for other, where in ((before, "in the teacher's world"), (planner, f"of {reference}, beside which it stands")):
            if other is None or not other.index.equals(mine.index):
                what = "has none" if other is None else "has other ones"
                raise StatisticsError(
                    f"Cell {cell}: there are episodes of {arm} in the world {world} {severity}, but the table {what} "
                    f"{where}; play the cell again with paper/perturbed.py."
                )
        row = {"cell": cell, "arm": arm, "perturbation": world, "severity": severity, "episodes": len(mine)}
        row |= {"reference": reference}
        row |= _with_ends("return", Estimate(mine["return"].mean(), *bootstrap_ci(mine["return"])))
        row |= _with_ends("kept", kept_return(mine["return"], before["return"]))
        row |= _with_ends("of_planner", kept_return(mine["return"], planner["return"]))
        row |= _with_ends("difference", paired_difference(mine["return"], planner["return"]))
        row |= {"calls": (mine["planner_calls"] / mine["length"]).mean(), "gravest": gravest.get(world) == severity}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("perturbation", key=lambda kinds: kinds.map(_order), kind="stable")


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and arm of what `summarise` gives: the changed `worlds` that it was played in, in how many of
    them it is shown to return less than the reference (`below`) or more (`above`), by 95 % intervals that nothing
    corrects for their number, its share of the reference's return there, the mean (`of_planner`) and the `least`, and
    the mean of its `calls` per decision.
    """
    changed = table[table["perturbation"] != NONE]
    changed = changed.assign(below=changed["difference_high"] < 0, above=changed["difference_low"] > 0)
    return (
        changed.groupby(["cell", "arm"], sort=False)
        .agg(
            worlds=("arm", "size"),
            below=("below", "sum"),
            above=("above", "sum"),
            of_planner=("of_planner", "mean"),
            least=("of_planner", "min"),
            calls=("calls", "mean"),
        )
        .reset_index()
    )


def _order(kind: str) -> int:
    return [NONE, *KINDS].index(kind)


def _with_ends(name: str, estimate: Estimate) -> dict:
    return dict(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))
