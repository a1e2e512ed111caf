"""Return kept against the execution horizon, and the gain over open loop with the same one; a row per cell.

    python figures/horizon.py --profile quick

reads data/results/quick/horizon/summary.csv and writes figures/quick/horizon.{svg,pdf,png}; of more than three cells
those with the most episodes, and the others in horizon-cells.{svg,pdf,png}.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import INK, MUTED
from figures.scales import LEAST, Scale, kept_ticks
from lib.records import paths
from lib.records.store import read_table

AXIS, NAMES, GAP = 34, 82, 14  # units for the axis of the first panel, for names of schemes, and between panels
HEIGHT, ROWS_HEIGHT, ROW_EXTRA = 150, 430, 36  # of a panel at most, of all rows, and what a row needs beside its panels
PAGE_HEIGHT = 560  # of all rows on a page of their own
MOST, MOST_OF_PAGE = 3, 4  # cells whose schemes still have room for their names
BELOW = 9  # units under `LEAST`: arrows for what lies further down
NAME_SIZE, NAME_LINE = 7, 7.4  # font size of the names of schemes, and units of height that each needs
DODGE = 0.8  # of the distance between two execution horizons: families stand beside each other
PLANNERS = {False: "standard planner", True: "smaller planner"}
LOOKS = {family.name: family for family in charts.FAMILIES.values()}
COLOURS = alt.Scale(domain=list(LOOKS), range=[family.colour for family in LOOKS.values()])
SHAPES = alt.Scale(domain=list(LOOKS), range=[family.shape for family in LOOKS.values()])
X_TITLE, Y_TITLE = "Steps of each plan, at most", "Return kept (% of teacher)"
GAIN_TITLE = "Gain over open loop (return)"


def read(profile: str) -> pd.DataFrame:
    """The table of arms with a plan: `family`, and the `planner` underneath where it is a smaller one (`small`)."""
    table = read_table(paths.results(profile) / "horizon" / "summary.csv")
    table = table.assign(
        family=[charts.family(scheme).name for scheme in table["scheme"]],
        planner=table.apply(charts.small_planner, axis=1),
        small=lambda arms: arms["planner"] != "",
    )
    return table[table["planner_calls"] > 0]


def along(arms: pd.DataFrame, small: bool, steps: list[int]) -> pd.DataFrame:
    """Arms of one planner, and lines of families from the planner that is asked at every step.

    `steps` are the places on the axis; `at` is an arm's, beside those of other families. Rows of a `line` are one
    family on one planner with several execution horizons, and their start; rows without a line are an arm that has
    none, as gates replan earlier than their horizon says.
    """
    mine = arms[arms["small"] == small]
    several = mine[mine["execution_horizon"] > 1]
    starts = mine[mine["scheme"] == ("budget" if small else "teacher")]
    names = list(several["family"].unique())
    place = {name: DODGE * ((i + 0.5) / len(names) - 0.5) for i, name in enumerate(names)}
    parts = [starts[starts["planner"] == planner].assign(line=None) for planner in several["planner"].unique()]
    parts = parts or [starts.assign(line=None)]
    for (planner, family), group in several.groupby(["planner", "family"], sort=False):
        if group["execution_horizon"].nunique() == 1:
            parts.append(group.assign(line=None))
        else:
            start = starts[starts["planner"] == planner]
            parts.append(pd.concat([start, group]).assign(line=f"{planner} {family}", colour_of=family))
    rows = pd.concat(parts, ignore_index=True)
    rows["at"] = [
        steps.index(e) + (place[name] if e > 1 else 0)
        for e, name in zip(rows["execution_horizon"], rows["family"], strict=True)
    ]
    for column in ("kept", "kept_low", "kept_high"):
        rows[column] *= 100
    return rows.sort_values("execution_horizon", kind="stable")


def kept_panel(rows: pd.DataFrame, small: bool, steps: list[int], height: Scale, left: bool, bottom: bool):
    """Return kept of one planner's arms against their execution horizon."""
    names = " : ".join([f"datum.value == {i} ? '{e}'" for i, e in enumerate(steps)] + ["''"])
    x = alt.X(
        "at:Q",
        title=X_TITLE if bottom else None,
        scale=alt.Scale(domain=[-0.5, len(steps) - 0.5], nice=False),
        axis=alt.Axis(values=list(range(len(steps))), labelExpr=names, grid=False),
    )
    extent = AXIS - 14 if left else 0
    shown = dict(labels=left, ticks=left, domain=left, labelOverlap=False, minExtent=extent, maxExtent=extent)
    axis = alt.Axis(**shown, values=kept_ticks(height))

    def y(field: str) -> alt.Y:
        return alt.Y(field, type="quantitative", scale=height.altair, axis=axis, title=Y_TITLE if left else None)

    numbers = ["kept", "kept_low", "kept_high"]
    below = rows[numbers].min(axis=1) < LEAST
    base = alt.Chart(rows.assign(below=below, least=LEAST, **rows[numbers].clip(lower=LEAST))).encode(x=x)
    layers = [
        alt.Chart(pd.DataFrame({"y": [100]}))
        .mark_rule(color=MUTED, strokeDash=[3, 2], strokeWidth=0.8)
        .encode(y=y("y")),
        base.transform_filter("isValid(datum.line)")
        .mark_line(strokeWidth=0.7, opacity=0.6)
        .encode(y=y("kept"), detail="line:N", color=alt.Color("colour_of:N", scale=COLOURS, legend=None)),
        base.transform_filter("datum.kept_low < datum.kept_high")
        .mark_rule(strokeWidth=0.8, opacity=0.7)
        .encode(y=y("kept_low"), y2="kept_high", color=alt.Color("family:N", scale=COLOURS, legend=None)),
        _marks(base, small, y=y("kept")),
        base.transform_filter("datum.below")
        .mark_point(filled=True, size=22, opacity=1, shape=charts.CUT, yOffset=6)
        .encode(y=y("least"), color=alt.Color("family:N", scale=COLOURS, legend=None)),
    ]
    title = alt.Title(PLANNERS[small], anchor="middle", fontSize=charts.FONT_SIZE)
    return alt.layer(*layers).properties(title=title)


def gain_panel(rows: pd.DataFrame, bottom: bool):
    """What each arm of a cell returns more than open-loop execution of the same planner with the same horizon."""
    rows = rows.assign(
        move=rows["small"].map({False: -0.2, True: 0.2}),
        scheme=rows["scheme"] + "-" + rows["execution_horizon"].astype(str),
    )
    schemes = list(rows["scheme"].unique())
    label = dict(labelLimit=NAMES, labelOverlap=False, labelFontSize=NAME_SIZE)
    names = alt.Axis(grid=True, **label, minExtent=NAMES, maxExtent=NAMES, labelPadding=4, ticks=False)
    y = alt.Y("scheme:N", sort=schemes, scale=alt.Scale(domain=schemes), title=None, axis=names)
    move = alt.YOffset("move:Q", scale=alt.Scale(domain=[-0.5, 0.5]))
    base = alt.Chart(rows).encode(y=y, yOffset=move)

    def x(field: str) -> alt.X:
        axis = alt.Axis(grid=False, tickCount=5)
        return alt.X(field, type="quantitative", axis=axis, title=GAIN_TITLE if bottom else None)

    layers = [
        alt.Chart(pd.DataFrame({"gain": [0]}))
        .mark_rule(color=MUTED, strokeDash=[3, 2], strokeWidth=0.8)
        .encode(x=x("gain")),
        base.transform_filter("datum.gain_low < datum.gain_high")
        .mark_rule(strokeWidth=0.9, opacity=0.7)
        .encode(x=x("gain_low"), x2="gain_high", color=alt.Color("family:N", scale=COLOURS, legend=None)),
        *(_marks(base.transform_filter(alt.datum.small == small), small, x=x("gain")) for small in PLANNERS),
    ]
    return alt.layer(*layers)


def _marks(base: alt.Chart, small: bool, **place) -> alt.Chart:
    """Marks in the look of the family, hollow on a smaller planner."""
    fill = alt.value("white") if small else alt.Fill("family:N", scale=COLOURS, legend=None)
    return base.mark_point(opacity=1, strokeWidth=0.9, size=24).encode(
        stroke=alt.Stroke("family:N", scale=COLOURS, legend=None),
        shape=alt.Shape("family:N", scale=SHAPES, legend=None),
        fill=fill,
        **place,
    )


def drawings(table: pd.DataFrame) -> dict[str, alt.TopLevelMixin]:
    """The figures from what `read` gives: what stands beside the text, and the other cells where there are more."""
    first = pages.fitting(table, MOST)
    others = table[~table["cell"].isin(first["cell"])]
    found = {"horizon": draw(first)}
    if len(others):
        found["horizon-cells"] = draw(pages.fitting(others, MOST_OF_PAGE, "horizon-cells"), PAGE_HEIGHT, named=True)
    return found


def draw(table: pd.DataFrame, rows_height: float = ROWS_HEIGHT, named: bool = False) -> alt.TopLevelMixin:
    """A row per cell: return kept on each planner, and gains; a single cell has its name where that is asked for."""
    cells = list(table["cell"].unique())
    several = table[table["execution_horizon"] > 1]
    small = [flag for flag in PLANNERS if several["small"].eq(flag).any()] or [False]
    gains = table.dropna(subset=["gain"])
    steps = sorted(table["execution_horizon"].unique())
    panels_wide = len(small) + bool(len(gains))
    width = (charts.FULL_WIDTH - AXIS - (NAMES if len(gains) else 0) - GAP * panels_wide) / panels_wide
    rows = []
    for cell in cells:
        arms, bottom = table[table["cell"] == cell], cell == cells[-1]
        found = {flag: along(arms, flag, steps) for flag in small}
        shown = pd.concat(found.values())[["kept", "kept_low", "kept_high"]].stack()
        names = gains.loc[gains["cell"] == cell, ["scheme", "execution_horizon"]].drop_duplicates()
        height = max(min(HEIGHT, rows_height / len(cells) - ROW_EXTRA), NAME_LINE * len(names))
        low, high = min(shown.min(), 98) - 1, max(shown.max(), 100) + 1
        if shown.min() < LEAST:
            low = LEAST - BELOW * (high - LEAST) / (height - BELOW)
        y = Scale(low, high, height, linear=True)
        panels = [kept_panel(found[flag], flag, steps, y, flag == small[0], bottom) for flag in small]
        if len(gains):
            panels.append(gain_panel(gains[gains["cell"] == cell], bottom))
        row = alt.hconcat(*(panel.properties(width=width, height=height) for panel in panels), spacing=GAP)
        title = alt.Title(pages.cell_title(cell, cells), color=INK)
        rows.append(row.properties(title=title) if named or len(cells) > 1 else row)
    return alt.vconcat(*rows, spacing=6)


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: drawings(read(profile)), arguments)


if __name__ == "__main__":
    main()
