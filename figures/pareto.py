"""Return kept against planner calls, model evaluations and step time: over all cells, and a row of panels per cell.

    python figures/pareto.py --profile quick

reads data/results/quick/horizon/summary.csv, statistics/aggregate.csv, and of decision_transformer/ the policies that
learnt from expert episodes of the same cells; writes figures/quick/pareto.{svg,pdf,png}. Of more than two cells those
with the most episodes have a row there, and the others in pareto-cells.{…}.
"""

from __future__ import annotations

import math
from pathlib import Path

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import GRID, INK, MUTED
from figures.scales import Scale, cost_floor, cost_scale, cost_ticks, kept_scale, kept_ticks
from lib.files import files
from lib.records import paths
from lib.records.store import read_table
from lib.study.arms import ARM_COLUMNS

# Column of the table → title of the axis, d3 format of its numbers.
COSTS = {
    "planner_calls": ("Planner calls per episode", "~g"),
    "model_evaluations": ("Model evaluations per episode", "~s"),
    "step_ms": ("Time of a control step (ms)", "~g"),
}
Y_TITLE, SHORT_Y_TITLE = "Return kept (% of teacher)", "Return kept (%)"
AXIS, GAP = 40, 13  # units for the axis of the first panel of a row, and between panels
HEIGHT, ROW_EXTRA = 165, 26  # of a panel at most, and what a row needs beside its panels
# Cells with a row of their own and the height of all rows: beside text, and on a page of its own.
MOST, ROWS_HEIGHT = 2, 430
MOST_OF_PAGE, PAGE_HEIGHT = 6, 560
ALL = "mean over all cells"
LOW = 110  # a panel that is lower has smaller marks and a shorter title
REACH = 2  # units that a mark may stand beside its number: less than the radius of the smallest mark
LEGEND_COLUMNS, LEGEND_LINE = 5, 11
# What learnt offline from the teacher's episodes and plans nothing.
OFFLINE = {
    "decision-transformer": charts.Family("Decision Transformer", "#332288", "M-1,-1H1V1H.35V-.3H-.35V1H-1Z"),
    "behaviour-cloning": charts.Family("behaviour cloning", "#332288", "M0,-1L1,.1H.4V1H-.4V.1H-1Z"),
}


def size(execution_horizon: int, height: float = HEIGHT) -> float:
    """Area of a mark: the larger the more steps of each plan are executed; all are smaller in a low panel."""
    return (18 + 6 * execution_horizon) * (1 if height > LOW else 0.7)


def look(arm: pd.Series) -> dict[str, str]:
    """Family, colour, filling and shape of an arm's mark; hollow on a smaller planner."""
    family = OFFLINE.get(arm["scheme"]) or charts.family(arm["scheme"])
    fill = "white" if charts.small_planner(arm) else family.colour
    return {"family": family.name, "colour": family.colour, "fill": fill, "shape": family.shape}


def place(arms: pd.DataFrame, cost: str, x: Scale, y: Scale) -> pd.DataFrame:
    """The marks of a panel: what was measured, with `x` in the axis' values, at most `REACH` beside the true one where
    marks would cover each other, and return kept and its interval in percent."""
    known = arms.dropna(subset=[cost, "kept"])
    known = known.assign(size=[size(steps, y.length) for steps in known["execution_horizon"]])
    drawn = pd.Series(0.0, index=known.index)
    floor = x.place(cost_floor(x))
    for free, left, right in ((known[cost] == 0, 0, floor), (known[cost] > 0, floor, x.length)):
        rows = known[free]
        marks = [
            (x.place(value), y.place(100 * kept), 0.45 * math.sqrt(area))
            for value, kept, area in zip(rows[cost], rows["kept"], rows["size"], strict=True)
        ]
        drawn[free] = charts.spread(marks, left, right, reach=REACH)
    looks = pd.DataFrame([look(arm) for _, arm in known.iterrows()], index=known.index)
    return looks.assign(
        arm=known["arm"],
        x=[x.value(at) for at in drawn],
        y=100 * known["kept"],
        low=100 * known["kept_low"],
        high=100 * known["kept_high"],
        size=known["size"],
    )


def panel(arms: pd.DataFrame, cost: str, x: Scale, y: Scale, first: bool, bottom: bool) -> alt.LayerChart:
    """One cell and one cost. Only the `first` panel of a row and the `bottom` row have titles and labels of axes."""
    points = place(arms, cost, x, y)
    title, numbers = COSTS[cost]
    labels = (
        f"datum.index == 0 ? '0' : format(datum.value, '{numbers}')" if x.zero else f"format(datum.value, '{numbers}')"
    )
    x_axis = alt.Axis(grid=False, values=cost_ticks(x), labelExpr=labels, labels=bottom, labelOverlap=True)
    extent = AXIS - 18 if first else 0
    y_axis = alt.Axis(
        values=kept_ticks(y),
        labels=first,
        ticks=first,
        domain=first,
        minExtent=extent,
        maxExtent=extent,
        titlePadding=2,
    )

    def at(field: str) -> alt.X:
        return alt.X(field, type="quantitative", scale=x.altair, axis=x_axis, title=title if bottom else None)

    def kept(field: str) -> alt.Y:
        words = Y_TITLE if y.length > LOW else SHORT_Y_TITLE
        return alt.Y(field, type="quantitative", scale=y.altair, axis=y_axis, title=words if first else None)

    colour = alt.Stroke("colour:N", scale=None)
    base = alt.Chart(points).encode(x=at("x"))
    layers = [
        alt.Chart(pd.DataFrame({"y": [100]}))
        .mark_rule(color=MUTED, strokeDash=[3, 2], strokeWidth=0.8)
        .encode(y=kept("y")),
        # not where there is no interval, nor for the teacher against itself
        base.transform_filter("datum.low < datum.high")
        .mark_rule(strokeWidth=0.8, opacity=0.6)
        .encode(y=kept("low"), y2="high", color=alt.Color("colour:N", scale=None)),
        base.mark_point(opacity=1, strokeWidth=0.9).encode(
            y=kept("y"),
            stroke=colour,
            fill=alt.Fill("fill:N", scale=None),
            shape=alt.Shape("shape:N", scale=None),
            size=alt.Size("size:Q", scale=None),
        ),
    ]
    if x.zero:
        edge = alt.Chart(pd.DataFrame({"x": [cost_floor(x)]}))
        layers.insert(0, edge.mark_rule(color=GRID, strokeWidth=2).encode(x=at("x")))
    return alt.layer(*layers).properties(width=x.length, height=y.length)


def legend(summary: pd.DataFrame, width: float) -> alt.LayerChart:
    """What shapes, filling and sizes mean, for the arms that are there."""
    looks, steps = [look(arm) for _, arm in summary.iterrows()], summary["execution_horizon"]
    families = {mark["family"]: mark | {"fill": mark["colour"]} for mark in looks}
    grey = {"colour": MUTED, "fill": MUTED, "shape": "circle"}
    others = {}
    if any(mark["fill"] == "white" for mark in looks):
        others |= {"standard planner": grey, "smaller planner": grey | {"fill": "white"}}
    if len(several := sorted(steps[steps > 1].unique())) > 1:
        others |= {f"{count} steps of each plan": grey | {"size": size(count)} for count in several}
    names, marks = [*families, *others], [*families.values(), *others.values()]
    first = LEGEND_COLUMNS * math.ceil(len(families) / LEGEND_COLUMNS)  # what is not a family has lines of its own
    cells = [*range(len(families)), *range(first, first + len(others))]
    height = LEGEND_LINE * (cells[-1] // LEGEND_COLUMNS + 1)
    rows = pd.DataFrame([{"name": name, "size": size(3)} | mark for name, mark in zip(names, marks, strict=True)])
    rows["x"] = [width * (cell % LEGEND_COLUMNS) / LEGEND_COLUMNS + 5 for cell in cells]
    rows["y"] = [height - LEGEND_LINE * (cell // LEGEND_COLUMNS + 0.5) for cell in cells]
    rows["text_x"] = rows["x"] + 7

    def unseen(field: str, channel, end: float):
        return channel(field, type="quantitative", axis=None, scale=alt.Scale(domain=[0, end], nice=False))

    base = alt.Chart(rows).encode(y=unseen("y", alt.Y, height))
    symbols = base.mark_point(opacity=1, strokeWidth=0.9).encode(
        x=unseen("x", alt.X, width),
        stroke=alt.Stroke("colour:N", scale=None),
        fill=alt.Fill("fill:N", scale=None),
        shape=alt.Shape("shape:N", scale=None),
        size=alt.Size("size:Q", scale=None),
    )
    texts = base.mark_text(align="left", baseline="middle", color=INK).encode(
        x=unseen("text_x", alt.X, width), text="name:N"
    )
    return alt.layer(symbols, texts).properties(width=width, height=height)


def drawings(summary: pd.DataFrame) -> dict[str, alt.TopLevelMixin]:
    """The figures from what `read` gives: what stands beside the text, and the other cells where there are more."""
    overall = summary["cell"] == ALL
    first = pages.fitting(summary[~overall], MOST)
    others = summary[~overall & ~summary["cell"].isin(first["cell"])]
    found = {"pareto": draw(pd.concat([summary[overall], first]), ROWS_HEIGHT)}
    if len(others):
        found["pareto-cells"] = draw(pages.fitting(others, MOST_OF_PAGE, "pareto-cells"), PAGE_HEIGHT, named=True)
    return found


def draw(summary: pd.DataFrame, rows_height: float = ROWS_HEIGHT, named: bool = False) -> alt.TopLevelMixin:
    """One figure: the legend, and per cell a panel for every cost that was measured; a single cell has its name where
    that is asked for."""
    cells = [arms for _, arms in summary.groupby("cell", sort=False)]
    costs = [cost for cost in COSTS if summary[cost].notna().any()]
    width = (charts.FULL_WIDTH - AXIS - GAP * (len(costs) - 1)) / len(costs)
    height = min(HEIGHT, rows_height / len(cells) - ROW_EXTRA)
    x = {cost: cost_scale(summary[cost].dropna(), width) for cost in costs}
    rows: list[alt.TopLevelMixin] = []
    for arms in cells:
        y, bottom = kept_scale(arms, height), arms is cells[-1]
        measured = [cost for cost in costs if arms[cost].notna().any()]
        panels = [panel(arms, cost, x[cost], y, cost == measured[0], bottom) for cost in measured]
        row = alt.hconcat(*panels, spacing=GAP)
        title = pages.cell_title(arms["cell"].iloc[0], summary["cell"])
        rows.append(row.properties(title=title) if named or len(cells) > 1 else row)
    return alt.vconcat(*rows, legend(summary, charts.FULL_WIDTH - AXIS), spacing=6)


def read(profile: str) -> pd.DataFrame:
    """The table of arms that played all episodes, with those over all cells above the first; below it the policies that
    learnt offline from the same cells' teachers, where there are any.

    The Decision Transformer stands there as it does when it is asked for the best return of the data.
    """
    folder = paths.results(profile)
    summary = read_table(folder / "horizon" / "summary.csv")
    whole = summary[summary["arm"] == "teacher"].set_index("cell")["episodes"]
    summary = summary[summary["episodes"] == summary["cell"].map(whole)]
    parts = [over_cells(summary, folder / "statistics" / "aggregate.csv"), summary]
    for file in files(folder / "decision_transformer", "*-expert-summary.csv"):
        rows = read_table(file)
        rows = rows[rows["arm"].isin(OFFLINE) & (rows["asked"].isna() | (rows["asked"] == 1))]
        rows = rows.loc[rows["cell"].isin(summary["cell"]), [column for column in summary if column in rows]]
        parts.append(rows.assign(scheme=rows["arm"], standard_planner=False))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True).astype({"execution_horizon": summary["execution_horizon"].dtype})


def over_cells(summary: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Arms that all cells of this project's teachers have: mean normalised return with its interval, as in
    `lib.study.stats.aggregates`, and mean costs. Without rows where there are fewer than two such cells."""
    own = summary[summary["cell"].map(lambda cell: bool(paths.CELL.fullmatch(cell)))]
    if own["cell"].nunique() < 2 or not file.is_file():
        return summary.iloc[:0]
    shared = own.groupby("arm")["cell"].transform("nunique") == own["cell"].nunique()
    columns = dict.fromkeys(COSTS, lambda costs: costs.mean(skipna=False)) | dict.fromkeys(ARM_COLUMNS, "first")
    means = own[shared].groupby("arm", sort=False).agg(columns)
    scores = read_table(file).query("scope == 'all' and statistic == 'mean'").set_index("arm")
    scores = scores[["estimate", "low", "high"]].set_axis(["kept", "kept_low", "kept_high"], axis=1)
    return means.join(scores).reset_index().assign(cell=ALL, task="", size="", teacher_seed=0)


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: drawings(read(profile)), arguments)


if __name__ == "__main__":
    main()
