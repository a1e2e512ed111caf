"""The return of every episode, arm by arm, with the median and its interval; a panel per cell.

    python figures/returns.py --profile quick

reads data/results/quick/horizon/<cell>.csv and writes figures/quick/returns.{svg,pdf,png}. Where the cells do not fit
beside each other, only the arms that all of them have are drawn.
"""

from __future__ import annotations

import math

import altair as alt
import numpy as np
import pandas as pd

from figures import charts, pages
from figures.charts import INK, MUTED
from lib.study.evaluate import evaluated_cells, read_cell
from lib.study.stats.intervals import bootstrap_ci

X_TITLE = "Return per episode"
NAMES, GAP = 104, 12  # units for the names of the arms, and between panels
COLUMNS, MOST_COLUMNS = 3, 5  # panels in a single row, and in each of several
ROW, ROWS_HEIGHT, ROW_EXTRA = 13, 590, 30  # of an arm at most, of all panels, and what a row needs beside its panels
JITTER = 0.28  # of a row, up and down
# Shares of a row by which episodes are moved, one after the other: even without a pattern (van der Corput's sequence).
ORDER = [int(f"{i:05b}"[::-1], 2) / 32 - 0.5 for i in range(1, 32)]


def read(profile: str) -> pd.DataFrame:
    """One row (cell, arm, colour, episode_seed, return) per episode; `ResultError` if no cell was evaluated."""
    tables = [read_cell(profile, cell).assign(cell=cell) for cell in evaluated_cells(profile)]
    episodes = pd.concat(tables, ignore_index=True)
    colours = [charts.family(scheme).colour for scheme in episodes["scheme"]]
    return episodes.assign(colour=colours)[["cell", "arm", "colour", "episode_seed", "return"]]


def medians(episodes: pd.DataFrame) -> pd.DataFrame:
    """One row (cell, arm, colour, median, low, high) per cell and arm; no interval for a single episode."""
    rows, about = [], ["cell", "arm", "colour"]
    for group, mine in episodes.groupby(about, sort=False):
        low, high = bootstrap_ci(mine["return"], np.median)
        row = dict(zip(about, group, strict=True))
        rows.append(row | {"median": mine["return"].median(), "low": low, "high": high})
    return pd.DataFrame(rows)


def draw(episodes: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure: cells beside each other, in several rows where they are many; arms in the order of the tables."""
    cells = list(episodes["cell"].drop_duplicates())
    if len(cells) > COLUMNS:
        shared = episodes.groupby("arm")["cell"].nunique() == len(cells)
        episodes = episodes[episodes["arm"].map(shared)]
    arms = list(episodes["arm"].drop_duplicates())
    rows = 1 if len(cells) <= COLUMNS else math.ceil(len(cells) / MOST_COLUMNS)
    columns = math.ceil(len(cells) / rows)
    width = (charts.FULL_WIDTH - NAMES - GAP * (columns - 1)) / columns
    height = min(ROW * len(arms), ROWS_HEIGHT / rows - ROW_EXTRA)
    middle, panels = medians(episodes), []
    for number, cell in enumerate(cells):
        left, bottom = number % columns == 0, number + columns >= len(cells)
        mine = (table[table["cell"] == cell] for table in (episodes, middle))
        chart = panel(*mine, arms, width, height, left, bottom)
        title = alt.Title(pages.cell_title(cell, cells), frame="group", offset=3)
        panels.append(chart.properties(title=title) if len(cells) > 1 else chart)
    if len(panels) == 1:
        return panels[0]
    return alt.concat(*panels, columns=columns, spacing={"row": 8, "column": GAP})


def panel(episodes, middle, arms, width, height, left: bool, bottom: bool) -> alt.LayerChart:
    """One cell. `left` and `bottom` say where the panel stands: only there do the axes have titles and names."""
    least, most = episodes["return"].min(), episodes["return"].max()
    room = max(0.03 * (most - least), 1e-6)

    def x(field: str) -> alt.X:
        axis = alt.Axis(tickCount=max(3, int(width / 55)), format="d", labelOverlap=True)
        scale = alt.Scale(domain=[least - room, most + room], nice=False)
        return alt.X(field, type="quantitative", scale=scale, axis=axis, title=X_TITLE if bottom else None)

    size = min(charts.FONT_SIZE, 0.9 * height / len(arms))  # names keep apart
    names = dict(labels=left, ticks=False, domain=False, labelLimit=NAMES, labelPadding=4, labelOverlap=False)
    names |= dict(labelFontSize=size)
    names |= dict(minExtent=NAMES if left else 0, maxExtent=NAMES if left else 0)
    y = alt.Y("arm:N", sort=arms, scale=alt.Scale(domain=arms), title=None, axis=alt.Axis(grid=False, **names))
    colour = alt.Color("colour:N", scale=None)

    offsets = episodes.groupby("arm").cumcount().map(lambda n: JITTER * 2 * ORDER[n % len(ORDER)])
    dots = alt.Chart(episodes.assign(offset=offsets))
    marks = alt.Chart(middle).encode(y=y)
    move = alt.YOffset("offset:Q", scale=alt.Scale(domain=[-0.5, 0.5]))
    layers = [
        dots.mark_circle(size=9, opacity=0.45).encode(x=x("return"), y=y, yOffset=move, color=colour),
        marks.transform_filter("datum.low < datum.high")
        .mark_rule(color=INK, strokeWidth=1.1)
        .encode(x=x("low"), x2="high"),
        marks.mark_tick(color=INK, thickness=1.6, size=7, opacity=1).encode(x=x("median")),
    ]
    if "teacher" in set(middle["arm"]):
        teacher = alt.Chart(middle[middle["arm"] == "teacher"])
        rule = teacher.mark_rule(color=MUTED, strokeDash=[3, 2], strokeWidth=0.8)
        layers.insert(0, rule.encode(x=x("median")))
    return alt.layer(*layers).properties(width=width, height=height)


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: {"returns": draw(read(profile))}, arguments)


if __name__ == "__main__":
    main()
