"""Which metric goes with which target: the tables of the offline study from one row per cell.

    table = correlations(cells)           # task × metric × target
    gains = differences(cells)            # how much better M3–M5 tell a target than M1 and M2 do
    write_tables("quick", rows, gaps, skipped)

Correlations are within a task, as errors of different tasks have different units. Over all tasks there are those of
ranks within each task, and, for metrics and targets without a unit, those of the values themselves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import rankdata

from lib.records import paths
from lib.records.store import write_table
from lib.study.stats.ranks import association, difference

# +1 where more of it is better, −1 where less is.
METRICS = {"m1": -1, "m1_z": -1, "m1_latent": -1, "m2": -1, "m2_z": -1, "m2_latent": -1, "m3": 1, "m3_latent": 1}
METRICS |= {"m4": 1, "m4_latent": 1, "m5": -1, "m5_latent": -1, "reward_error": -1, "value_error": -1}
TARGETS = {"cpg": -1, "cpg_return": -1, "teacher_return": 1, "kept_e3": 1, "kept_e6": 1}
MAIN_METRICS = ("m1", "m2", "m3", "m4", "m5")
BANKS = ("random", "on_policy")  # both in equal parts where a metric names none
UNITLESS_METRICS = ("m3", "m3_latent", "m4", "m4_latent", "m5", "m5_latent")
UNITLESS_TARGETS = ("cpg", "cpg_return", "kept_e3", "kept_e6")
BASELINES = ("m1", "m2")
VARIANTS = ("", "_latent")  # through the decoder, and without one
TRAINING = {"decisions": 1}  # no metric of a model at all: what every one of them has to beat
ALL, ALL_RANKS = "all tasks", "all tasks, ranks"
PER_ERROR = 2 * float(ndtri(0.975))  # standard errors in the width of a 95 % interval


def correlations(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per task, metric, bank and target (see `lib.study.stats.ranks.association`), pooled ones last.

    `bank` is "mixed", or the one bank that the metric was measured on. `expected` is the sign that ρ has if the metric
    is worth anything. Beside the metrics stand the decisions of training, to which most of them owe what they tell.
    Cells whose training is not known do not count.
    """
    cells, rows = _trained(cells), []
    signs = METRICS | TRAINING
    wanted = [(metric, "mixed", metric) for metric in signs]
    wanted += [(metric, name, f"{metric}_{name}") for name in BANKS for metric in MAIN_METRICS]
    for task, mine in _groups(cells):
        for metric, bank, column in wanted:
            for target in TARGETS:
                if task == ALL and not (metric in UNITLESS_METRICS and target in UNITLESS_TARGETS):
                    continue
                about = {"task": task, "metric": metric, "bank": bank, "target": target}
                about["expected"] = signs[metric] * TARGETS[target]
                rows.append(about | _association(task, mine, column, target))
    return pd.DataFrame(rows, columns=None if rows else ["task", "metric", "bank", "target", "n"])


def _association(task: str, cells: pd.DataFrame, metric: str, target: str) -> dict:
    known = cells.dropna(subset=[metric, target]) if {metric, target} <= set(cells) else cells[:0]
    values, errors = (known.get(name, pd.Series(dtype=float)).to_numpy(float) for name in (metric, target)), None
    ends = [f"{target}_low", f"{target}_high"]
    if task != ALL_RANKS and set(ends) <= set(known):
        errors = (known[ends[1]].astype(float) - known[ends[0]].astype(float)).to_numpy() / PER_ERROR
    given = known["decisions"].to_numpy(float)
    if task == ALL_RANKS:
        *values, given = (_within(known, x) for x in (*values, given))
    return association(*values, _strata(known), given=given, errors=errors, groups=known["task"].to_numpy(str))


def differences(cells: pd.DataFrame) -> pd.DataFrame:
    """How much larger the correlation of M3, M4 or M5 with a target is than that of M1 or M2, with its interval.

    The same of their variants that need no decoder, among themselves.

    Signs are turned so that larger means better throughout: +0.3 says that the decision-aware metric tells that much
    more. Within each task, and over all tasks by ranks. `low`…`high` exchanges runs, `low_naive`…`high_naive` takes the
    cells of a task for independent.
    """
    rows, aware = [], [m for m in MAIN_METRICS if m not in BASELINES]
    pairs = [(metric + end, baseline + end) for end in VARIANTS for metric in aware for baseline in BASELINES]
    for task, mine in _groups(_trained(cells)):
        if task == ALL:
            continue
        for metric, baseline in (pair for pair in pairs if set(pair) <= set(METRICS)):
            rows += [_difference(task, mine, metric, baseline, target) for target in TARGETS]
    return pd.DataFrame(rows, columns=None if rows else ["task", "metric", "baseline", "target", "n"])


def _difference(task: str, cells: pd.DataFrame, metric: str, baseline: str, target: str) -> dict:
    names = {baseline: METRICS[baseline], metric: METRICS[metric], target: TARGETS[target]}
    known = cells.dropna(subset=list(names)) if set(names) <= set(cells) else cells[:0]
    row = {"task": task, "metric": metric, "baseline": baseline, "target": target, "n": len(known)}
    if len(known) >= 3:
        columns = [sign * known[name].to_numpy(float) for name, sign in names.items()]
        if task == ALL_RANKS:
            columns = [_within(known, x) for x in columns]
        row |= dict(zip(("difference", "low", "high"), difference(*columns, _strata(known)), strict=True))
        _, row["low_naive"], row["high_naive"] = difference(*columns, known["task"].to_numpy(str))
    return row


def _trained(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.dropna(subset=["decisions"]) if "decisions" in cells else cells


def _groups(cells: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The cells of each task, and all of them twice where there are several tasks."""
    groups = [(str(task), mine) for task, mine in cells.groupby("task", sort=True)] if len(cells) else []
    return groups + ([(ALL_RANKS, cells), (ALL, cells)] if len(groups) > 1 else [])


def _strata(cells: pd.DataFrame) -> np.ndarray:
    """Cells that may be exchanged: those of one task and size after as many decisions."""
    return (cells["task"] + "/" + cells["size"].astype(str) + "/" + cells["decisions"].astype(str)).to_numpy(str)


def _within(cells: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    """Ranks within the task, between 0 and 1."""
    placed, tasks = np.empty(len(values)), cells["task"].to_numpy()
    for task in dict.fromkeys(tasks):
        mine = tasks == task
        placed[mine] = (rankdata(values[mine]) - 0.5) / mine.sum()
    return placed


def write_tables(profile: str, rows: list[dict], gaps: list[dict], skipped: list[str], **provenance) -> pd.DataFrame:
    """Write `offline/{cells,gaps,correlations,differences,skipped}.csv` of a profile; the cells as a table.

    `skipped` are the files of cells whose weights are missing; the sidecars list them, too.
    """
    folder, empty = paths.results(profile) / "offline", ["cell", "task", "size", "seed", "decisions"]
    order = ["task", "size", "seed", "decisions"]
    cells, gaps = (pd.DataFrame(x, columns=None if x else empty) for x in (rows, gaps))
    cells, gaps = (table.sort_values(order, kind="stable", ignore_index=True) for table in (cells, gaps))
    left_out = pd.DataFrame({"file": skipped}, dtype=str)
    tables = {"gaps": gaps, "correlations": correlations(cells), "differences": differences(cells)}
    tables |= {"skipped": left_out, "cells": cells}
    for name, table in tables.items():  # the cells last: they say that the study is whole
        write_table(Path(folder) / f"{name}.csv", table, skipped=skipped, **provenance)
    return cells
