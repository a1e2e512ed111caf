"""Return kept when plans take time: against how many times slower the computer is, and against the delay itself.

    python figures/deadlines.py --profile smoke

reads data/results/smoke/deadlines/summary.csv and writes figures/smoke/deadlines.{svg,pdf,png}, in which each arm has
the delay that its solve takes on such a computer, and figures/smoke/deadlines-delay.{svg,pdf,png} of every arm; a row
per cell, a column per planner, or two cells beside each other where all have one planner. A line ends where the step in
the foreground is late itself, or delays are longer than was played. Of more cells than fit a page, those with the most
episodes are drawn.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import MUTED
from lib.records import paths
from lib.records.store import read_table
from lib.study.stats.deadlines import EVERY_STEP, KEEP, computers

SLOWER, DELAY, KEPT = "Computer, times slower", "Delay (decisions)", "Return kept (%)"
LEAST, MOST = 1.0, 100.0  # times slower
AXIS, GAP, HEIGHT = 40, 12, 104  # units: axis of the first panel, between panels, of a panel
WORDS, NAMES = 90, 104  # units for what arms are called in words, and for their names
LINE = 9.5  # units from name to name
ROWS = 4  # of cells, on a page
MAIN = ("late-hold", "async", "async+delay-aware", "async+delay-aware+clone", "cloned", "policy")  # of the first figure
PLANNED, AT_ONCE, WITH_CLONE = "planned", "at once", "async+delay-aware+clone"  # kinds of lines; the last has the
DASHES = {PLANNED: [1, 0], AT_ONCE: [5, 2], WITH_CLONE: [1.5, 1.5]}  # colour of the arm whose plans it has
BETWEEN = 8  # units between cells
DODGE = 0.07  # decisions between marks of different arms
BESIDE = ["cell", "arm", "planner"]


def read(profile: str) -> pd.DataFrame:
    """The rows of `lib.study.stats.deadlines.summarise` of a profile."""
    return read_table(paths.results(profile) / "deadlines" / "summary.csv")


def drawings(table: pd.DataFrame) -> dict[str, alt.TopLevelMixin]:
    """Both figures, by name."""
    table = pages.fitting(table, ROWS * side_by_side(table), "deadlines")
    few = table[table["arm"].isin([EVERY_STEP, *MAIN])]
    said = {arm: charts.words("teacher" if arm == EVERY_STEP else arm) for arm in few["arm"].unique()}
    return {"deadlines": draw(slower(few), few, SLOWER, said), "deadlines-delay": draw(delayed(table), table, DELAY)}


def side_by_side(table: pd.DataFrame) -> int:
    """How many cells stand beside each other."""
    return 2 if table["planner"].nunique() == 1 and table["cell"].nunique() > 1 else 1


def slower(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of marks: `x`, the slowest of the computers on which an arm has a delay, and from which on, `begin`."""
    marks = on_each_planner(computers(table), table)
    marks = marks[(marks["to"] > LEAST) & (marks["from"] < MOST)]
    return marks.assign(begin=marks["from"].clip(lower=LEAST), x=marks["to"].clip(upper=MOST))


def delayed(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of marks: `x`, the delay, beside that of other arms; all lines begin without delay, where they are one."""
    start, later = table[table["arm"] == EVERY_STEP], table[table["arm"] != EVERY_STEP]
    ways = later.dropna(subset="planner")[BESIDE].drop_duplicates()
    begun = start.drop(columns="arm").merge(ways, on=["cell", "planner"])
    flat = later[later["planner"].isna()]
    last = float(table["delay"].max())
    flat = pd.concat([flat.assign(delay=0), flat.assign(delay=last)])
    marks = on_each_planner(pd.concat([begun, later.dropna(subset="planner"), flat, start]), table)
    arms = list(table["arm"].unique())
    beside = marks["arm"].map({arm: DODGE * (i - len(arms) / 2) for i, arm in enumerate(arms)})
    x = marks["delay"].astype(float)
    return marks.assign(x=x + beside.where(marks["planned"] & (x > 0), 0.0))


def on_each_planner(marks: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """What acts without a plan stands beside every planner of its cell; `planned` is whether a mark has one."""
    planners = table.dropna(subset="planner")[["cell", "planner"]].drop_duplicates()
    without = marks[marks["planner"].isna()].drop(columns="planner").merge(planners, on="cell")
    return pd.concat([marks.dropna(subset="planner").assign(planned=True), without.assign(planned=False)])


def draw(marks: pd.DataFrame, table: pd.DataFrame, title: str, said: dict[str, str] | None = None) -> alt.TopLevelMixin:
    """A figure of `marks`; the `table` says which cells, planners and arms there are, `said` what arms are called where
    that is not their own name, as it is in the tables of the appendix."""
    cells, planners = list(table["cell"].unique()), ordered(table["planner"].dropna().unique())
    columns, arms = side_by_side(table), list(table["arm"].unique())  # scales are shared: panels may lack some
    called = WORDS if said else NAMES
    room = (charts.FULL_WIDTH - BETWEEN * (columns - 1)) / columns
    width = min(200, (room - AXIS - called - GAP * len(planners)) / len(planners))
    rows = []
    for number, cell in enumerate(cells):
        mine, whole = marks[marks["cell"] == cell], table[table["cell"] == cell]
        own = ordered(whole["planner"].dropna().unique())
        ends = 100 * whole[["kept", "kept_low", "kept_high"]].stack()
        domain = [min(0, ends.min()), max(105, ends.max() + 1)]
        bottom = number >= len(cells) - columns
        row = [
            panel(mine[mine["planner"] == planner], arms, planner if len(planners) > 1 else "", domain,
                  title if bottom else "", planner == own[0])
            for planner in own
        ]  # fmt: skip
        row = [one.properties(width=width, height=HEIGHT) for one in row]
        titled = pages.cell_title(cell, cells)
        about = alt.Title(f"{titled}, {planners[0]}" if len(planners) == 1 else titled, offset=2)
        rows.append(
            alt.hconcat(*row, names(mine, arms, domain, said or {}, called), spacing=GAP).properties(title=about)
        )
    return alt.concat(*rows, columns=columns, spacing=BETWEEN) if len(rows) > 1 else rows[0]


def panel(
    marks: pd.DataFrame, arms: list[str], planner: str, domain: list[float], title: str, left: bool
) -> alt.LayerChart:
    """One cell and planner. Only at the left and bottom do axes have titles."""
    by_computer = "from" in marks
    marks = marks.assign(**{name: 100 * marks[name].astype(float) for name in ("kept", "kept_low", "kept_high")})
    if by_computer:
        scale = alt.Scale(type="log", domain=[LEAST, MOST], nice=False)
        axis = alt.Axis(values=[1, 3, 10, 30, 100], format="d", grid=False, labelOverlap=False)
        corners = pd.concat([marks.assign(x=marks["begin"], order=0), marks.assign(order=1)])
        corners = corners.sort_values(["from", "order"], kind="stable").reset_index(drop=True)
        middle = marks.assign(x=(marks["begin"] * marks["x"]) ** 0.5)
    else:
        last = max(marks["x"].max(), 1)
        scale = alt.Scale(domain=[-0.3, last + 0.3], nice=False)
        axis = alt.Axis(values=list(range(int(last) + 1)), format="d", grid=False)
        corners, middle = marks.sort_values("x", kind="stable").reset_index(drop=True), marks
    x = alt.X("x:Q", scale=scale, axis=axis, title=title or None)

    def y(field: str) -> alt.Y:
        extent = AXIS - 14 if left else 0
        axis = alt.Axis(tickCount=5, labels=left, ticks=left, domain=left, minExtent=extent, maxExtent=extent)
        scale = alt.Scale(domain=domain, nice=False, zero=False)
        return alt.Y(field, type="quantitative", scale=scale, axis=axis, title=KEPT if left else None)

    kinds = alt.Scale(domain=list(DASHES), range=list(DASHES.values()))
    dash = alt.StrokeDash("kind:N", scale=kinds, legend=None)
    dots = alt.StrokeDash("kept:N", scale=alt.Scale(range=[[1, 2], [4, 2]]), legend=None)
    promise = alt.Chart(pd.DataFrame({"kept": [100.0, 100 * KEEP]})).mark_rule(color=MUTED, strokeWidth=0.7)
    kind = corners["planned"].map({True: PLANNED, False: AT_ONCE}).mask(corners["arm"] == WITH_CLONE, WITH_CLONE)
    lines = alt.Chart(corners.assign(order=corners.index, kind=kind)).mark_line(strokeWidth=1.2, strokeJoin="miter")
    base = alt.Chart(middle[middle["planned"] | by_computer]).encode(x=x, color=colour(arms))
    layers = [
        promise.encode(y=y("kept"), strokeDash=dots),
        lines.encode(x=x, y=y("kept"), order="order:Q", color=colour(arms), detail="arm:N", strokeDash=dash),
        base.transform_filter("datum.kept_low < datum.kept_high").mark_rule(strokeWidth=0.9, opacity=0.6)
        .encode(y=y("kept_low"), y2="kept_high"),
        base.mark_point(size=15, filled=True, opacity=1).encode(y=y("kept"), shape=shape(arms)),
    ]  # fmt: skip
    chart = alt.layer(*layers).resolve_scale(strokeDash="independent")
    about = alt.Title(planner, anchor="middle", fontSize=charts.FONT_SIZE, offset=2)
    return chart.properties(title=about) if planner else chart


def names(
    marks: pd.DataFrame, arms: list[str], domain: list[float], said: dict[str, str], width: float
) -> alt.LayerChart:
    """The arms' names behind the last panel, each beside where its line ends, as far as there is room."""
    last = marks.sort_values(["planner", "x"], key=lambda v: v.map(evaluations) if v.name == "planner" else v)
    last = last.groupby("arm", sort=False).last().reset_index()
    height = [HEIGHT * (1 - (100 * kept - domain[0]) / (domain[1] - domain[0])) for kept in last["kept"]]
    last = last.assign(y=height).sort_values("y", kind="stable").assign(y=lambda t: apart(list(t["y"])))
    y = alt.Y("y:Q", scale=alt.Scale(domain=[HEIGHT, 0], nice=False, zero=False), axis=None)
    last = last.assign(said=[said.get(arm, arm) for arm in last["arm"]])
    base = alt.Chart(last[["arm", "said", "y"]]).encode(y=y, color=colour(arms))
    mark = base.mark_point(size=22, filled=True, opacity=1).encode(x=alt.value(2), shape=shape(arms))
    text = base.mark_text(align="left", dx=9).encode(x=alt.value(0), text="said:N")
    return alt.layer(mark, text).properties(width=width - GAP, height=HEIGHT)


def apart(heights: list[float]) -> list[float]:
    """Heights from above, at least a `LINE` from each other and on the panel, where that has room for them."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LINE) if placed else height)
    limit = HEIGHT
    for number in reversed(range(len(placed))):
        placed[number] = min(placed[number], limit)
        limit = placed[number] - LINE
    return placed


def colour(arms: list[str]) -> alt.Color:
    return alt.Color("arm:N", scale=alt.Scale(domain=arms, range=[look(arm).colour for arm in arms]), legend=None)


def shape(arms: list[str]) -> alt.Shape:
    return alt.Shape("arm:N", scale=alt.Scale(domain=arms, range=[look(arm).shape for arm in arms]), legend=None)


def look(arm: str) -> charts.Family:
    return charts.EVERY_STEP if arm == EVERY_STEP else charts.family(arm)


def evaluations(planner: str) -> int:
    """Samples × iterations, by which planners stand beside each other."""
    samples, iterations = planner.split("×")
    return int(samples) * int(iterations)


def ordered(planners) -> list[str]:
    return sorted(planners, key=evaluations)


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: drawings(read(profile)), arguments)


if __name__ == "__main__":
    main()
