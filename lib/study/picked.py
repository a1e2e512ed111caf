"""What was certified of a profile's cells: the picks on fresh episodes, and what they cost beside the teacher.

time_picks(settings, cell)                    # data/results/<profile>/certified/<cell>-steps.csv
table = summary("paper", "walker-walk-1m-1")  # a row per chain: what was picked, kept, and its cost
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from lib.files import files
from lib.records import paths
from lib.records.keys import ResultError, shown
from lib.records.store import how_to_make, read_sidecar, read_table
from lib.study.arms import network_file, networks_of, numbers_of, recorded
from lib.study.cells import Cell, Settings
from lib.study.certify import EPISODES, TEACHER, picks
from lib.study.evaluate import Stage
from lib.study.stats.certification import kept_above, verdict
from lib.study.stats.step_time import step_time
from lib.study.steps import step_times

STEPS = "-steps"  # the end of the name of a cell's table of step times


def time_picks(settings: Settings, cell: Cell) -> Path:
    """Time the steps of the teacher and of all picks of a certified cell, in milliseconds and in turns, as rows of
    `lib.study.steps.measure`; nothing else may run meanwhile. Returns the file. Raises `ResultError` for a
    cell that is not certified."""
    profile = settings.profile
    file = paths.results(profile.name) / "certified" / f"{cell}.csv"
    about = read_sidecar(file, "picks", "arms")
    arms = {name: recorded(about["arms"][name]) for name in dict.fromkeys([TEACHER, *about["picks"].values()])}
    networks = {name: network_file(profile.name, cell, name) for arm in arms.values() for name in networks_of(arm)}
    decisions, out = settings.decisions(cell.task), file.with_name(f"{cell}{STEPS}.csv")
    stage = Stage.of(cell, profile.name, settings.teacher_name(cell), networks, decisions, settings.device)
    numbers = {name: {n: getattr(arm, n) for n in numbers_of(arm)} for name, arm in arms.items()}
    work = {1: (list(arms), profile.certified_steps)}
    step_times(stage, settings.planner(stage.wm.action_dim), numbers, work, profile.compile_all, out)
    return out


def certified_cells(profile: str) -> list[str]:
    """Names of the cells that were certified under a profile. Raises `ResultError` when there are none."""
    folder = paths.results(profile) / "certified"
    cells = sorted(p.stem.removesuffix(EPISODES) for p in files(folder, f"*{EPISODES}.csv"))
    cells = [cell for cell in cells if (folder / f"{cell}.csv").is_file()]
    if not cells:
        raise ResultError(f"{shown(folder)} holds no certified cell; {how_to_make(folder / 'a.csv')}.")
    return cells


def summary(profile: str, cell: str) -> pd.DataFrame:
    """One row per chain, and for `all`: what was picked, and what fresh episodes say of it.

    Columns: cell, chain, pick, episodes, kept with its interval, `verdict`, `fallback` (only the teacher passed), and
    how many times less than the teacher the pick needs: evaluations_ratio (inf where it evaluates nothing), step_ratio
    (mean time of a step over the fresh episodes) and p999_ratio (99.9th percentile of the timed steps); empty where
    times were not measured.
    """
    file = paths.results(profile) / "certified" / f"{cell}.csv"
    picked, floor = picks(read_table(file)), read_sidecar(file, "floor")["floor"]
    episodes = read_table(file.with_name(f"{cell}{EPISODES}.csv"))
    fresh = episodes[episodes["block"] != "certify"]
    arms = {name: rows.set_index("episode_seed") for name, rows in fresh.groupby("arm", sort=False)}
    teacher = arms[TEACHER]
    costs = costs_of(fresh, file.with_name(f"{cell}{STEPS}.csv"))
    rows = []
    for chain, pick in picked.items():
        mine = arms[pick].loc[teacher.index]
        kept = kept_above(mine["return"], teacher["return"], floor)
        row = {"cell": cell, "chain": chain, "pick": pick, "episodes": len(mine)}
        row |= dict(zip(("kept", "kept_low", "kept_high"), kept, strict=True))
        row |= {"verdict": verdict(kept), "fallback": pick == TEACHER}
        rows.append(row | {f"{cost}_ratio": ratio(by_arm, pick) for cost, by_arm in costs.items()})
    return pd.DataFrame(rows)


def costs_of(episodes: pd.DataFrame, latency: Path) -> dict[str, dict[str, float]]:
    """Kind of cost → arm → what it costs, of the arms of these episodes; times from a table of `lib.study.steps`."""
    found = {"evaluations": episodes.groupby("arm")["model_evaluations"].mean().to_dict(), "step": {}, "p999": {}}
    if latency.is_file():
        timed = read_table(latency).query("batch == 1")
        found["step"] = step_time(timed, episodes).set_index("arm")["step_ms"].to_dict()
        whole = timed[timed["part"] == "step"].set_index("arm")
        found["p999"] = whole["p999_ms"].dropna().to_dict() if "p999_ms" in whole else {}
    return found


def ratio(costs: dict[str, float], pick: str) -> float:
    """How many times less than the teacher's a pick's cost is; nan where one of them is not known."""
    if not {TEACHER, pick} <= costs.keys():
        return math.nan
    return costs[TEACHER] / costs[pick] if costs[pick] else math.inf
