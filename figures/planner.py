"""Milliseconds per solve on the CPU at batch 1: the official manner, ours uncompiled and compiled, and the floor.

    python figures/planner.py --profile quick

reads data/results/quick/planner/cpu.csv and writes figures/quick/planner.{svg,pdf,png}.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from figures import charts, pages
from figures.charts import INK, MUTED
from lib.records import paths
from lib.records.store import read_table

WIDTH, ROW = charts.COLUMN_WIDTH - 62, 36  # the plot itself; 62 units hold the names of the solves on its left
FLOOR = "matrix products alone"
BAR = "M-.16,-1L.16,-1L.16,1L-.16,1Z"  # a Vega point shape: the floor is drawn as an upright line
# Okabe–Ito colours and shapes of their own, as for the arms.
WAYS = {
    "official manner": ("#000000", "diamond"),
    "ours, eager": ("#0072B2", "square"),
    "ours, compiled": ("#D55E00", "circle"),
    FLOOR: (MUTED, BAR),
}


def draw(solves: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure from `planner/cpu.csv`, one column wide: a row per size and budget, a lane per way to compute it."""
    points = tidy(solves)
    rows = list(points["solve"].drop_duplicates())
    ways = [way for way in WAYS if way in set(points["way"])]
    low, high = 0.5 * points["p50"].min(), 1.9 * points["p95"].max()  # room for labels on both sides
    colours, shapes = ([WAYS[way][i] for way in ways] for i in (0, 1))
    legend = alt.Legend(
        title=None, orient="top", columns=2, symbolSize=45, symbolStrokeWidth=0, offset=4, rowPadding=2, labelLimit=0
    )

    def x(field: str) -> alt.X:
        ticks = [v for v in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000) if low <= v <= high]
        scale = alt.Scale(type="log", domain=[low, high], nice=False)
        return alt.X(field, title="Milliseconds per solve", scale=scale, axis=alt.Axis(values=ticks, format="d"))

    y = alt.Y("solve:N", title=None, sort=rows, axis=alt.Axis(ticks=False, domain=False, labelPadding=6, grid=False))
    lane = alt.YOffset("way:N", sort=None, scale=alt.Scale(domain=[w for w in ways if w != FLOOR]))
    colour = alt.Color("way:N", scale=alt.Scale(domain=ways, range=colours), legend=legend)
    shape = alt.Shape("way:N", scale=alt.Scale(domain=ways, range=shapes), legend=legend)

    timed = alt.Chart(points[points["way"] != FLOOR]).encode(y=y, yOffset=lane, color=colour)
    floors = alt.Chart(points[points["way"] == FLOOR]).encode(x=x("p50"), y=y)
    layers = [
        floors.mark_tick(orient="vertical", size=ROW - 8, thickness=1.6, color=MUTED, opacity=1),
        floors.mark_text(align="right", baseline="middle", dx=-4, dy=1, color=MUTED).encode(text="label:N"),
        timed.mark_rule(strokeWidth=1.1).encode(x=x("p50"), x2="p95"),
        timed.mark_point(filled=True, size=30, opacity=1).encode(x=x("p50"), shape=shape),
        timed.mark_text(align="left", baseline="middle", dx=5, dy=1).encode(
            x=x("p95"), text="label:N", color=alt.value(INK)
        ),
    ]
    return alt.layer(*layers).properties(width=WIDTH, height=ROW * len(rows))


def tidy(solves: pd.DataFrame) -> pd.DataFrame:
    """One row per solve and way in float32 at batch 1: solve, way, p50, p95, label; budgets small to large per size."""
    kept = solves[(solves["batch"] == 1) & (solves["dtype"] == "float32")]
    kept = kept.assign(work=kept["samples"] * kept["iterations"], order=kept["size"].str.rstrip("m").astype(int))
    rows = []
    for (_, _, size), group in kept.groupby(["order", "work", "size"]):
        first = group.iloc[0]
        solve = {"solve": f"{size}, {first['samples']} × {first['iterations']}"}
        times = {"official manner": (first["twin_ms_p50"], first["twin_ms_p95"])}
        for way in ("eager", "compiled"):
            for _, row in group[group["mode"] == way].iterrows():
                times[f"ours, {way}"] = row["solve_ms_p50"], row["solve_ms_p95"]
        times[FLOOR] = first["floor_ms"], first["floor_ms"]
        rows += [solve | {"way": way, "p50": p50, "p95": p95, "label": short(p50)} for way, (p50, p95) in times.items()]
    return pd.DataFrame(rows)


def short(ms: float) -> str:
    """Milliseconds with about two digits."""
    return f"{ms:.1f}" if ms < 10 else f"{ms:.0f}"


def main(arguments: list[str] | None = None) -> None:
    def figure(profile: str) -> dict[str, alt.TopLevelMixin]:
        return {"planner": draw(read_table(paths.results(profile) / "planner" / "cpu.csv"))}

    pages.command_line(__doc__, figure, arguments)


if __name__ == "__main__":
    main()
