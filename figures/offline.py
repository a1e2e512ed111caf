"""Which offline metric tells how a world model will plan: a forest plot of correlations, and the cells behind it.

    python figures/offline.py --profile quick

reads data/results/quick/offline/, writes figures/quick/offline.{svg,pdf,png} (correlations) and offline-cells.{…}
(every cell, a row of panels per target and task).
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import GRID, INK, MUTED
from lib.records import paths
from lib.records.keys import ResultError, shown
from lib.records.store import how_to_make, read_table
from lib.study.model_quality.tables import ALL, ALL_RANKS

METRIC_TITLES = {
    "m1": "M1 one-step error",
    "m2": "M2 open-loop error",
    "m3": "M3 action ranking",
    "m4": "M4 candidate ranking",
    "m5": "M5 regret",
}
TARGET_TITLES = {
    "cpg": "Planning gap",
    "cpg_return": "Planning gap, return",
    "teacher_return": "Teacher's return",
    "kept_e3": "Return kept, E = 3",
    "kept_e6": "Return kept, E = 6",
}
SCATTERED = {"cpg": "Planning gap", "teacher_return": "Teacher's return"}  # the targets that cells are shown for
# Okabe–Ito colours and closed shapes: told apart with every common colour blindness, and in black and white.
LOOKS = (("#0072B2", "circle"), ("#D55E00", "square"), ("#009E73", "triangle-up"), ("#CC79A7", "diamond"))
POOLED = (INK, "cross")
LABELS, GAP = 92, 8  # units for the metrics' names, and between panels
LANE, ROW = 8, 6  # units of a task's lane, and free between metrics
AXIS, PANEL = 46, 62  # units for the first axis of a row of cells, and the height of its panels


def forest(table: pd.DataFrame) -> alt.TopLevelMixin:
    """ρ of each metric and target, turned so that right is as expected, for every task and over all by ranks.

    A pale bar is the range with any one cell left out; a dark line the 95 % interval, where there is one.
    """
    table = table[(table["bank"] == "mixed") & table["metric"].isin(METRIC_TITLES) & table["task"].ne(ALL)]
    tasks = [t for t in table["task"].unique() if t != ALL_RANKS] + [ALL_RANKS] * (ALL_RANKS in set(table["task"]))
    width = (charts.FULL_WIDTH - LABELS - GAP * (len(TARGET_TITLES) - 1)) / len(TARGET_TITLES)
    panels = [_forest_panel(turned(table, target), target, tasks, width) for target in TARGET_TITLES]
    return alt.hconcat(*panels, spacing=GAP).resolve_scale(color="shared", shape="shared")


def turned(table: pd.DataFrame, target: str) -> pd.DataFrame:
    """The rows of a target with ρ and its ranges multiplied by the sign that ρ should have."""
    mine = table[table["target"] == target].dropna(subset=["spearman"]).copy()
    mine["name"] = mine["metric"].map(METRIC_TITLES)
    mine["rho"] = mine["spearman"] * mine["expected"]
    for first, last in (("low", "high"), ("loo_min", "loo_max")):
        ends = pd.concat([mine[first] * mine["expected"], mine[last] * mine["expected"]], axis=1)
        mine[first], mine[last] = ends.min(axis=1, skipna=False), ends.max(axis=1, skipna=False)
    return mine


def _forest_panel(rows: pd.DataFrame, target: str, tasks: list[str], width: float) -> alt.LayerChart:
    first = target == next(iter(TARGET_TITLES))
    looks = {task: POOLED if task == ALL_RANKS else LOOKS[i % len(LOOKS)] for i, task in enumerate(tasks)}
    legend = alt.Legend(title=None, orient="top", offset=2, labelLimit=0, symbolOpacity=1)
    colour = alt.Color("task:N", scale=alt.Scale(domain=tasks, range=[c for c, _ in looks.values()]), legend=legend)
    shape = alt.Shape("task:N", scale=alt.Scale(domain=tasks, range=[s for _, s in looks.values()]), legend=legend)
    extent = LABELS - 6 if first else 0
    axis = alt.Axis(labels=first, ticks=False, domain=False, minExtent=extent, maxExtent=extent, labelLimit=0)
    names = list(METRIC_TITLES.values())
    y = alt.Y("name:N", sort=names, title=None, axis=axis, scale=alt.Scale(domain=names, paddingInner=0.3))
    lane = alt.YOffset("task:N", sort=tasks, scale=alt.Scale(domain=tasks))

    def x(field: str) -> alt.X:
        ticks = alt.Axis(grid=False, values=[-1, 0, 1], format="d")
        return alt.X(field, type="quantitative", title=None, axis=ticks, scale=alt.Scale(domain=[-1, 1]))

    base = alt.Chart(rows).encode(y=y, yOffset=lane, color=colour)
    layers = [
        alt.Chart(pd.DataFrame({"x": [0]})).mark_rule(color=GRID, strokeWidth=1).encode(x=x("x")),
        base.transform_filter("isValid(datum.loo_min)")
        .mark_rule(strokeWidth=3.5, opacity=0.3)
        .encode(x=x("loo_min"), x2="loo_max"),
        base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=0.9).encode(x=x("low"), x2="high"),
        base.mark_point(filled=True, size=24, opacity=1).encode(x=x("rho"), shape=shape),
    ]
    height = len(names) * (LANE * max(len(tasks), 1) + ROW)
    title = alt.Title(TARGET_TITLES[target], frame="group", offset=3)
    return alt.layer(*layers).properties(width=width, height=height, title=title)


def scatter(cells: pd.DataFrame) -> alt.TopLevelMixin:
    """Every cell: a row of panels per target and task, a column per metric; targets with their 95 % intervals."""
    width = (charts.FULL_WIDTH - AXIS - GAP * (len(METRIC_TITLES) - 1)) / len(METRIC_TITLES)
    tasks = sorted(cells["task"].unique())
    places, rows = [(target, task) for target in SCATTERED for task in tasks], []
    for target, task in places:
        mine, bottom = cells[cells["task"] == task], (target, task) == places[-1]
        panels = [_cells_panel(mine, metric, target, width, bottom) for metric in METRIC_TITLES]
        rows.append(alt.hconcat(*panels, spacing=GAP).properties(title=alt.Title(task, offset=3)))
    return alt.vconcat(*rows, spacing=6).resolve_scale(color="shared")


def _cells_panel(cells: pd.DataFrame, metric: str, target: str, width: float, bottom: bool) -> alt.LayerChart:
    """One task, metric and target; only the first of a row and the `bottom` row have titles of axes."""
    first = metric == next(iter(METRIC_TITLES))
    points = cells.dropna(subset=[metric, target])
    points = points.assign(**{c: points[c].astype(float) for c in (metric, target, f"{target}_low", f"{target}_high")})
    extent = AXIS - 18 if first else 0
    y_axis = alt.Axis(tickCount=3, labels=first, ticks=first, domain=first, minExtent=extent, maxExtent=extent)
    ends = cells[[f"{target}_low", f"{target}_high", target]].astype(float).stack()
    domain = [float(ends.min()), float(ends.max())] if len(ends) else [0, 1]

    def y(field: str) -> alt.Y:
        words = SCATTERED[target] if first else None
        return alt.Y(field, type="quantitative", title=words, axis=y_axis, scale=alt.Scale(domain=domain))

    x = alt.X(
        metric,
        type="quantitative",
        title=METRIC_TITLES[metric] if bottom else None,
        axis=alt.Axis(grid=False, tickCount=3),
        scale=alt.Scale(zero=False, padding=6),
    )
    legend = alt.Legend(
        title="Decisions of training", orient="top", format="~s", gradientLength=110, gradientThickness=6, offset=2
    )
    colour = alt.Color("decisions:Q", scale=alt.Scale(scheme="viridis"), legend=legend)
    base = alt.Chart(points).encode(x=x)
    layers = [
        base.transform_filter(f"isValid(datum.{target}_low)")
        .mark_rule(color=MUTED, strokeWidth=0.7)
        .encode(y=y(f"{target}_low"), y2=f"{target}_high"),
        base.mark_point(filled=True, size=22, opacity=1).encode(y=y(target), color=colour),
    ]
    return alt.layer(*layers).properties(width=width, height=PANEL)


def main(arguments: list[str] | None = None) -> None:
    def figures(profile: str) -> dict[str, alt.TopLevelMixin]:
        folder = paths.results(profile) / "offline"
        cells = read_table(folder / "cells.csv").dropna(subset=["decisions"])
        if cells.empty:
            file = folder / "cells.csv"
            raise ResultError(f"{shown(file)} holds no cell of a known training; {how_to_make(file)}.")
        return {"offline-cells": scatter(cells), "offline": forest(read_table(folder / "correlations.csv"))}

    pages.command_line(__doc__, figures, arguments)


if __name__ == "__main__":
    main()
