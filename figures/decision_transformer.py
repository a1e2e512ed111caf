"""The Decision Transformer: the return it achieves against the return it is asked for, and how it and its rival learnt.

    python figures/decision_transformer.py --profile quick --window 3

reads data/results/quick/decision_transformer/ and writes figures/quick/decision_transformer.{svg,pdf,png}. A row of
panels per dataset; curves are means of `window` evaluations, averaged over training seeds with their interval.
"""

from __future__ import annotations

import argparse

import altair as alt
import pandas as pd

from figures import charts
from figures.charts import INK, MUTED
from lib.files import files
from lib.records import paths
from lib.records.keys import ResultError, shown
from lib.records.store import how_to_make, read_table
from lib.study.profiles import PROFILES
from lib.study.stats.intervals import bootstrap_ci

GAP, AXIS, HEIGHT = 30, 40, 110
WINDOW = 3  # evaluations
# Okabe–Ito colours (Okabe & Ito 2008); shapes say the same in black and white.
ARMS = {
    "decision-transformer": ("Decision Transformer", "#0072B2", "circle"),
    "behaviour-cloning": ("behaviour cloning", "#D55E00", "square"),
    "policy": ("policy prior", "#CC79A7", "triangle-up"),
    "budget-64×2": ("planner that played the data", "#009E73", "triangle-down"),
    "teacher": ("teacher", INK, "diamond"),
}


def read(profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summaries (a row per arm and return asked for) and curves (a row per arm, seed and evaluation) of all datasets.

    Policies that were evaluated alone have no curve and are left out. Raises `ResultError` if nothing is left.
    """
    folder = paths.results(profile) / "decision_transformer"
    curves = [read_table(path) for path in files(folder, "*-[0-9].csv")]
    if not curves:
        raise ResultError(f"{shown(folder)} holds no learning curve; {how_to_make(folder / 'curve.csv')}.")
    curves = pd.concat(curves, ignore_index=True)
    names = curves[["task", "dataset"]].drop_duplicates().itertuples(index=False)
    summaries = [read_table(folder / f"{task}-{dataset}-summary.csv") for task, dataset in names]
    return pd.concat(summaries, ignore_index=True), curves


def smoothed(values: pd.Series, window: int) -> pd.Series:
    """Means over `window` values around each; at the ends over as many of them as there are."""
    return values.rolling(window, center=True, min_periods=1).mean()


def learning(curves: pd.DataFrame, column: str, window: int) -> pd.DataFrame:
    """One row per arm and evaluation: the mean of the smoothed column over training seeds, and its interval."""
    ordered = curves.sort_values("updates")
    smooth = ordered.groupby(["arm", "seed"])[column].transform(lambda values: smoothed(values, window))
    rows = []
    for (arm, updates), values in smooth.groupby([ordered["arm"], ordered["updates"]]):
        low, high = bootstrap_ci(values)
        rows.append({"arm": arm, "updates": updates, "mean": values.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def colours() -> alt.Scale:
    return alt.Scale(domain=[name for name, _, _ in ARMS.values()], range=[code for _, code, _ in ARMS.values()])


def colour() -> alt.Color:
    return alt.Color("name:N", scale=colours(), legend=alt.Legend(title=None, orient="top", columns=5, labelLimit=0))


def named(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(name=[ARMS[arm][0] for arm in table["arm"]])


def achieved(summary: pd.DataFrame, width: float, bottom: bool) -> alt.LayerChart:
    """Return achieved against asked. Arms that are asked for nothing are lines across."""
    known = named(summary[summary["arm"].isin(ARMS)])
    asked, others = known[known["asked"].notna()], known[known["asked"].isna()]
    ends = summary[["target_return", "return_low", "return_high", "return_mean"]].stack()
    scale = alt.Scale(domain=[min(0.0, float(ends.min())), 1.04 * float(ends.max())], nice=False)
    x_axis = alt.Axis(grid=False, tickCount=4, format="d")

    def y(field: str) -> alt.Y:
        axis = alt.Axis(tickCount=5, format="d", minExtent=AXIS - 18, maxExtent=AXIS - 18)
        return alt.Y(field, type="quantitative", title="Return achieved", scale=scale, axis=axis)

    title = "Return asked for" if bottom else None
    points = alt.Chart(asked).encode(x=alt.X("target_return:Q", title=title, scale=scale, axis=x_axis), color=colour())
    symbols = alt.Scale(domain=[name for name, _, _ in ARMS.values()], range=[shape for _, _, shape in ARMS.values()])
    diagonal = pd.DataFrame({"target_return": scale.domain, "return_mean": scale.domain})
    return alt.layer(
        alt.Chart(diagonal)
        .mark_line(color=MUTED, strokeDash=[3, 2], strokeWidth=0.8)
        .encode(x=alt.X("target_return:Q", scale=scale), y=y("return_mean")),
        alt.Chart(others).mark_rule(strokeWidth=1.2).encode(y=y("return_mean"), color=colour()),
        # at the right end of its line, a shape for whoever sees no colours
        alt.Chart(others)
        .mark_point(filled=True, size=26, opacity=1)
        .encode(
            x=alt.value(width),
            y=y("return_mean"),
            color=colour(),
            shape=alt.Shape("name:N", scale=symbols, legend=None),
        ),
        points.transform_filter("isValid(datum.return_low)").mark_rule().encode(y=y("return_low"), y2="return_high"),
        points.mark_point(filled=True, size=26, opacity=1).encode(
            y=y("return_mean"), color=colour(), shape=alt.Shape("name:N", scale=symbols, legend=None)
        ),
    ).properties(width=width, height=HEIGHT)


def curve(rows: pd.DataFrame, title: str, form: str, width: float, bottom: bool) -> alt.LayerChart:
    """Means over training seeds, in a band that is their interval."""
    table = named(rows)
    axis = alt.Axis(grid=False, tickCount=5, format="~s")
    base = alt.Chart(table).encode(x=alt.X("updates:Q", title="Updates" if bottom else None, axis=axis), color=colour())

    def y(field: str) -> alt.Y:
        return alt.Y(field, type="quantitative", title=title, axis=alt.Axis(tickCount=5, format=form))

    band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.2, strokeWidth=0)
    band = band.encode(y=y("low"), y2="high", fill=alt.Fill("name:N", scale=colours(), legend=None))
    return (band + base.mark_line().encode(y=y("mean"))).properties(width=width, height=HEIGHT)


def draw(summaries: pd.DataFrame, curves: pd.DataFrame, window: int = WINDOW) -> alt.TopLevelMixin:
    """The figure: per dataset, what is achieved when it is asked for, validation losses, and returns on the way."""
    names = list(curves[["task", "dataset"]].drop_duplicates().itertuples(index=False, name=None))
    width, rows = (charts.FULL_WIDTH - 2 * GAP - 3 * AXIS) / 3, []
    for task, dataset in names:
        mine = [t[(t["task"] == task) & (t["dataset"] == dataset)] for t in (summaries, curves)]
        bottom = (task, dataset) == names[-1]
        panels = [achieved(mine[0], width, bottom)]
        for column, title, form in (("val_loss", "Validation loss", "~g"), ("return_mean", "Return on the way", "d")):
            panels.append(curve(learning(mine[1], column, window), title, form, width, bottom))
        rows.append(alt.hconcat(*panels, spacing=GAP).properties(title=f"{task}, {dataset}"))
    return alt.vconcat(*rows, spacing=8)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick", choices=PROFILES)
    parser.add_argument("--window", type=int, default=WINDOW, help=f"evaluations in a mean of a curve ({WINDOW})")
    given = parser.parse_args(arguments)
    chart = draw(*read(given.profile), given.window)
    for path in charts.save(chart, paths.figures(given.profile) / "decision_transformer"):
        print(path)


if __name__ == "__main__":
    main()
