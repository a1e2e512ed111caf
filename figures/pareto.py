"""Return kept against planner calls, one panel per cell.

    python figures/pareto.py --profile quick

reads data/results/quick/horizon/summary.csv and writes figures/quick/pareto.{svg,pdf,png}.
"""

from __future__ import annotations

import argparse

import altair as alt
import pandas as pd

from lib import charts, paths
from lib.charts import INK, MUTED, Box
from lib.results import read_table
from lib.statistics import CELL

WIDTH, HEIGHT = charts.COLUMN_WIDTH - 42, 155  # the plot itself; 42 units hold the axis on its left
MARK = 3.5  # half of a point's extent, caps of its interval included
LANES = [0, -1, 1, -2, 2, -3, 3, *range(-4, -100, -1)]  # places beside the true x, in marks


def draw(summary: pd.DataFrame) -> alt.TopLevelMixin:
    """The figure from `horizon/summary.csv`: a single panel one column wide, or rows of two panels."""
    cells = list(summary.groupby(["cell", *CELL], sort=False))
    if len(cells) == 1:
        return panel(cells[0][1], title=None)
    seeds = summary.groupby(["task", "size"])["teacher_seed"].nunique().max()
    titles = [f"{task}, {size}" + (f", seed {seed}" if seeds > 1 else "") for (_, task, size, seed), _ in cells]
    panels = [panel(arms, title) for (_, arms), title in zip(cells, titles, strict=True)]
    return alt.concat(*panels, columns=2, spacing={"row": 14, "column": 12})


def panel(arms: pd.DataFrame, title: str | None) -> alt.LayerChart:
    """One cell: every arm a labelled point with the interval of its kept return; the teacher is the reference line."""
    points = place(arms)
    x_domain, y_domain = domains(arms)
    ticks = list(range(0, int(x_domain[1]) + 1, tick(x_domain[1])))

    def x(field: str) -> alt.X:
        axis = alt.Axis(grid=False, values=ticks)
        return alt.X(
            field, type="quantitative", title="Planner calls per episode", axis=axis, scale=alt.Scale(domain=x_domain)
        )

    def y(field: str) -> alt.Y:
        axis = alt.Axis(values=list(range(0, 101, 20)), minExtent=24, maxExtent=24)
        return alt.Y(
            field, type="quantitative", title="Return kept (% of teacher)", axis=axis, scale=alt.Scale(domain=y_domain)
        )

    base = alt.Chart(points).encode(x=x("x"), color=alt.Color("colour:N", scale=None))
    known = base.transform_filter(
        "datum.low < datum.high"
    )  # not where there is none, nor for the teacher against itself
    layers = [
        alt.Chart(pd.DataFrame({"y": [100]}))
        .mark_rule(color=MUTED, strokeDash=[3, 2], strokeWidth=0.8)
        .encode(y=y("y")),
        base.transform_filter("datum.far").mark_rule(strokeWidth=0.6).encode(y=y("y"), x2="leader_x", y2="label_y"),
        known.mark_rule(strokeWidth=1.1).encode(y=y("low"), y2="high"),
        *(
            known.mark_tick(orient="horizontal", size=7, thickness=1.1, opacity=1).encode(y=y(end))
            for end in ("low", "high")
        ),
        base.mark_point(filled=True, size=27, opacity=1).encode(y=y("y"), shape=alt.Shape("shape:N", scale=None)),
    ]
    for align in ("left", "right"):
        text = alt.Chart(points[points["align"] == align]).mark_text(align=align, baseline="middle", color=INK)
        layers.append(text.encode(x=x("label_x"), y=y("label_y"), text="arm:N"))
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    return chart if title is None else chart.properties(title=title)


def domains(arms: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Axes from zero (a little beyond it in x, so that an arm that never plans is not cut); return kept in percent."""
    most = arms["planner_calls"].max()
    highest = 100 * max(1, arms["kept"].max(), arms["kept_high"].max())
    return [-0.04 * most, 1.04 * most], [0, 1.15 * highest]  # room above for a label over the reference line


def tick(most: float) -> int:
    """The round step that gives about five ticks up to `most`."""
    return next((step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if most / step <= 6), 1000)


def place(arms: pd.DataFrame) -> pd.DataFrame:
    """Where each arm's point, interval and label go, in data units.

    Points or intervals that would cover each other are moved apart sideways by about the width of a mark.
    """
    x_domain, y_domain = domains(arms)
    per_x, per_y = WIDTH / (x_domain[1] - x_domain[0]), HEIGHT / (y_domain[1] - y_domain[0])
    points = pd.DataFrame(
        {
            "arm": arms["arm"],
            "y": 100 * arms["kept"],
            "low": 100 * arms["kept_low"],
            "high": 100 * arms["kept_high"],
            "colour": [charts.family(arm).colour for arm in arms["arm"]],
            "shape": [charts.family(arm).shape for arm in arms["arm"]],
        }
    )
    true_x = (arms["planner_calls"] - x_domain[0]) * per_x
    middle, top, bottom = ((y_domain[1] - points[c].fillna(points["y"])) * per_y for c in ("y", "high", "low"))
    marks, sides = [], []
    for x, y, high, low in zip(true_x, middle, top, bottom, strict=True):
        upper, lower = min(high, y - MARK), max(low, y + MARK)
        boxes = ((lane, Box(x + (2.2 * lane - 1) * MARK, upper, x + (2.2 * lane + 1) * MARK, lower)) for lane in LANES)
        lane, box = next((lane, box) for lane, box in boxes if all(box.overlap(m) == 0 for m in marks))
        marks.append(box)
        sides.append("left" if lane < 0 else "right")  # the name of a neighbour must not stand between the two
    pixels = [(box.left + box.right) / 2 for box in marks]

    reference = Box(0, (y_domain[1] - 100) * per_y - 1, WIDTH, (y_domain[1] - 100) * per_y + 1)
    wanted = list(zip(points["arm"], pixels, middle, sides, strict=True))
    labels = charts.place_labels(wanted, frame=Box(0, 0, WIDTH, HEIGHT), taken=[reference, *marks])
    points["x"] = [pixel / per_x + x_domain[0] for pixel in pixels]
    points["leader_x"] = [(label.x + (-2 if label.align == "left" else 2)) / per_x + x_domain[0] for label in labels]
    points["label_x"] = [label.x / per_x + x_domain[0] for label in labels]
    points["label_y"] = [y_domain[1] - label.y / per_y for label in labels]
    points["align"] = [label.align for label in labels]
    points["far"] = [label.far for label in labels]
    return points


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    profile = parser.parse_args(arguments).profile
    summary = read_table(paths.results(profile) / "horizon" / "summary.csv")
    for path in charts.save(draw(summary), paths.figures(profile) / "pareto"):
        print(path)


if __name__ == "__main__":
    main()
