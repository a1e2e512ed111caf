"""What was picked for every cell in each chain, and what fresh episodes say of the promise: return kept, and the cost.

    python figures/certified.py --profile paper

reads data/results/paper/certified/summary.csv and writes figures/paper/certified.{svg,pdf,png}. A column of panels per
chain, a row per cell: the share of the teacher's return that the pick keeps with its interval, beside the promised
98 %, and above it the pick's name and how many times fewer model evaluations it needs than the teacher.
"""

from __future__ import annotations

import math

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import INK, MUTED
from lib.records import paths
from lib.records.store import read_table
from lib.study.stats.certification import KEEP

X_TITLE = "Return kept (%)"
CHAINS = {
    "planners": "smaller planners",
    "reuse": "plans reused",
    "drafts": "checked drafts",
    "clone": "clone",
    "all": "cheapest of all",
}
# Verdict → words, colour and shape; the teacher keeps its own return, which shows nothing.
VERDICTS = {
    "shown": ("promise shown", "#009E73", "circle"),
    "inconclusive": ("inconclusive", "#E69F00", "diamond"),
    "broken": ("promise broken", "#D55E00", "cross"),
    "fallback": ("only the teacher passed", MUTED, "square"),
}
NAMES, GAP, ROW, HEIGHT = 104, 8, 27, 580  # units: names of cells, between panels, of a row at most, of all rows
LEAST, MOST = 90.0, 104.0  # percent on the axis, unless something lies beyond
ROOM = 0.7  # percent beyond it


def read(profile: str) -> pd.DataFrame:
    """The summary's rows with percents, the cell's `title`, what is written above the mark, and its look."""
    rows = read_table(paths.results(profile) / "certified" / "summary.csv")
    looks = [VERDICTS["fallback" if f else v] for f, v in zip(rows["fallback"], rows["verdict"], strict=True)]
    percents = {
        name: 100 * rows[column] for name, column in (("y", "kept"), ("low", "kept_low"), ("high", "kept_high"))
    }
    costs = [cheaper(r) for r in rows["evaluations_ratio"]]
    return rows.assign(
        title=[pages.cell_title(cell, rows["cell"]) for cell in rows["cell"]],
        label=[
            f"{p}, {c}" if c and not f else p for p, c, f in zip(rows["pick"], costs, rows["fallback"], strict=True)
        ],
        look=[words for words, _, _ in looks],
        **percents,
    )


def cheaper(ratio: float) -> str:
    """How many times fewer evaluations, as text; "" where that is not known."""
    return (
        "" if math.isnan(ratio) else "∞×" if math.isinf(ratio) else f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×"
    )


def draw(rows: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure: a column per chain of the table, in their order."""
    chains = [chain for chain in CHAINS if chain in set(rows["chain"])]
    width = (charts.FULL_WIDTH - NAMES - GAP * (len(chains) - 1)) / len(chains)
    drawn = [panel(rows[rows["chain"] == chain], rows, CHAINS[chain], width, n == 0) for n, chain in enumerate(chains)]
    return alt.hconcat(*drawn, spacing=GAP)


def panel(mine: pd.DataFrame, rows: pd.DataFrame, title: str, width: float, first: bool) -> alt.LayerChart:
    """One chain; only the `first` panel names the cells and has the legend, which stands for all."""
    cells = list(dict.fromkeys(rows["title"]))
    ends = rows[["y", "low", "high"]]
    domain = [min(LEAST, ends.min(axis=None) - ROOM), max(MOST, ends.max(axis=None) + ROOM)]
    x = alt.Scale(domain=domain, nice=False)
    names = dict(labels=first, ticks=False, domain=False, grid=False, labelLimit=NAMES, labelOverlap=False)
    extent = dict(minExtent=NAMES if first else 0, maxExtent=NAMES if first else 0)
    y = alt.Y("title:N", sort=cells, scale=alt.Scale(domain=cells), title=None, axis=alt.Axis(**names, **extent))

    def at(field: str) -> alt.X:
        axis = alt.Axis(tickCount=4, format="d", labelOverlap=True)
        return alt.X(field, type="quantitative", scale=x, axis=axis, title=X_TITLE)

    words, colours, shapes = (list(each) for each in zip(*VERDICTS.values(), strict=True))
    legend = alt.Legend(title=None, orient="bottom", columns=len(words), symbolStrokeWidth=0)
    legend = legend if first else None
    look = {
        "color": alt.Color("look:N", scale=alt.Scale(domain=words, range=colours), legend=legend),
        "shape": alt.Shape("look:N", scale=alt.Scale(domain=words, range=shapes), legend=legend),
    }
    promise = alt.Chart(pd.DataFrame({"at": [100 * KEEP]}))
    base = alt.Chart(mine).encode(y=y)
    height = min(ROW * len(cells), HEIGHT)
    text = dict(align="center", baseline="bottom", dy=-6, fontSize=charts.FONT_SIZE - 2)
    label = dict(x=alt.value(width / 2), text="label:N")
    layers = [
        promise.mark_rule(color=MUTED, strokeDash=[3, 2], strokeWidth=0.8).encode(x=at("at")),
        base.mark_text(**text, stroke="white", strokeWidth=3).encode(**label),  # keeps clear of the rule behind
        base.transform_filter("datum.low < datum.high").mark_rule(strokeWidth=1).encode(
            x=at("low"), x2="high", color=look["color"]
        ),
        base.mark_point(size=30, filled=True, opacity=1).encode(x=at("y"), **look),
        base.mark_text(**text, color=INK).encode(**label),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=width, height=height, title=alt.Title(title, frame="group", offset=3))


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: {"certified": draw(read(profile))}, arguments)


if __name__ == "__main__":
    main()
