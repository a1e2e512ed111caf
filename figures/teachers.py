"""Learning curves of the teachers and what they return in the end, one panel per task, beside the official agent.

    python figures/teachers.py --profile quick

reads data/results/quick/teacher/ and data/official_returns.csv, writes figures/quick/teachers.{svg,pdf,png}.
"""

from __future__ import annotations

from pathlib import Path

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import INK
from lib.config import MODEL_SIZES
from lib.files import files
from lib.records import paths
from lib.records.keys import ResultError, shown
from lib.records.store import how_to_make, read_table

COLUMNS, GAP, HEIGHT = 3, 12, 100
AXIS = 46  # units that the axis of the first panel of a row takes
FIRST = 200  # thousands of frames that are shown at least
TOP = 1000  # the largest return of a DMControl task
MARK = 3.5  # half of a card's mark, caps of its interval included
OFFICIAL = "official, 5m"
# Okabe–Ito colours for sizes; seeds are told apart by the shape of the card's mark and the dashes of the line.
COLOURS = dict(zip(MODEL_SIZES, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"), strict=True))
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ([1, 0], [4, 2], [1.5, 1.5], [6, 1.5, 1.5, 1.5], [8, 2], [3, 1])


def read(profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves (a row per evaluation) and cards (a row per teacher) of a profile, frames in thousands.

    A teacher from elsewhere, whose training is not known, has no place on the axis and is left out. Raises
    `ResultError` if no teacher is left.
    """
    folder = paths.results(profile) / "teacher"
    cards = {path: read_table(path) for path in files(folder, "*-card.csv")}
    trained = {path: card for path, card in cards.items() if card["frames"].notna().all()}
    if not trained:
        raise ResultError(f"{shown(folder)} holds no card of a teacher; {how_to_make(folder / 'card.csv')}.")
    curves = [read_table(curve_of(path)).assign(**key(card)) for path, card in trained.items()]
    tables = pd.concat(curves, ignore_index=True), pd.concat(trained.values(), ignore_index=True)
    return tuple(table.assign(seed=table["seed"].astype(int), thousand=table["frames"] / 1000) for table in tables)


def curve_of(card: Path) -> Path:
    """The learning curve that belongs to a card's file."""
    return card.with_name(card.name.removesuffix("-card.csv") + ".csv")


def key(card: pd.DataFrame) -> dict:
    return {name: card[name].iloc[0] for name in ("task", "size", "seed")}


def draw(curves: pd.DataFrame, cards: pd.DataFrame, official: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure: one panel a column wide for one task, else rows of up to three panels."""
    tasks = sorted(cards["task"].unique(), key=lambda task: (":" in task, task))  # those of other simulators last
    columns = min(len(tasks), COLUMNS)
    whole = charts.COLUMN_WIDTH if columns == 1 else charts.FULL_WIDTH
    width = (whole - AXIS - GAP * (columns - 1)) / columns
    most = 1.06 * max(FIRST, cards["thousand"].max())
    official = official.assign(thousand=official["frames"] / 1000)
    official = official[official["thousand"] <= most]
    points = apart(cards, width / most)
    sizes = [size for size in MODEL_SIZES if size in set(cards["size"])]
    looks = {"sizes": sizes, "seeds": sorted(cards["seed"].unique().tolist()), "most": most, "width": width}
    panels = []
    for number, task in enumerate(tasks):
        mine = (table[table["task"] == task] for table in (curves, points, official))
        left, bottom = number % columns == 0, number + columns >= len(tasks)
        panels.append(panel(task, *mine, left=left, bottom=bottom, **looks))
    if len(panels) == 1:
        return panels[0]
    chart = alt.concat(*panels, columns=columns, spacing={"row": 10, "column": GAP})
    return chart.resolve_scale(color="shared", shape="shared", strokeDash="shared")


def panel(task, curves, cards, official, left: bool, bottom: bool, sizes, seeds, most, width) -> alt.LayerChart:
    """One task. `left` and `bottom` say where the panel stands: only there do the axes have titles and labels."""

    def x(field: str) -> alt.X:
        title = "Simulator frames (thousands)" if bottom else None
        axis = alt.Axis(grid=False, tickCount=5, format="d", labels=bottom)
        return alt.X(field, type="quantitative", title=title, axis=axis, scale=alt.Scale(domain=[0, most], nice=False))

    own = ":" in task  # a scale of its own: only DMControl's returns are at most 1000 everywhere
    labelled, top = left or own, TOP
    if own:
        top = max(curves["return"].max(), cards["return_mean"].max(), cards.get("return_high", pd.Series([0])).max())
        width -= 0 if left else AXIS - 22

    def y(field: str) -> alt.Y:
        extent = AXIS - 22 if labelled else 0
        options = dict(labels=labelled, ticks=labelled, domain=labelled, minExtent=extent, maxExtent=extent)
        options |= dict(tickCount=5) if own else dict(values=list(range(0, TOP + 1, 250)))
        axis = alt.Axis(format="d", **options)
        low = min(0, curves["return"].min()) if own else 0
        scale = alt.Scale(domain=[low, 1.05 * top], nice=False)  # so that the highest label is level with other panels
        return alt.Y(field, type="quantitative", title="Return per episode" if left else None, axis=axis, scale=scale)

    legend = dict(title=None, orient="top", offset=4, symbolSize=55, labelLimit=0)
    colours = alt.Scale(domain=[*sizes, OFFICIAL], range=[*(COLOURS[size] for size in sizes), INK])
    colour = alt.Color("size:N", scale=colours, legend=alt.Legend(**legend, symbolType="stroke", symbolStrokeWidth=1.8))
    by_seed = (
        alt.Legend(**legend | {"symbolSize": 30}, symbolFillColor=INK, symbolStrokeWidth=0) if len(seeds) > 1 else None
    )
    names = [f"seed {seed}" for seed in seeds]
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=list(SHAPES[: len(seeds)])), legend=by_seed)
    dash = alt.StrokeDash("seed:N", scale=alt.Scale(domain=seeds, range=list(DASHES[: len(seeds)])), legend=None)

    ends = alt.Chart(cards.assign(name="seed " + cards["seed"].astype(str))).encode(x=x("x"), color=colour)
    known = ends.transform_filter("isValid(datum.return_low)")
    layers = [
        alt.Chart(official.assign(size=OFFICIAL))
        .mark_tick(orient="horizontal", size=13, thickness=1.8, opacity=1)
        .encode(x=x("thousand"), y=y("return"), color=colour),
        alt.Chart(curves)
        .mark_line(strokeWidth=1.2)
        .encode(x=x("thousand"), y=y("return"), color=colour, strokeDash=dash, detail="size:N"),
        known.mark_rule(strokeWidth=1.1).encode(y=y("return_low"), y2="return_high"),
        *(
            known.mark_tick(orient="horizontal", size=2 * MARK, thickness=1.1, opacity=1).encode(y=y(end))
            for end in ("return_low", "return_high")
        ),
        ends.mark_point(filled=True, size=24, opacity=1).encode(y=y("return_mean"), shape=shape),
    ]
    return alt.layer(*layers).properties(width=width, height=HEIGHT, title=alt.Title(task, frame="group", offset=2))


def apart(cards: pd.DataFrame, per_x: float) -> pd.DataFrame:
    """`cards` with `x`, thousands of frames: true for the first of a task, and right of those it would cover."""
    places = {}
    for _, mine in cards.sort_values(["thousand", "size", "seed"]).groupby("task"):
        taken = float("-inf")
        for index, true in mine["thousand"].items():
            places[index] = taken = max(true, taken + 2.2 * MARK / per_x)
    return cards.assign(x=pd.Series(places))


def main(arguments: list[str] | None = None) -> None:
    def figure(profile: str) -> dict[str, alt.TopLevelMixin]:
        return {"teachers": draw(*read(profile), read_table(paths.DATA / "official_returns.csv"))}

    pages.command_line(__doc__, figure, arguments)


if __name__ == "__main__":
    main()
