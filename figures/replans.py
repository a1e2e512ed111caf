"""Where along an episode the gates ask for a plan: planner calls per decision, a panel per cell and planner.

    python figures/replans.py --profile quick

reads data/results/quick/horizon/<cell>-phase.csv and <cell>.csv, writes figures/quick/replans.{svg,pdf,png}. Of more
cells than fit a page, those with the most episodes are drawn.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import FAMILIES, MUTED
from lib.records.keys import ResultError
from lib.study.evaluate import evaluated_cells, read_cell
from lib.study.stats.intervals import bootstrap_ci

X_TITLE, Y_TITLE = "Decision", "Planner calls per decision"
AXIS, GAP, COLUMNS = 34, 14, 2  # units for the axis of the first panel of a row, and between panels; panels in a row
HEIGHT, ROWS_HEIGHT, ROW_EXTRA = 120, 520, 24  # of a panel at most, of all rows, and what a row needs beside its panels
MOST = 8  # panels that are still high enough to read
LEGEND_COLUMNS = 5


def read(profile: str) -> pd.DataFrame:
    """One row (cell, planner, arm, family, execution_horizon, decision, mean, low, high, episodes) per gated arm and
    phase: planner calls per decision, the mean over episodes with its 95 % interval, missing for a single episode.

    `decision` is the phase's middle, `planner` is empty for the standard one. Raises `ResultError` if no gated arm was
    evaluated.
    """
    phases = {cell: read_cell(profile, cell, "-phase") for cell in evaluated_cells(profile)}
    # The table of a cell without a gated arm is empty, and lacks the other columns too.
    rows = [{"cell": cell} | row for cell, table in phases.items() if len(table) for row in means(table)]
    if not rows:
        raise ResultError(f"no cell of {profile} has phases of a gated arm; evaluate one.")
    return pd.DataFrame(rows)


def means(phases: pd.DataFrame) -> list[dict]:
    """The marks of one cell. In a phase that some episodes did not reach whole, each counts by its own decisions."""
    rows = []
    for (arm, start), mine in phases.groupby(["arm", "decision"], sort=False):
        rates = mine["planner_calls"] / mine["count"]
        low, high = bootstrap_ci(rates)
        first = mine.iloc[0]
        about = {"planner": charts.small_planner(first), "arm": arm, "family": charts.family(first["scheme"]).name}
        about |= {"execution_horizon": first["execution_horizon"], "episodes": len(mine)}
        middle = start + mine["count"].max() / 2
        rows.append(about | {"decision": middle, "mean": rates.mean(), "low": low, "high": high})
    return rows


def draw(marks: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure: two panels to a row, or one across the page."""
    marks = pages.fitting(marks, MOST, "replans", "planner")
    kinds = [rows for _, rows in marks.groupby(["cell", "planner"], sort=False)]
    columns = min(COLUMNS, len(kinds))
    families = list(dict.fromkeys(f.name for f in FAMILIES.values() if f.name in set(marks["family"])))
    look = {
        "families": families,
        "width": (charts.FULL_WIDTH - AXIS - GAP * (columns - 1)) / columns,
        "height": min(HEIGHT, ROWS_HEIGHT / -(-len(kinds) // columns) - ROW_EXTRA),
        "end": float(marks["decision"].max() + marks["decision"].min()),
        "top": 1.05 * max(marks[["mean", "high"]].max(axis=None), (1 / marks["execution_horizon"]).max()),
    }
    panels = []
    for number, rows in enumerate(kinds):
        left, bottom = number % columns == 0, number + columns >= len(kinds)
        panels.append(panel(rows, left=left, bottom=bottom, **look).properties(title=title(rows, kinds)))
    chart = alt.concat(*panels, columns=columns, spacing={"row": 8, "column": GAP})
    return chart.resolve_scale(color="shared", shape="shared")


def title(rows: pd.DataFrame, kinds: list[pd.DataFrame]) -> alt.Title:
    """What tells a panel from the others: its cell, and what plans."""
    cell, name = rows["cell"].iloc[0], rows["planner"].iloc[0]
    plans = f"plans of {name}" if name else "plans of the standard planner"
    cells = {kind["cell"].iloc[0] for kind in kinds}
    words = f"{pages.cell_title(cell, cells)}, {plans}" if len(cells) > 1 else plans.capitalize()
    return alt.Title(words, frame="group", offset=3)


def panel(rows, families, width, height, end, top, left: bool, bottom: bool) -> alt.LayerChart:
    """One cell and planner. `left` and `bottom` say where the panel stands: only there do the axes have titles."""

    def x(field: str) -> alt.X:
        axis = alt.Axis(grid=False, tickCount=5, format="d", labels=bottom)
        scale = alt.Scale(domain=[0, end], nice=False)
        return alt.X(field, type="quantitative", scale=scale, axis=axis, title=X_TITLE if bottom else None)

    def y(field: str) -> alt.Y:
        extent = AXIS - 14 if left else 0
        options = dict(labels=left, ticks=left, domain=left, minExtent=extent, maxExtent=extent)
        scale = alt.Scale(domain=[0, top], nice=False)
        axis = alt.Axis(tickCount=4, **options)
        return alt.Y(field, type="quantitative", scale=scale, axis=axis, title=Y_TITLE if left else None)

    looks = [next(f for f in FAMILIES.values() if f.name == name) for name in families]
    legend = alt.Legend(
        title=None, orient="bottom", columns=LEGEND_COLUMNS, symbolSize=40, symbolStrokeWidth=0, symbolOpacity=1,
        labelLimit=0, offset=8,
    )  # fmt: skip
    colour = alt.Color("family:N", scale=alt.Scale(domain=families, range=[f.colour for f in looks]), legend=legend)
    shape = alt.Shape("family:N", scale=alt.Scale(domain=families, range=[f.shape for f in looks]), legend=legend)
    base = alt.Chart(rows).encode(x=x("decision"), color=colour, detail="arm:N")
    steps = sorted(rows["execution_horizon"].unique())
    ungated = pd.DataFrame({"y": [1 / e for e in steps], "x": 0.0, "text": [f"no gate: 1 in {e}" for e in steps]})
    rules = alt.Chart(ungated)
    layers = [
        rules.mark_rule(color=MUTED, strokeDash=[3, 2], strokeWidth=0.9).encode(y=y("y")),
        base.transform_filter("datum.low < datum.high").mark_area(opacity=0.18).encode(y=y("low"), y2="high"),
        base.mark_line(strokeWidth=1).encode(y=y("mean")),
        base.mark_point(filled=True, size=16, opacity=1).encode(y=y("mean"), shape=shape),
        rules.mark_text(align="left", baseline="top", dx=3, dy=3, color=MUTED).encode(
            x=x("x"), y=y("y"), text="text:N"
        ),
    ]
    return alt.layer(*layers).properties(width=width, height=height)


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: {"replans": draw(read(profile))}, arguments)


if __name__ == "__main__":
    main()
