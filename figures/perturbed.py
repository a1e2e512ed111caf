"""Return and planner calls against the severity of a change of the world: a column per kind of change, a row per cell.

    python figures/perturbed.py --profile smoke

reads data/results/smoke/perturbed/summary.csv and writes figures/smoke/perturbed.{svg,pdf,png}; of more than two cells
those with the most episodes, the profile's first among equals, and the others in perturbed-cells.{svg,pdf,png}. The
teacher's own world is the point of no effect of every kind: factor 1, or severity 0. Calls, below the returns, are per
decision.
"""

from __future__ import annotations

from collections import Counter

import altair as alt
import pandas as pd

from figures import charts, pages
from lib.config import PlannerConfig
from lib.records.store import read_table
from lib.simulators.perturbations import KINDS
from lib.study.arms import make_arm
from lib.study.perturb import NONE, perturbed_file

TITLES = {"mass": "Masses ×", "gain": "Actuator gain ×", "friction": "Friction ×"}
TITLES |= {"push": "Push (weight × s)", "noise": "Noise (deviations)"}
RETURN, CALLS = "Return per episode", "Calls"
AXIS, GAP, WIDTH = 40, 10, 150  # units for the axis of the first panel of a row, between panels, and of a panel at most
HEIGHT, CALLS_HEIGHT = 84, 34
MOST, MOST_OF_PAGE = 2, 4  # cells beside the text, and on a page of their own


def read(profile: str) -> pd.DataFrame:
    """The rows of `lib.study.stats.changed.summarise` of a profile, the teacher's own world as one of each kind. Checks
    by one score alone are left out: their table is in the appendix."""
    table = read_table(perturbed_file(profile, "summary")).rename(columns={"perturbation": "kind"})
    table = table[~table["arm"].map(by_one_score)]
    own, changed = table[table["kind"] == NONE], table[table["kind"] != NONE]
    kinds = changed[["cell", "kind"]].drop_duplicates()
    unchanged = kinds.merge(own.drop(columns=["kind", "severity"]), on="cell")
    unchanged = unchanged.assign(severity=unchanged["kind"].map(KINDS))
    return pd.concat([unchanged, changed], ignore_index=True).sort_values(["kind", "severity"], kind="stable")


def by_one_score(arm: str) -> bool:
    """Whether the gate of an arm of this name looks at one score of a check alone."""
    return len(getattr(make_arm(arm, PlannerConfig()), "scores", ())) == 1


def drawings(marks: pd.DataFrame) -> dict[str, alt.TopLevelMixin]:
    """The figures from what `read` gives: what stands beside the text, and the other cells where there are more."""
    first = pages.fitting(marks, MOST)
    others = marks[~marks["cell"].isin(first["cell"])]
    found = {"perturbed": draw(first)}
    if len(others):
        found["perturbed-cells"] = draw(pages.fitting(others, MOST_OF_PAGE, "perturbed-cells"))
    return found


def draw(marks: pd.DataFrame) -> alt.TopLevelMixin:
    """Kinds of change beside each other, cells below each other."""
    kinds = [kind for kind in KINDS if kind in set(marks["kind"])]
    arms, cells = list(marks["arm"].drop_duplicates()), list(marks["cell"].drop_duplicates())
    width = min(WIDTH, (charts.FULL_WIDTH - AXIS - GAP * (len(kinds) - 1)) / len(kinds))
    rows = []
    for number, cell in enumerate(cells):
        mine = marks[marks["cell"] == cell]
        range_ = mine[["return", "return_low", "return_high"]]
        room = 0.05 * max(range_.max(axis=None) - range_.min(axis=None), 1e-6)
        domain = [range_.min(axis=None) - room, range_.max(axis=None) + room]
        own = [kind for kind in kinds if (mine["kind"] == kind).any()]
        pairs = [
            panels(mine[mine["kind"] == kind], kind, arms, domain, width, kind == own[0], number == len(cells) - 1)
            for kind in own
        ]
        grid = alt.concat(*(pair[0] for pair in pairs), *(pair[1] for pair in pairs), columns=len(own))
        title = alt.Title(pages.cell_title(cell, cells), offset=3)
        rows.append(grid.properties(title=title, spacing={"row": 4, "column": GAP}))
    chart = alt.vconcat(*rows, spacing=10) if len(rows) > 1 else rows[0]
    return chart.resolve_scale(color="shared", shape="shared", fill="shared").resolve_legend(strokeDash="independent")


def words(schemes: dict[str, str]) -> dict[str, str]:
    """What the paper calls each arm of `schemes`; arms that it calls the same have their own names behind."""
    said = {arm: charts.words(scheme) for arm, scheme in schemes.items()}
    several = [name for name, count in Counter(said.values()).items() if count > 1]
    return {arm: f"{name} ({arm})" if name in several else name for arm, name in said.items()}


def panels(rows, kind: str, arms: list[str], domain, width, left: bool, bottom: bool) -> list[alt.LayerChart]:
    """One cell and kind of change: returns above, calls below. Only at the `left` and `bottom` do axes have titles."""
    columns = {arm: make_arm(arm, PlannerConfig()).columns for arm in arms}
    looks = [charts.family(columns[arm]["scheme"]) for arm in arms]
    names = words({arm: columns[arm]["scheme"] for arm in arms})
    legend = alt.Legend(
        title=None,
        orient="bottom",
        columns=4,
        symbolSize=40,
        symbolOpacity=1,
        symbolStrokeWidth=1,
        symbolDash=[1, 0],
        labelLimit=0,
        offset=8,
        labelExpr=" : ".join([f"datum.value == '{arm}' ? '{names[arm]}'" for arm in arms] + ["datum.value"]),
    )
    colour = alt.Color("arm:N", scale=alt.Scale(domain=arms, range=[look.colour for look in looks]), legend=legend)
    shape = alt.Shape("arm:N", scale=alt.Scale(domain=arms, range=[look.shape for look in looks]), legend=legend)
    inside = [
        look.colour if not charts.small_planner(columns[arm]) else "white"
        for look, arm in zip(looks, arms, strict=True)
    ]
    fill = alt.Fill("arm:N", scale=alt.Scale(domain=arms, range=inside), legend=legend)
    dashes = [[4, 2] if charts.small_planner(columns[arm]) else [1, 0] for arm in arms]
    dash = alt.StrokeDash("arm:N", scale=alt.Scale(domain=arms, range=dashes), legend=None)

    def x(titled: bool) -> alt.X:
        values = sorted(rows["severity"].unique())
        axis = alt.Axis(grid=False, values=values, format=".3~g", labels=titled, labelOverlap="greedy")
        scale = alt.Scale(domain=[values[0], values[-1]], nice=False, zero=False, padding=4)
        return alt.X("severity:Q", scale=scale, axis=axis, title=TITLES[kind] if titled and bottom else None)

    def y(field: str, ends: list[float], title: str, ticks: int) -> alt.Y:
        extent = AXIS - 14 if left else 0
        axis = alt.Axis(
            tickCount=ticks, labels=left, ticks=left, domain=left, minExtent=extent, maxExtent=extent, format=".4~g"
        )
        scale = alt.Scale(domain=ends, nice=False, zero=False)
        return alt.Y(field, type="quantitative", scale=scale, axis=axis, title=title if left else None)

    base = alt.Chart(rows).encode(color=colour)
    upper, lower = base.encode(x=x(False)), base.encode(x=x(True))
    top = y("return", domain, RETURN, 4)
    calls = y("calls", [-0.05, max(1.05, 1.05 * rows["calls"].max())], CALLS, 2)
    returns = [
        upper.transform_filter("datum.return_low < datum.return_high")
        .mark_rule(strokeWidth=0.9, opacity=0.6)
        .encode(y=y("return_low", domain, RETURN, 4), y2="return_high"),
        upper.mark_line(strokeWidth=1.2).encode(y=top, strokeDash=dash),
        upper.mark_point(size=16, opacity=1, strokeWidth=0.9).encode(y=top, shape=shape, fill=fill),
    ]
    asked = [
        lower.mark_line(strokeWidth=1.2).encode(y=calls, strokeDash=dash),
        lower.mark_point(size=12, opacity=1, strokeWidth=0.9).encode(y=calls, shape=shape, fill=fill),
    ]
    return [
        alt.layer(*layers).properties(width=width, height=height)
        for layers, height in ((returns, HEIGHT), (asked, CALLS_HEIGHT))
    ]


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: drawings(read(profile)), arguments)


if __name__ == "__main__":
    main()
