"""What there is to choose from: return kept against the time of a control step, a panel for each cell, few arms.

    python figures/choices.py --profile quick

reads data/results/quick/horizon/summary.csv, writes figures/quick/choices.{svg,pdf,png}. The line joins planners that
are asked at every step, from the smallest to the teacher. Of more cells than fit a page, those with the most episodes
are drawn.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from figures import charts, pages
from lib.records import paths
from lib.records.store import read_table

COLUMNS, MOST = 4, 8  # panels in a row, and on a page
AXIS, GAP, HEIGHT = 34, 10, 96
EVERY_STEP = charts.words("teacher")
# Scheme → its arms that are drawn, by the beginning of their names; the first that was played.
DRAWN = {
    "policy": ("policy",),
    "open-loop": ("64×2+open-loop-6", "64×2+open-loop-3"),
    "gated": ("64×2+gated-6", "gated-3"),
    "distilled": ("distilled",),
    "cloned": ("cloned",),
    "draft+gated": ("128×2+draft+gated-3-r30",),
}
WORDS = {scheme: charts.words(scheme) for scheme in DRAWN}


def marks(summary: pd.DataFrame) -> pd.DataFrame:
    """One row for each mark: cell, `way`, colour, shape, `step_ms`, and return kept with its interval in percent."""
    rows = summary.dropna(subset=["step_ms", "kept"])
    found = []
    for _, arms in rows.groupby("cell", sort=False):
        every = arms[arms["scheme"].isin(["teacher", "budget"])]
        found.append(every.assign(way=EVERY_STEP, look="teacher"))
        for scheme, names in DRAWN.items():
            played = [name for name in names if name in set(arms["arm"])]
            found.append(arms[arms["arm"].isin(played[:1])].assign(way=WORDS[scheme], look=scheme))
    table = pd.concat(found, ignore_index=True)
    for column in ("kept", "kept_low", "kept_high"):
        table[column] *= 100
    return table[["cell", "way", "look", "step_ms", "kept", "kept_low", "kept_high"]]


def draw(summary: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure: rows of up to four panels with the same axes, and behind the last one what its marks mean."""
    summary = pages.fitting(summary, MOST, "choices")
    table = marks(summary)
    cells = list(table["cell"].drop_duplicates())
    columns = min(len(cells), COLUMNS)
    whole = charts.COLUMN_WIDTH if columns == 1 else charts.FULL_WIDTH
    width = (whole - AXIS - GAP * (columns - 1)) / columns
    ends = table["step_ms"].min() / 1.4, table["step_ms"].max() * 1.4
    top = max(115.0, 1.02 * table["kept_high"].max())
    looks = {EVERY_STEP: charts.EVERY_STEP} | {words: charts.family(scheme) for scheme, words in WORDS.items()}
    looks = {way: look for way, look in looks.items() if (table["way"] == way).any()}
    panels = [
        panel(table[table["cell"] == cell], pages.cell_title(cell, cells), looks, width, ends, top,
              number % columns == 0, number + columns >= len(cells))
        for number, cell in enumerate(cells)
    ]  # fmt: skip
    key = charts.key(looks, width)
    return alt.concat(*panels, key, columns=columns, spacing={"row": 8, "column": GAP})


def panel(rows: pd.DataFrame, title: str, looks: dict, width: float, ends: tuple, top: float, left: bool, bottom: bool):
    """One cell. Only at the `left` and `bottom` do axes have titles and labels."""
    names = list(looks)
    colour = alt.Color("way:N", scale=alt.Scale(domain=names, range=[f.colour for f in looks.values()]), legend=None)
    shape = alt.Shape("way:N", scale=alt.Scale(domain=names, range=[f.shape for f in looks.values()]), legend=None)
    x = alt.X(
        "step_ms:Q",
        scale=alt.Scale(type="log", domain=list(ends), nice=False),
        axis=alt.Axis(grid=False, values=[0.1, 1, 10, 100], format="~g", labels=bottom),
        title="Mean control step (ms)" if bottom else None,
    )

    def y(field: str) -> alt.Y:
        extent = AXIS - 14 if left else 0
        axis = alt.Axis(
            values=[0, 25, 50, 75, 100], labels=left, ticks=left, domain=left, minExtent=extent, maxExtent=extent
        )
        scale = alt.Scale(domain=[0, top], nice=False)
        return alt.Y(field, type="quantitative", scale=scale, axis=axis, title="Return kept (%)" if left else None)

    base = alt.Chart(rows).encode(x=x, color=colour)
    layers = [
        alt.Chart(pd.DataFrame({"y": [100]})).mark_rule(color=charts.MUTED, strokeDash=[3, 2], strokeWidth=0.7)
        .encode(y=y("y")),
        base.transform_filter("datum.kept_low < datum.kept_high").mark_rule(strokeWidth=0.9, opacity=0.7)
        .encode(y=y("kept_low"), y2="kept_high"),
        base.transform_filter(alt.datum.way == EVERY_STEP).mark_line(strokeWidth=1).encode(y=y("kept")),
        base.mark_point(filled=True, size=34, opacity=1).encode(y=y("kept"), shape=shape),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=width, height=HEIGHT, title=alt.Title(title, offset=3))


def main(arguments: list[str] | None = None) -> None:
    def figures(profile: str) -> dict[str, alt.TopLevelMixin]:
        return {"choices": draw(read_table(paths.results(profile) / "horizon" / "summary.csv"))}

    pages.command_line(__doc__, figures, arguments)


if __name__ == "__main__":
    main()
