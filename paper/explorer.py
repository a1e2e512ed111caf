"""What the explorer of the web edition draws, from the tables of a profile: nothing is computed but shares and names.

    found = data("paper")                                # plain values, for JSON

Of each cell its arms: return kept and costs, each as [value, low, high] with the ends of a 95 % interval or none; what
a test says of them; and every episode beside the teacher's from the same start state. And its drafts, which were
played on calibration episodes and stand apart.
"""

from __future__ import annotations

import pandas as pd

from figures import charts, choices, pages
from lib.files import files
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import known, read_table
from lib.study.evaluate import read_cell
from lib.study.profiles import PROFILES
from lib.study.stats.claims import LEVEL, is_own
from lib.study.stats.comparisons import MARGIN

# Column of the summary → what the axis says; those of `PER_DECISION` are means per episode.
AXES = {
    "model_evaluations": "Evaluations of the model per decision",
    "planner_calls": "Planner calls per decision",
    "step_ms": "Mean control step (ms)",
    "step_p95_ms": "95th percentile of the steps that plan (ms)",
    "step_p99_ms": "99th percentile of all steps (ms)",
    "delay": "Decisions until a plan can be used",
}
PER_DECISION = ("model_evaluations", "planner_calls")
EXAMPLE = "walker-run-1m-1"  # the cell that is shown first, where there is one
KEEP = f"{1 - MARGIN:.0%}".replace("%", " %")
SHOWN, LESS, UNCLEAR = f"shown to keep {KEEP}", f"interval below {KEEP}", "inconclusive"

# Vega's names of shapes, as paths in [-1, 1] × [-1, 1].
SHAPES = {
    "circle": "M-.9,0A.9,.9,0,1,1,.9,0A.9,.9,0,1,1,-.9,0Z",
    "square": "M-.8,-.8H.8V.8H-.8Z",
    "diamond": "M0,-1L1,0L0,1L-1,0Z",
    "cross": "M-1,-.35H-.35V-1H.35V-.35H1V.35H.35V1H-.35V.35H-1Z",
    "wedge": "M0,-1L.5,.9H-.5Z",
    "triangle-up": "M0,-1L1,.8H-1Z",
    "triangle-down": "M0,1L1,-.8H-1Z",
    "triangle-left": "M-1,0L.8,-1V1Z",
    "triangle-right": "M1,0L-.8,-1V1Z",
}


def data(profile: str) -> dict:
    """All that the page draws. Raises `ResultError` where the summary or a cell's episodes are not there."""
    folder = paths.results(profile)
    summary = read_table(folder / "horizon" / "summary.csv")
    tests = read_table(folder / "statistics" / "comparisons.csv").query("role == 'teacher'")
    tests = tests.set_index(["cell", "arm"])["p_holm"]
    drafts, deadlines = (
        read_table(file) if file.is_file() else pd.DataFrame(columns=["cell"])
        for file in (folder / "statistics" / "drafts.csv", folder / "deadlines" / "summary.csv")
    )
    names = list(summary["cell"].drop_duplicates())
    cells = []
    for name in names:
        rows = summary[summary["cell"] == name].join(tails(profile, name), on="arm")
        arms = evaluated(rows, read_cell(profile, name), tests.to_dict())
        late = deadlines[deadlines["cell"] == name]
        arms += delayed(late, read_table(folder / "deadlines" / f"{name}.csv")) if len(late) else []
        cells.append({
            "name": name, "title": pages.cell_title(name, names), "own": is_own(name, rows.iloc[0]), "arms": arms,
            "drafts": drafted(drafts[drafts["cell"] == name], "×".join(map(str, PROFILES[profile].drafts.labeller))),
        })  # fmt: skip
    looks = {arm["family"]: arm.pop("look") for cell in cells for arm in cell["arms"]}
    on = [charts.family(scheme).name for scheme in ("teacher", *choices.DRAWN)]
    first = choices.DRAWN["gated"][0]
    start = {"cell": EXAMPLE if EXAMPLE in names else names[0], "first": first, "on": on}
    shown = films(profile, {cell["name"]: {arm["arm"] for arm in cell["arms"]} for cell in cells})
    return {"axes": AXES, "families": looks, "cells": cells, "films": shown} | start


def triple(row: pd.Series, column: str, scale: float = 1.0) -> list[float | None] | None:
    """[value, low, high] of a column; ends that are not known are None, and so is the whole without a value."""
    if pd.isna(row.get(column)):
        return None
    values = [row.get(column + end) for end in ("", "_low", "_high")]
    return [None if pd.isna(value) else float(value) * scale for value in values]


def look(scheme: str) -> dict:
    """Family, colour and outline of an arm's mark."""
    family = charts.EVERY_STEP if scheme == "every-step" else charts.family(scheme)
    return {"family": family.name, "look": {"colour": family.colour, "path": SHAPES.get(family.shape, family.shape)}}


def evaluated(rows: pd.DataFrame, episodes: pd.DataFrame, tests: dict) -> list[dict]:
    """The arms of a cell. rows: of the summary; episodes: one row each; tests: (cell, arm) → corrected p-value."""
    played = {arm: mine.set_index("episode_seed") for arm, mine in episodes.groupby("arm", sort=False)}
    teacher = played["teacher"]["return"]
    whole, half = episodes["length"].max(), teacher.mean() / 2  # a shorter or a worse episode failed, as in `summarise`
    found = []
    for _, row in rows.iterrows():
        if row["arm"] not in played:
            raise ResultError(
                f"horizon/summary.csv has {row['arm']} of {row['cell']}, of which {row['cell']}.csv has no episode; "
                "make it anew: python paper/summary.py --profile paper."
            )
        mine = played[row["arm"]]
        per = 1 / mine["length"].mean()
        cost = {axis: triple(row, axis, per if axis in PER_DECISION else 1.0) for axis in AXES}
        p = tests.get((row["cell"], row["arm"]))
        verdict = SHOWN if p is not None and p < LEVEL else LESS if row["kept_high"] < 1 - MARGIN else UNCLEAR
        found.append(look(row["scheme"]) | {
            "arm": row["arm"],
            "hollow": bool(charts.small_planner(row)),
            "line": row["scheme"] in ("teacher", "budget"),  # the planner at every step, of all sizes
            "kept": triple(row, "kept"),
            "beside": "the teacher",
            "verdict": "the reference" if row["arm"] == "teacher" else verdict,
            "cost": {axis: value for axis, value in cost.items() if value},
            "episodes": [
                [int(seed), float(teacher[seed]), float(value), bool(length < whole or value < half)]
                for seed, value, length in zip(mine.index, mine["return"], mine["length"], strict=True)
            ],
        })  # fmt: skip
    return found


def tails(profile: str, cell: str) -> pd.DataFrame:
    """`step_p99_ms` of all steps at batch 1, by arm, of those where so many steps were timed that it is known."""
    file = paths.results(profile) / "latency" / f"{cell}.csv"
    timed = read_table(file) if file.is_file() else pd.DataFrame()
    if "p99_ms" not in timed:
        return pd.DataFrame(columns=["step_p99_ms"])
    timed = timed.query("batch == 1 and part == 'step'").dropna(subset="p99_ms").set_index("arm")
    return timed[["p99_ms"]].rename(columns={"p99_ms": "step_p99_ms"})


def delayed(rows: pd.DataFrame, episodes: pd.DataFrame) -> list[dict]:
    """Arms whose planner is late, with the delay as their one cost; what never plans is never late."""
    way = ["arm", "planner", "delay"]
    episodes = episodes.assign(**{name: episodes[name].astype(object).fillna("") for name in way})
    played = {key: mine.set_index("episode_seed")["return"] for key, mine in episodes.groupby(way)}
    found = []
    for _, row in rows.iterrows():
        key = tuple("" if pd.isna(row[name]) else row[name] for name in way)
        beside = played[("every-step", row["reference"], 0)]
        found.append(look(row["arm"]) | {
            "arm": late_name(*key),
            "hollow": bool(key[1]) and key[1] != row["reference"],
            "line": False,
            "kept": triple(row, "kept"),
            "beside": f"{row['reference']} without delay",
            "verdict": "not tested",
            "cost": {"delay": [float(key[2] or 0), None, None]},
            "episodes": [
                [int(seed), float(beside[seed]), float(value), bool(value < beside.mean() / 2)]
                for seed, value in played[key].items()
            ],
        })  # fmt: skip
    return found


def late_name(arm: str, planner: str, delay: float) -> str:
    """What an arm of the study of delays is called here; of what never plans planner and delay are empty."""
    return f"{arm}, {planner or 'at once'}" + (f", {delay:.0f} late" if delay else "")


def drafted(rows: pd.DataFrame, labeller: str) -> list[dict]:
    """What networks that never plan return on calibration episodes, beside the planner that labelled for them."""
    if not len(rows):
        return []
    words = {"labeller": f"its planner, {labeller}", "policy": "policy prior"}
    listed = rows[rows["listed"]]
    names = listed["draft"].map(lambda draft: words.get(draft, charts.family(draft).name))
    colours = listed["draft"].map(lambda draft: charts.family("teacher" if draft == "labeller" else draft).colour)
    return [
        {"name": name, "colour": colour, "value": triple(row, "return"), "episodes": int(row["episodes"])}
        for name, colour, (_, row) in zip(names, colours, listed.iterrows(), strict=True)
    ]


def films(profile: str, cells: dict[str, set[str]]) -> list[dict]:
    """The films of a profile, as their sidecars say: file, cell, and for each panel what it shows in words, and the arm
    that it is here, of those that `cells` have by name, or None; of two formats the one that can pause."""
    found = {}
    for file in files(paths.figures(profile), "film*.*"):
        about = known(file)
        if file.suffix in (".gif", ".mp4") and "cell" in about:
            cell, panels = about["cell"], []
            for name, said in about["arms"].items():
                delay = said["label"]["delay"]
                here = name if delay is None else late_name(**said["label"])
                words = said["words"] + (f", {delay} decision{'s' if delay > 1 else ''} late" if delay else "")
                panels.append({"words": words, "arm": here if here in cells.get(cell, ()) else None})
            title = pages.cell_title(cell, [])
            found[file.stem] = {"file": file.name, "cell": cell, "title": title, "panels": panels}
    return list(found.values())  # by name: .gif comes before .mp4
