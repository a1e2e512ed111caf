"""What was found, in plain values and in words."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lib.records.store import machine, versions
from lib.study.accelerate.deadline import QUANTILE, may_time, timed
from lib.study.accelerate.playing import plain
from lib.study.accelerate.search import Search
from lib.study.certify import ALL, RANDOM, TEACHER, floor_of, picks
from lib.study.stats.certification import ALPHA, kept_above
from lib.study.stats.intervals import bootstrap_ci


def conclusion(search: Search, table: pd.DataFrame, episodes: pd.DataFrame) -> tuple[dict, pd.DataFrame]:
    """What was found, as plain values, and the episodes of the check."""
    by_arm = {name: rows.set_index("episode_seed") for name, rows in episodes.groupby("arm")} if len(episodes) else {}
    floor = floor_of(search.task, by_arm[RANDOM].reset_index()) if by_arm else 0.0
    pick = picks(table)[ALL] if len(table) and not search.doubt else TEACHER
    check, more = search.checked(pick, floor)
    broken = check.get("verdict") == "broken"
    tried = [name for name in dict.fromkeys(table["candidate"]) if name in by_arm]
    for name in dict.fromkeys([pick, "policy", TEACHER, *tried]):
        if may_time(search, name):
            timed(search, name)
    rows = []
    for name in tried or [TEACHER]:
        mine = table[table["candidate"] == name]
        row = {
            "arm": name,
            "chains": mine["chain"].tolist(),
            "admitted": name == TEACHER or bool(mine["admitted"].any()),
        }
        if by_arm:
            returns, teacher = by_arm[name]["return"], by_arm[TEACHER]["return"]
            row |= {"episodes": len(returns), "return": float(returns.mean())}
            row |= dict(zip(("return_low", "return_high"), map(plain, bootstrap_ci(returns)), strict=True))
            row |= dict(
                zip(("kept", "kept_low", "kept_high"), map(plain, kept_above(returns, teacher, floor)), strict=True)
            )
            row |= {name: plain(mine.iloc[0][name]) for name in ("p", "evaluations", "falls", "falls_high")}
        rows.append(row)
    for row in [row for row in rows if row["arm"] in search.times]:
        times = search.times[row["arm"]]
        row |= {
            "median_ms": float(np.median(times)),
            "p99_ms": float(np.quantile(times, QUANTILE)),
            "steps": len(times),
        }
        row |= {"in_time": float(np.mean(np.array(times) <= search.period))} if search.rate else {}
        row |= {"late": search.stage.late[row["arm"]]} if row["arm"] in search.stage.late else {}
    chosen = TEACHER if broken else pick
    about = {name: getattr(search, name) for name in ("task", "teacher", "rate", "keep", "minutes", "left_out")}
    return about | {
        "teacher_key": search.key,
        "spent_minutes": round(search.minutes - search.clock.left / 60, 2),
        "pick": chosen,
        "why": why(search, chosen, rows, check),
        "fallback": chosen == TEACHER,
        "right_sized": search.right_sized,
        "level": ALPHA,
        "chains": len(search.candidates),  # that share the level
        "floor": floor,
        "candidates": rows,
        "check": check,
        "times": {name: np.quantile(times, np.linspace(0, 1, 101)).tolist() for name, times in search.times.items()},
        "mode": search.mode,
        "delay": getattr(search.arm(chosen), "delay", 0),  # decisions that a plan takes in the background
        "planned": {name: search.kept[name] for name in ("written", "minutes")},
        "tests": search.tests.mine | {"others": search.tests.others},
        "plan": search.plan.settings,
        "machine": machine(),
        "versions": versions(),
    }, more


def why(search: Search, pick: str, rows: list[dict], check: dict) -> str:
    """What was chosen and why, in a few sentences."""
    mine, share = next(row for row in rows if row["arm"] == pick), f"{100 * search.keep:g} %"
    if check.get("verdict") == "broken":
        said = f"{check['arm']}, the pick of the test, is shown to keep less than {share} of the teacher's return on "
        said += f"{check['episodes']} fresh episodes ({100 * check['kept']:.1f} %), so the full planner stays."
    elif pick == TEACHER and search.doubt:
        said = search.doubt
    elif pick == TEACHER and "episodes" not in mine:
        said = "There was no time for a test, so the full planner stays."
    elif pick == TEACHER:
        said = f"No candidate was shown to keep {share} of the teacher's return, so the full planner stays."
    else:
        teacher = next(row for row in rows if row["arm"] == TEACHER)
        ratio = teacher["evaluations"] / mine["evaluations"] if mine["evaluations"] else math.inf
        fewer = f"{ratio:.3g} times fewer evaluations of the model" if mine["evaluations"] else "no plan at all"
        said = (
            f"{pick} is the cheapest that a test of {mine['episodes']} episodes shows to keep {share} of the teacher's "
        )
        said += f"return: it keeps {100 * mine['kept']:.1f} %, with {fewer}. {mine['falls']:g} of these episodes "
        said += "fell, to less than half of the teacher's return or before their time; up to "
        said += f"{100 * mine['falls_high']:.0f} % may."
    if check and check["verdict"] != "broken":
        ends = f" [{100 * check['low']:.1f}, {100 * check['high']:.1f}]" if check["low"] is not None else ""
        kept = f"it keeps {100 * check['kept']:.1f} %{ends}: " if check["kept"] is not None else ""
        said += f" On {check['episodes']} fresh episodes {kept}"
        said += f"the promise is {check['verdict']}."
    if delay := getattr(search.arm(pick), "delay", 0):
        said += f" It plans in the background: a plan acts {delay} decision{'s' * (delay > 1)} after it was begun"
        said += f" ({100 * mine['late']:.1f} % of them came later)." if "late" in mine else "."
    if search.rate and "in_time" in mine:
        said += f" {100 * mine['in_time']:.1f} % of its steps meet the deadline of {search.period:.3g} ms."
        if mine["p99_ms"] > search.period:
            said += f" It misses the deadline: 1 % of its steps take longer than {mine['p99_ms']:.3g} ms."
    return said
