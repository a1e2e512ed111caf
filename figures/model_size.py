"""Return and step time against the size of the model: every arm of the tasks whose teachers come in several sizes.

    python figures/model_size.py --profile paper

reads data/results/paper/horizon/summary.csv and writes figures/paper/model_size.{svg,pdf,png}. Teachers of this project
alone, of each size the one with the first seed; a task with a single size is drawn only if no task has more.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import INK
from lib.config import MODEL_SIZES
from lib.records import paths
from lib.records.keys import ResultError, shown
from lib.records.store import read_table

NAMES, GAP = 104, 14  # units for the names of the arms, and between panels
ROW, ROWS_HEIGHT = 15, 560  # of an arm at most, and of all rows
DODGE = 0.6  # of a row: sizes stand below each other
SHARE = 0.6  # of the width, for returns
COLOURS = dict(zip(MODEL_SIZES, ["#E69F00", "#0072B2", "#D55E00", "#009E73", "#882255"], strict=True))
SHAPES = dict(zip(MODEL_SIZES, ["circle", "square", "triangle-up", "diamond", "cross"], strict=True))


def read(profile: str) -> pd.DataFrame:
    """Arms that all sizes of a task have, and `move`, where a size stands in an arm's row.

    Raises `ResultError` when no teacher of this project was evaluated.
    """
    file = paths.results(profile) / "horizon" / "summary.csv"
    table = read_table(file)
    table = table[table["cell"].map(lambda cell: bool(paths.CELL.fullmatch(cell)))]
    if table.empty:
        raise ResultError(f"{shown(file)} has no arm of a teacher named <task>-<size>-<seed>; evaluate one.")
    first = table.groupby(["task", "size"])["teacher_seed"].transform("min")
    table = table[table["teacher_seed"] == first]
    sizes = table.groupby("task")["size"].transform("nunique")
    if sizes.max() > 1:
        table = table[sizes > 1]
    everywhere = table.groupby(["task", "arm"])["size"].transform("nunique")
    table = table[everywhere == table.groupby("task")["size"].transform("nunique")]
    order = [size for size in MODEL_SIZES if size in set(table["size"])]
    place = {size: DODGE * ((i + 0.5) / len(order) - 0.5) for i, size in enumerate(order)}
    return table.assign(move=table["size"].map(place))


def panel(rows: pd.DataFrame, column: str, title: str | None, left: bool, log: bool = False) -> alt.LayerChart:
    """One quantity of one task's arms, with intervals where the table has them."""
    arms, sizes = list(rows["arm"].unique()), [size for size in MODEL_SIZES if size in set(rows["size"])]
    names = dict(labels=left, ticks=False, domain=False, grid=True, labelLimit=NAMES, labelPadding=4)
    names |= dict(minExtent=NAMES if left else 0, maxExtent=NAMES if left else 0, labelOverlap=False)
    y = alt.Y("arm:N", sort=arms, scale=alt.Scale(domain=arms), title=None, axis=alt.Axis(**names))
    move = alt.YOffset("move:Q", scale=alt.Scale(domain=[-0.5, 0.5]))
    scale = alt.Scale(type="log", nice=False, padding=8) if log else alt.Scale(zero=False)
    values = {"values": [10.0**n for n in range(-2, 4)]} if log else {"tickCount": 6}

    def x(field: str) -> alt.X:
        return alt.X(field, type="quantitative", scale=scale, title=title, axis=alt.Axis(format="~r", **values))

    look = looks(sizes)
    base = alt.Chart(rows.dropna(subset=[column])).encode(y=y, yOffset=move)
    layers = [base.mark_point(filled=True, opacity=1, size=22).encode(x=x(column), **look)]
    if f"{column.removesuffix('_mean')}_low" in rows:
        low, high = (f"{column.removesuffix('_mean')}_{end}" for end in ("low", "high"))
        ends = base.transform_filter(f"datum.{low} < datum.{high}")
        layers.insert(0, ends.mark_rule(strokeWidth=0.9).encode(x=x(low), x2=high, color=look["color"]))
    return alt.layer(*layers)


def looks(sizes: list[str]) -> dict:
    """Colour and shape of these sizes."""
    colours, shapes = (alt.Scale(domain=sizes, range=[of[size] for size in sizes]) for of in (COLOURS, SHAPES))
    return {
        "color": alt.Color("size:N", scale=colours, legend=None),
        "shape": alt.Shape("size:N", scale=shapes, legend=None),
    }


def key(sizes: list[str], width: float) -> alt.LayerChart:
    """What the marks mean, in one line above the panels."""
    rows = pd.DataFrame({"size": sizes, "at": range(len(sizes)), "words": [f"{size} model" for size in sizes]})
    x = alt.X("at:Q", scale=alt.Scale(domain=[-0.2, max(3.5, len(sizes) - 0.2)], nice=False), axis=None)
    base = alt.Chart(rows).encode(x=x)
    marks = base.mark_point(filled=True, opacity=1, size=30).encode(**looks(sizes))
    words = base.mark_text(align="left", dx=7, color=INK, fontSize=charts.FONT_SIZE).encode(text="words")
    return alt.layer(marks, words).properties(width=width, height=12)


def draw(table: pd.DataFrame) -> alt.TopLevelMixin:
    """A row of panels per task: return, and where it was measured the time of a step."""
    tasks, timed = list(table["task"].unique()), table["step_ms"].notna().any()
    room = charts.FULL_WIDTH - NAMES - (GAP if timed else 0)
    widths = (SHARE * room, (1 - SHARE) * room) if timed else (room,)
    arms = table.groupby("task")["arm"].nunique()
    step = min(ROW, ROWS_HEIGHT / arms.sum())
    rows = [key([size for size in MODEL_SIZES if size in set(table["size"])], room)]
    for task in tasks:
        mine, bottom = table[table["task"] == task], task == tasks[-1]
        panels = [panel(mine, "return_mean", "Return per episode" if bottom else None, True)]
        if timed:
            panels.append(panel(mine, "step_ms", "Control step (ms, log)" if bottom else None, False, log=True))
        sized = [p.properties(width=w, height=step * arms[task]) for p, w in zip(panels, widths, strict=True)]
        row = alt.hconcat(*sized, spacing=GAP)
        rows.append(row.properties(title=alt.Title(task, color=INK)) if len(tasks) > 1 else row)
    return alt.vconcat(*rows, spacing=6).resolve_scale(color="independent", shape="independent")


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: {"model_size": draw(read(profile))}, arguments)


if __name__ == "__main__":
    main()
