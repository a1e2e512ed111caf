"""The table that the paper and the figures read: every arm of every evaluated cell, and its configuration.

    python paper/summary.py --profile quick

Writes `data/results/<profile>/horizon/summary.csv` and, from the sidecars of the cells' tables, `arms.json` beside it.
Column `cell` names the files of a cell's results: a teacher from elsewhere may have task, size and seed in common with
a shipped one.
"""

import argparse

import pandas as pd

from lib import paths
from lib.config import PROFILES
from lib.evaluation import evaluated_cells
from lib.results import read_sidecar, read_table, write_json, write_table
from lib.statistics import summarise


def with_latency(arms: pd.DataFrame, profile: str, cell: str) -> pd.DataFrame:
    """Columns step_ms and steps_per_s, of a control step at batch 1; empty for what was not measured."""
    file = paths.results(profile) / "latency" / f"{cell}.csv"
    if not file.is_file():
        return arms.assign(step_ms=None, steps_per_s=None)
    steps = read_table(file).query("part == 'step'").set_index("arm").rename(columns={"mean_ms": "step_ms"})
    return arms.join(steps[["step_ms", "steps_per_s"]], on="arm")


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarise the evaluated cells of a profile.")
    parser.add_argument("--profile", default="quick", choices=PROFILES)
    profile = parser.parse_args().profile
    folder = paths.results(profile) / "horizon"
    tables = {cell: folder / f"{cell}.csv" for cell in evaluated_cells(profile)}
    write_json(folder / "arms.json", {cell: read_sidecar(table)["arms"] for cell, table in tables.items()})
    parts = [with_latency(summarise(read_table(table)), profile, cell) for cell, table in tables.items()]
    for cell, part in zip(tables, parts, strict=True):
        part.insert(0, "cell", cell)
    print(write_table(folder / "summary.csv", pd.concat(parts, ignore_index=True), cells=list(tables)))


if __name__ == "__main__":
    main()
