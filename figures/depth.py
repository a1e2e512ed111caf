"""Mismatch, size of the correction and action error against depth, a row of panels per cell and planner.

    python figures/depth.py --profile quick

reads data/results/quick/horizon/<cell>-depth.csv and, where it is there, <cell>-action-error.csv; writes
figures/quick/depth.{svg,pdf,png}. Of arms that differ in their execution horizon alone the longest is drawn; of more
cells than fit a page, those with the most episodes.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import FAMILIES, MUTED
from lib.records.keys import ResultError
from lib.study.evaluate import evaluated_cells, read_cell
from lib.study.stats.intervals import PLANNER, bootstrap_ci

# Column of the tables → title of its axis.
QUANTITIES = {
    "mismatch": "Mismatch (total variation)",
    "delta_abs": "Correction |Δa|",
    "action_mse": "Action error (squared)",
}
FLOOR = "teacher_floor_mse"
X_TITLE = "Depth (steps into the plan)"
AXIS, GAP = 42, 10  # units for the axis of each panel, and between panels
HEIGHT, ROWS_HEIGHT, ROW_EXTRA = 110, 520, 26  # of a panel at most, of all rows, and what a row needs beside its panels
MOST_ROWS = 4  # that are still high enough to read
SIDEWAYS = 0.09  # depths between the marks of neighbouring arms, so that their intervals do not cover each other
LEGEND_COLUMNS = 5


def read(profile: str) -> pd.DataFrame:
    """One row (cell, planner, arm, family, depth, quantity, mean, low, high, episodes) per mark: the mean over episodes
    with its 95 % interval, missing for a single episode. `planner` is empty for the standard one.

    Raises `ResultError` if no cell was evaluated, or none has an arm that executes more than one step of a plan.
    """
    rows = []
    for cell in evaluated_cells(profile):
        tables = [read_cell(profile, cell, part) for part in ("-depth", "-action-error")]
        rows += [{"cell": cell} | row for table in tables for row in means(table)]
    if not any(row["depth"] for row in rows):
        raise ResultError(f"no cell of {profile} has an arm that executes more than one step of a plan; evaluate one.")
    return pd.DataFrame(rows)


def means(table: pd.DataFrame) -> list[dict]:
    """The marks of one table: per arm, depth and quantity the mean over episodes of each episode's own mean."""
    rows = []
    for arm, mine in deepest(table).groupby("arm", sort=False):
        about = mine.iloc[0]
        for quantity in [q for q in (*QUANTITIES, FLOOR) if q in mine]:
            if quantity == "delta_abs" and ("action_mse" in mine or not mine[quantity].any()):
                continue  # of the drawn states alone, or of an arm that corrects nothing
            if quantity == "mismatch" and pd.notna(about["gate"]):
                continue  # of the steps alone that the gate let pass: it would look as if gates made plans truer
            per_episode = mine.dropna(subset=[quantity]).groupby(["depth", "episode_seed"])[quantity].mean()
            for depth, values in per_episode.groupby("depth"):
                if quantity == "delta_abs" and depth == 0:
                    continue  # a fresh plan is not corrected
                low, high = bootstrap_ci(values)
                row = {
                    "planner": charts.small_planner(about),
                    "arm": arm,
                    "family": charts.family(about["scheme"]).name,
                }
                row |= {"depth": depth, "quantity": quantity, "episodes": len(values)}
                rows.append(row | {"mean": values.mean(), "low": low, "high": high})
    return rows


def deepest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of those arms that execute most steps, of all that differ in the execution horizon alone."""
    alike = ["scheme", *PLANNER]
    most = table.groupby(alike, dropna=False)["execution_horizon"].transform("max")
    return table[table["execution_horizon"] == most]


def draw(marks: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure: a row per cell and planner, a panel per quantity that was measured."""
    marks = pages.fitting(marks, MOST_ROWS, "depth", "planner")
    quantities = [q for q in QUANTITIES if (marks["quantity"] == q).any()]
    families = list(dict.fromkeys(f.name for f in FAMILIES.values() if f.name in set(marks["family"])))
    marks = marks.assign(x=marks["depth"] + SIDEWAYS * (marks["family"].map(families.index) - (len(families) - 1) / 2))
    kinds = [rows for _, rows in marks.groupby(["cell", "planner"], sort=False) if rows["depth"].any()]
    height = min(HEIGHT, ROWS_HEIGHT / len(kinds) - ROW_EXTRA)
    width = (charts.FULL_WIDTH - (AXIS + GAP) * len(quantities) + GAP) / len(quantities)
    tops = {q: 1.05 * marks.loc[marks["quantity"] == q, ["mean", "high"]].max(axis=None) for q in quantities}
    rows = []
    for mine in kinds:
        look = dict(families=families, width=width, height=height, bottom=mine is kinds[-1])
        panels = [panel(mine[mine["quantity"].isin((q, FLOOR))], marks, q, tops[q], **look) for q in quantities]
        rows.append(alt.hconcat(*panels, spacing=GAP).properties(title=title(mine, kinds)))
    return alt.vconcat(*rows, spacing=8).resolve_scale(color="shared", shape="shared")


def title(rows: pd.DataFrame, kinds: list[pd.DataFrame]) -> str:
    """What tells a row of panels from the others: its cell, and what plans."""
    cell, name = rows["cell"].iloc[0], rows["planner"].iloc[0]
    plans = f"plans of {name}" if name else "plans of the standard planner"
    cells = {kind["cell"].iloc[0] for kind in kinds}
    return f"{pages.cell_title(cell, cells)}, {plans}" if len(cells) > 1 else plans.capitalize()


def panel(rows, marks, quantity: str, top: float, families, width, height, bottom: bool) -> alt.LayerChart:
    """One quantity of a cell and planner. Only the `bottom` row names the depths."""
    mine, all_marks = rows[rows["quantity"] == quantity], marks[marks["quantity"] == quantity]
    ends = [all_marks["x"].min() - SIDEWAYS, all_marks["x"].max() + SIDEWAYS]
    depths = sorted(int(depth) for depth in all_marks["depth"].unique())
    ticks = dict(values=depths, format="d", labels=bottom, ticks=bottom)

    def x(field: str) -> alt.X:
        axis, words = alt.Axis(grid=False, **ticks), X_TITLE if bottom else None
        scale = alt.Scale(domain=ends, nice=False)
        return alt.X(field, type="quantitative", scale=scale, axis=axis, title=words)

    def y(field: str) -> alt.Y:
        axis = alt.Axis(tickCount=4, minExtent=AXIS - 16, maxExtent=AXIS - 16, titlePadding=3)
        scale = alt.Scale(domain=[0, top], nice=False)
        return alt.Y(field, type="quantitative", scale=scale, axis=axis, title=QUANTITIES[quantity])

    looks = [next(f for f in FAMILIES.values() if f.name == name) for name in families]
    legend = alt.Legend(
        title=None,
        orient="bottom",
        columns=LEGEND_COLUMNS,
        symbolSize=40,
        symbolStrokeWidth=0,
        symbolOpacity=1,
        labelLimit=0,
        offset=8,
    )
    colour = alt.Color("family:N", scale=alt.Scale(domain=families, range=[f.colour for f in looks]), legend=legend)
    shape = alt.Shape("family:N", scale=alt.Scale(domain=families, range=[f.shape for f in looks]), legend=legend)
    base = alt.Chart(mine).encode(x=x("x"), color=colour)
    layers = [
        base.mark_line(strokeWidth=1, opacity=0.7).encode(y=y("mean"), detail="arm:N"),
        base.transform_filter("datum.low < datum.high").mark_rule(strokeWidth=0.9).encode(y=y("low"), y2="high"),
        base.mark_point(filled=True, size=22, opacity=1).encode(y=y("mean"), shape=shape),
    ]
    floor = rows.loc[rows["quantity"] == FLOOR, "mean"]
    if quantity == "action_mse" and len(floor):
        rule = alt.Chart(pd.DataFrame({"y": [floor.mean()]}))  # the caption says what it is: marks lie all along it
        layers.insert(0, rule.mark_rule(color=MUTED, strokeDash=[3, 2], strokeWidth=0.8).encode(y=y("y")))
    return alt.layer(*layers).properties(width=width, height=height)


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: {"depth": draw(read(profile))}, arguments)


if __name__ == "__main__":
    main()
