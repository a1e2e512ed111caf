"""Performance profiles: the share of episodes that return more than a part τ of the teacher's mean, over all cells.

    python figures/profiles.py --profile quick

reads data/results/quick/statistics/profiles.csv, horizon/summary.csv, and statistics/headline.csv where one
configuration was picked; writes figures/quick/profiles.{svg,pdf,png}. Drawn are the teacher, the smaller planner at
every step, the policy prior, and the picked configuration with its open-loop twin: a line for each, with 95 %
intervals.
"""

from __future__ import annotations

import math

import altair as alt
import pandas as pd

from figures import charts, pages
from lib.records import paths
from lib.records.store import read_table
from lib.study.arms import ARM_COLUMNS, arm_name
from lib.study.stats.comparisons import references

X_TITLE, Y_TITLE = "Part τ of the teacher's mean return", "Share of episodes above τ"
WIDTH, HEIGHT = charts.COLUMN_WIDTH - 34, 130
ALWAYS = ("teacher", "budget-64x2", "policy")
USUAL = "64x2+two-tower-3"  # where none was picked
STEP = 0.05  # of τ, to which the axis is rounded


def read(profile: str) -> pd.DataFrame:
    """The rows of profiles.csv (arm, tau, estimate, low, high) for the drawn arms with the columns of summary.csv that
    say what they are, in the order of the legend, over the τ at which they differ. Raises `ResultError` where there is
    no such table."""
    folder = paths.results(profile) / "statistics"
    table, chosen = read_table(folder / "profiles.csv"), arm_name(USUAL)
    summary = read_table(folder.with_name("horizon") / "summary.csv")
    arms = {name: rows for name, rows in summary.groupby("arm") if name in set(table["arm"])}
    if (folder / "headline.csv").is_file():
        picked = read_table(folder / "headline.csv")
        chosen = picked.loc[picked["chosen"], "arm"].iloc[0]
    twin = references(chosen, arms).get("open loop") if chosen in arms else None
    names = [name for name in (*map(arm_name, ALWAYS), twin, chosen) if name in arms]
    about = summary.drop_duplicates("arm")[["arm", *ARM_COLUMNS]]
    marks = pd.concat([table[table["arm"] == name] for name in names]).merge(about, on="arm")
    telling = marks[(marks["high"].fillna(marks["estimate"]) > 0) & (marks["low"].fillna(marks["estimate"]) < 1)]
    if len(telling):
        first, last = (telling["tau"].min() - 1e-9) // STEP * STEP, math.ceil(telling["tau"].max() / STEP - 1e-9) * STEP
        marks = marks[marks["tau"].between(first - 1e-9, last + 1e-9)]
    return marks


def draw(marks: pd.DataFrame) -> alt.LayerChart:
    """The figure: a line for each arm, dashed for those with a smaller planner than the teacher's."""
    arms = marks.drop_duplicates("arm")
    names = list(arms["arm"])
    colour = alt.Color(
        "arm:N",
        scale=alt.Scale(domain=names, range=[charts.family(scheme).colour for scheme in arms["scheme"]]),
        legend=alt.Legend(
            title=None,
            orient="bottom",
            columns=2,
            symbolType="stroke",
            symbolSize=160,
            symbolOpacity=1,
            labelLimit=0,
            offset=8,
        ),  # fmt: skip
    )
    dashes = [[4, 2] if charts.small_planner(arm) else [1, 0] for _, arm in arms.iterrows()]
    dash = alt.StrokeDash("arm:N", scale=alt.Scale(domain=names, range=dashes), legend=None)
    ends = alt.Scale(domain=[marks["tau"].min(), marks["tau"].max()], nice=False)
    x = alt.X("tau:Q", scale=ends, title=X_TITLE, axis=alt.Axis(format="~%", grid=False, tickCount=6))
    base = alt.Chart(marks).encode(x=x)
    share = alt.Scale(domain=[0, 1])
    band = base.transform_filter("datum.low < datum.high").mark_area(opacity=0.15, interpolate="step-after")
    line = base.mark_line(interpolate="step-after", strokeWidth=1.3)
    layers = [
        band.encode(y=alt.Y("low:Q", scale=share), y2="high", color=colour, detail="arm:N"),
        line.encode(
            y=alt.Y("estimate:Q", scale=share, title=Y_TITLE, axis=alt.Axis(format="~%", tickCount=5)),
            color=colour,
            strokeDash=dash,
        ),
    ]
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: {"profiles": draw(read(profile))}, arguments)


if __name__ == "__main__":
    main()
