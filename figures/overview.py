"""What speculation does, along a stretch of one episode: plans, corrected steps, and plans that a gate asks for early.

    python figures/overview.py --profile paper

plays the beginning of an episode that is not reported, with the arm `ARM` as the profile's results of `CELL` have it,
and writes figures/paper/overview.{svg,pdf,png}: how far each latent is from the one that the plan predicted.
"""

from __future__ import annotations

from functools import partial

import altair as alt
import pandas as pd

from figures import charts, pages
from lib.environments import make_env
from lib.records import paths
from lib.records.seeds import episode_seeds
from lib.records.store import read_sidecar
from lib.rollout import rollout
from lib.study.arms import make_controller, network_file, recorded
from lib.weights.distilled import load_network
from lib.weights.native import load_world_model, teacher_key

CELL, ARM = "walker-run-1m-1", "64×2+gated-6"
FIRST, LAST = 60, 120  # decisions that are drawn, from the first plan on
HEIGHT, BAND = 84, 0.13  # units, and the share of the height under the axis' zero, where plans are drawn
PLAN, CORRECTED, REPLAN = "plan", "corrected step", "plan that the gate asked for"
LOOKS = {PLAN: charts.EVERY_STEP, CORRECTED: charts.family("two-tower"), REPLAN: charts.family("gated")}


def play(profile: str) -> tuple[pd.DataFrame, float]:
    """What was done at each decision and how far its latent was from the predicted one; the gate's threshold."""
    about = read_sidecar(paths.results(profile) / "horizon" / f"{CELL}.csv", "arms", "teacher", "task")
    arm, teacher = recorded(about["arms"][ARM]), about["teacher"]
    wm = load_world_model(teacher, task=about["task"])
    networks = {arm.corrector: load_network(network_file(profile, CELL, arm.corrector), teacher_key(teacher))}
    seeds, rows = episode_seeds("trial", 1), []
    for step in rollout(make_controller(arm, wm, networks), partial(make_env, about["task"]), seeds, LAST):
        info = {name: step.info[name][0] for name in ("planner_called", "fallback", "mismatch")}
        did = REPLAN if info["fallback"] else PLAN if info["planner_called"] else CORRECTED
        drift = float(info["mismatch"]) if did == CORRECTED else 0.0  # a plan begins where the latent is
        rows.append({"decision": len(rows), "did": did, "mismatch": drift})
    return pd.DataFrame(rows), arm.threshold


def draw(rows: pd.DataFrame, threshold: float) -> alt.TopLevelMixin:
    """The figure, as wide as a page: marks over decisions, and a bar for each plan as long as it was executed."""
    first = rows.loc[(rows["did"] != CORRECTED) & (rows["decision"] >= FIRST), "decision"].iloc[0]
    rows = rows[rows["decision"] >= first]
    top = 1.15 * max(rows["mismatch"].max(), threshold)
    starts = rows.loc[rows["did"] != CORRECTED, "decision"]
    bars = pd.DataFrame({"start": starts, "end": [*(starts[1:] - 0.25), rows["decision"].max() + 0.5]})
    bars["did"] = rows.loc[starts.index, "did"]
    x = alt.X(
        "decision:Q", title="Decision", scale=alt.Scale(domain=[first - 1, LAST], nice=False), axis=alt.Axis(grid=False)
    )
    y_scale = alt.Scale(domain=[-BAND * top, top], nice=False)

    def y(field: str) -> alt.Y:
        axis = alt.Axis(tickCount=4, grid=False, format=".2~f", values=[0, round(top / 3, 2), round(2 * top / 3, 2)])
        return alt.Y(field, type="quantitative", scale=y_scale, title="Mismatch", axis=axis)

    legend = alt.Legend(title=None, orient="top", symbolOpacity=1, labelLimit=0, columns=3, offset=2)
    names, looks = list(LOOKS), LOOKS.values()
    colour = alt.Color("did:N", scale=alt.Scale(domain=names, range=[f.colour for f in looks]), legend=legend)
    shape = alt.Shape("did:N", scale=alt.Scale(domain=names, range=[f.shape for f in looks]), legend=legend)
    gate = alt.Chart(pd.DataFrame({"y": [threshold], "decision": [first], "words": ["gate's threshold"]}))
    marks = alt.Chart(rows).encode(x=x)
    layers = [
        gate.mark_rule(color=charts.MUTED, strokeDash=[4, 2], strokeWidth=0.8).encode(y=y("y")),
        gate.mark_text(align="left", dy=-5, color=charts.MUTED).encode(x=x, y=y("y"), text="words"),
        marks.mark_line(color=charts.GRID, strokeWidth=1).encode(y=y("mismatch")),
        marks.mark_point(filled=True, size=26, opacity=1).encode(y=y("mismatch"), color=colour, shape=shape),
        alt.Chart(bars)
        .mark_bar(height=5, opacity=0.8, cornerRadius=2)
        .encode(x=alt.X("start:Q"), x2="end:Q", y=alt.YDatum(-0.6 * BAND * top), color=alt.Color("did:N", legend=None)),
    ]
    return alt.layer(*layers).properties(width=charts.FULL_WIDTH - 40, height=HEIGHT)


def main(arguments: list[str] | None = None) -> None:
    pages.command_line(__doc__, lambda profile: {"overview": draw(*play(profile))}, arguments)


if __name__ == "__main__":
    main()
