"""Latent error of open-loop prediction against steps ahead, and against the teacher's training, a row per cell.

    python figures/model_error.py --profile quick

reads data/results/quick/model_error/ and writes figures/quick/model_error.{svg,pdf,png}.
"""

from __future__ import annotations

import math

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import INK, MUTED
from lib.files import files
from lib.records import paths
from lib.records.keys import ResultError, shown
from lib.records.store import how_to_make, read_table

AXIS, GAP = 54, 58  # units that the axis of the first panel takes, and those between panels, where another one stands
LABELS = 34  # units of these that the labels of ticks take
HEIGHT, LEAST = 125, 40  # of a panel at most and at least
ROWS_HEIGHT, ROW_EXTRA = 480, 44  # of all rows, as far as panels have their least height, and what a row adds to them
MOST_ROWS, COLUMNS = 3, 3  # cells below each other, and panels beside each other where there are more cells
STEPS, DECISIONS = "Steps ahead", "Decisions of training (thousands)"
ERROR, SHARE = "Latent error (mse)", "Of mean latent's error"
MODEL, PERSISTENCE, MEAN = "prediction", "no change", "mean latent"  # what is compared with the encoded latent
DASHES = {MODEL: [1, 0], PERSISTENCE: [4, 2], MEAN: [1, 2]}
# Okabe–Ito colours, as everywhere; a source of states that is not among these gets one of the others.
COLOURS = {"teacher": "#000000", "test": "#0072B2", "train": "#56B4E9", "noisy": "#E69F00", "random": "#D55E00"}
OTHERS = ("#009E73", "#CC79A7", "#882255", MUTED)
ROOM = {"row": 30, "column": 46}  # between panels of a grid, for ticks and titles
COMPARED = (1, 3)  # steps ahead of the snapshots' panel, beside the last one


def read(profile: str) -> pd.DataFrame:
    """Rows of all cells of a profile, with `cell`. Raises `ResultError` if there are none."""
    folder = paths.results(profile) / "model_error"
    tables = [read_table(path).assign(cell=path.stem) for path in files(folder, "*.csv")]
    if not tables:
        raise ResultError(f"{shown(folder)} holds no model error; {how_to_make(folder / 'cell.csv')}.")
    return pd.concat(tables, ignore_index=True)


def draw(rows: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure: per cell, the error of its teacher by source of states, and that of its snapshots on one source.

    A row per cell; of more than fit below each other, the teachers' panels stand in a grid and the snapshots' below.
    """
    cells = [part for _, part in rows.groupby("cell", sort=False)]
    trained = [part["model"].nunique() > 1 and part["decisions"].notna().all() for part in cells]
    sources = list(rows["source"].drop_duplicates())
    if len(cells) > MOST_ROWS:
        return grid(cells, [part for part, known in zip(cells, trained, strict=True) if known], sources)
    width = (charts.FULL_WIDTH - AXIS - GAP) / 2
    height = max(LEAST, min(HEIGHT, ROWS_HEIGHT / len(cells) - ROW_EXTRA))
    last, drawn = max((i for i, known in enumerate(trained) if known), default=-1), []
    for i, part in enumerate(cells):
        panels = [by_step(part, sources, i == 0, i == len(cells) - 1)]
        if trained[i]:
            panels.append(by_training(part, i == last))  # the last rows may have no such panel
        panels = [panel.properties(width=width, height=height) for panel in panels]
        row = alt.hconcat(*panels, spacing=GAP, bounds="flush")
        drawn.append(row.properties(title=part["cell"].iloc[0]) if len(cells) > 1 else row)
    return alt.vconcat(*drawn, spacing=8) if len(drawn) > 1 else drawn[0]


def grid(cells: list[pd.DataFrame], trained: list[pd.DataFrame], sources: list[str]) -> alt.TopLevelMixin:
    """The panels of many cells: their teachers, and then the snapshots of those that have some."""
    width = (charts.FULL_WIDTH - AXIS - ROOM["column"] * (COLUMNS - 1)) / COLUMNS
    height = max(LEAST, min(HEIGHT, ROWS_HEIGHT / (-(-len(cells) // COLUMNS) - (-len(trained) // COLUMNS)) - ROW_EXTRA))
    places = [{"left": i % COLUMNS == 0, "bottom": i + COLUMNS >= len(cells)} for i in range(len(cells))]
    below = [{"left": i % COLUMNS == 0, "bottom": i + COLUMNS >= len(trained)} for i in range(len(trained))]
    teachers = [by_step(part, sources, part is cells[0], **at) for part, at in zip(cells, places, strict=True)]
    snapshots = [by_training(part, **at) for part, at in zip(trained, below, strict=True)]
    blocks = []
    for parts, panels in ((cells, teachers), (trained, snapshots)):
        titles = [alt.Title(part["cell"].iloc[0], frame="group", offset=3) for part in parts]
        panels = [p.properties(width=width, height=height, title=t) for p, t in zip(panels, titles, strict=True)]
        if panels:
            blocks.append(alt.concat(*panels, columns=COLUMNS, spacing=ROOM, bounds="flush"))
    return alt.vconcat(*blocks, spacing=14) if len(blocks) > 1 else blocks[0]


def by_step(rows: pd.DataFrame, sources: list[str], legends: bool, bottom: bool, left: bool = True) -> alt.LayerChart:
    """Error of the cell's teacher against steps ahead: a line and its interval per source, with the baselines."""
    own = rows[rows["model"] == rows["cell"]]
    kinds = {MODEL: "mse", PERSISTENCE: "persistence_mse"}
    lines = pd.concat([own.assign(kind=kind, error=own[column]) for kind, column in kinds.items()])
    lines = lines[lines["error"] > 0]  # the axis is logarithmic
    means = own.groupby("source", sort=False)["mean_latent_mse"].mean().reset_index(name="error").assign(kind=MEAN)
    legend = dict(title=None, orient="top", offset=2, labelLimit=0, symbolType="stroke", symbolStrokeWidth=1.8)
    others = iter(OTHERS * len(sources))
    colours = alt.Scale(domain=sources, range=[COLOURS.get(source) or next(others) for source in sources])
    dashes = alt.Scale(domain=list(DASHES), range=list(DASHES.values()))
    colour = alt.Color("source:N", scale=colours, legend=alt.Legend(**legend) if legends else None)
    dash = alt.StrokeDash("kind:N", scale=dashes, legend=alt.Legend(**legend) if legends else None)
    whole = alt.Scale(domain=[1, max(int(own["step"].max()), 2)], nice=False)
    steps = alt.Axis(grid=False, format="d", tickMinStep=1)
    x = alt.X("step:Q", title=STEPS if bottom else None, axis=steps, scale=whole)
    ends = pd.concat([lines["error"], means["error"], own["mse_low"], own["mse_high"]]).dropna()
    y = alt.Y("error:Q", title=ERROR if left else None, **logarithmic(ends[ends > 0], "~g"))
    fill = alt.Fill("source:N", scale=colours, legend=None)
    interval = alt.Chart(own.dropna(subset=["mse_low"]).rename(columns={"mse_low": "error"}))
    return alt.layer(
        alt.Chart(means).mark_rule(strokeWidth=1).encode(y=y, color=colour, strokeDash=dash),
        interval.mark_area(opacity=0.2).encode(x=x, y=y, y2="mse_high", fill=fill),
        alt.Chart(lines).mark_line().encode(x=x, y=y, color=colour, strokeDash=dash),
    )


def by_training(rows: pd.DataFrame, bottom: bool, left: bool = True) -> alt.LayerChart:
    """Error of the snapshots on the states of the cell's first source, as a share of the mean latent's, by decisions
    of training; a line for a few steps ahead. Latents of two encoders have no common scale, so no plain errors."""
    last = rows["step"].max()
    steps = sorted({min(step, last) for step in COMPARED} | {last})
    shown = rows[(rows["source"] == rows["source"].iloc[0]) & rows["step"].isin(steps)]
    shown = shown.assign(thousand=shown["decisions"] / 1000, label=shown["step"].map("{} ahead".format))
    whole = alt.Scale(domain=[0, 1.24 * shown["thousand"].max()], nice=False)  # with room for the labels
    x = alt.X("thousand:Q", title=DECISIONS if bottom else None, axis=alt.Axis(grid=False, tickCount=5), scale=whole)

    ends = shown[["share", "share_low", "share_high"]].stack()
    axis = logarithmic(ends[ends > 0], "~%")

    def y(field: str) -> alt.Y:
        return alt.Y(field, type="quantitative", title=SHARE if left else None, **axis)

    base = alt.Chart(shown).encode(x=x, detail="step:N")
    known = base.transform_filter("isValid(datum.share_low) && datum.share_low > 0")
    return alt.layer(
        base.mark_line(color=INK).encode(y=y("share")),
        known.mark_rule(color=INK).encode(y=y("share_low"), y2="share_high"),
        base.mark_point(filled=True, size=18, opacity=1, color=INK).encode(y=y("share")),
        alt.Chart(shown[shown["thousand"] == shown["thousand"].max()])
        .mark_text(align="left", baseline="middle", dx=6, color=INK)
        .encode(x=x, y=y("share"), text="label:N"),
    )


def logarithmic(values: pd.Series, numbers: str) -> dict:
    """Scale and axis that hold all values, with ticks at 1 and 3 times powers of ten, at powers alone over many."""
    low, high = 0.8 * values.min(), 1.1 * values.max()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [m * 10.0**d for d in decades for m in ((1, 3) if len(decades) < 4 else (1,))] + [10.0**decades.stop]
    axis = alt.Axis(
        values=[tick for tick in ticks if low <= tick <= high], format=numbers, minExtent=LABELS, maxExtent=LABELS
    )
    return {"scale": alt.Scale(type="log", domain=[low, high], nice=False), "axis": axis}


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: {"model_error": draw(read(profile))}, arguments)


if __name__ == "__main__":
    main()
