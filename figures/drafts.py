"""Return against labels: what drafts return that were distilled from the planner, a panel for each cell.

    python figures/drafts.py --profile quick

reads data/results/quick/statistics/drafts.csv, writes figures/quick/drafts.{svg,pdf,png}. Beside the drafts stand the
planner that labels, at every step, and the policy prior. Points apart from the lines are other trainings on the same
labels: other seeds (hollow), and drafts of several modes (crosses). Of more cells than fit a page, those with the most
episodes are drawn.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from figures import charts, pages
from lib.records import paths
from lib.records.store import read_table
from lib.study.arms import DRAFTED
from lib.study.stats.drafts import LINE, OTHER_SEED, SEVERAL_MODES

COLUMNS, MOST = 3, 9  # panels in a row, and on a page
AXIS, GAP, HEIGHT = 36, 14, 96
# What is drawn → its words and look; what has no labels is a dashed line.
LOOKS = {name: charts.family(name) for name in (*DRAFTED, "policy")} | {"labeller": charts.EVERY_STEP}
WORDS = {name: charts.words(name) for name in (*DRAFTED, "policy")} | {"labeller": "planner that labels"}
BESIDE = ("labeller", "policy")


def read(profile: str) -> pd.DataFrame:
    """The rows of `lib.study.stats.drafts` of a profile."""
    return read_table(paths.results(profile) / "statistics" / "drafts.csv")


def draw(marks: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure: rows of up to three panels, and behind the last one what its lines mean."""
    marks = pages.fitting(marks, MOST, "drafts")
    cells = list(marks["cell"].drop_duplicates())
    columns = min(len(cells), COLUMNS)
    whole = charts.COLUMN_WIDTH if columns == 1 else charts.FULL_WIDTH
    width = (whole - AXIS * columns - GAP * (columns - 1)) / columns
    panels = []
    for number, cell in enumerate(cells):
        title = pages.cell_title(cell, cells)
        panels.append(
            panel(marks[marks["cell"] == cell], title, width, number % columns == 0, number + columns >= len(cells))
        )
    drawn = [name for name in (*DRAFTED, *BESIDE) if (marks["draft"] == name).any()]
    key = charts.key({WORDS[name]: LOOKS[name] for name in drawn}, width, [WORDS[name] for name in BESIDE])
    return alt.concat(*panels, key, columns=columns, spacing={"row": 10, "column": GAP})


def panel(marks: pd.DataFrame, title: str, width: float, left: bool, bottom: bool) -> alt.LayerChart:
    """One cell. Only at the `left` and `bottom` do axes have titles."""
    names = list(LOOKS)
    colours = alt.Scale(domain=names, range=[look.colour for look in LOOKS.values()])
    colour = alt.Color("draft:N", scale=colours, legend=None)
    shapes = alt.Scale(domain=names, range=[look.shape for look in LOOKS.values()])
    shape = alt.Shape("draft:N", scale=shapes, legend=None)

    own = marks.dropna(subset="labels").assign(thousand=lambda table: table["labels"] / 1000)
    ticks = sorted(own["thousand"].round(1).unique())
    x = alt.X(
        "thousand:Q",
        scale=alt.Scale(type="log", domain=[0.85 * own["thousand"].min(), 1.18 * own["thousand"].max()], nice=False),
        axis=alt.Axis(grid=False, values=ticks, format=".3~g", labelOverlap="greedy"),
        title="Labels (thousands)" if bottom else None,
    )
    top = 1.05 * max(marks["return"].max(), marks["return_high"].max())
    low = min(0.0, marks["return"].min(), marks["return_low"].min())

    def y(field: str) -> alt.Y:
        axis = alt.Axis(tickCount=4, format=".4~g", minExtent=AXIS - 16, maxExtent=AXIS - 16)
        scale = alt.Scale(domain=[low, top], nice=False)
        return alt.Y(field, type="quantitative", scale=scale, axis=axis, title="Return" if left else None)

    line, other = own[own["training"] == LINE], own[own["training"] != LINE]
    base = alt.Chart(line).encode(x=x, color=colour)
    apart = alt.Chart(other).encode(x=x, y=y("return"), color=colour)
    layers = [
        alt.Chart(marks[marks["labels"].isna()])
        .mark_rule(strokeDash=[4, 2], strokeWidth=1.1)
        .encode(y=y("return"), color=colour),
        base.transform_filter("datum.return_low < datum.return_high")
        .mark_rule(strokeWidth=0.9, opacity=0.6)
        .encode(y=y("return_low"), y2="return_high"),
        base.mark_line(strokeWidth=1.2).encode(y=y("return")),
        base.mark_point(filled=True, size=18, opacity=1).encode(y=y("return"), shape=shape),
        apart.transform_filter(alt.datum.training == OTHER_SEED).mark_point(size=16, strokeWidth=0.9, shape="circle"),
        apart.transform_filter(alt.datum.training == SEVERAL_MODES).mark_point(
            size=18, strokeWidth=0.9, shape=charts.SALTIRE
        ),
    ]
    return alt.layer(*layers).properties(width=width, height=HEIGHT, title=alt.Title(title, offset=3))


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: {"drafts": draw(read(profile))}, arguments)


if __name__ == "__main__":
    main()
