"""What is kept of the return when plans take time, on how slow a computer, and what a step takes.

    python paper/deadlines.py --profile smoke

Reads the tables of notebook 09 in `data/results/<profile>/deadlines/`, writes there `summary.csv` (cell × arm × planner
× delay), `steps.csv` (cell × arm × planner × part of a step), and `worlds.csv` (cell × world × arm × planner × delay):
arms beside the clone, which never plans, in the teacher's own world and in changed ones where cells were played there.
"""

import argparse
import math

import pandas as pd

from lib.records import paths
from lib.records.store import read_sidecar, read_table, write_table
from lib.study.delays import deadline_cells, deadlines_file, period_ms, step_table
from lib.study.perturb import NONE
from lib.study.profiles import PROFILES
from lib.study.stats.deadlines import summarise, worlds


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarise the cells of a profile that were played with delays.")
    parser.add_argument("--profile", default="paper", choices=PROFILES)
    profile = parser.parse_args().profile
    folder, cells = paths.results(profile) / "deadlines", deadline_cells(profile)
    steps, tables = {cell: step_table(profile, cell) for cell in cells}, []
    for cell in cells:
        file = deadlines_file(profile, cell)
        task = read_sidecar(file, "task")["task"]
        tables.append(summarise(cell, read_table(file), steps[cell], period_ms(task)))
    print(write_table(folder / "summary.csv", pd.concat(tables, ignore_index=True), cells=cells))
    print(write_table(folder / "steps.csv", pd.concat(steps.values(), ignore_index=True), cells=cells))
    found = [worlds(cell, played) for cell in cells for played in in_worlds(profile, cell)]
    print(write_table(folder / "worlds.csv", pd.concat(found, ignore_index=True), cells=cells))


def in_worlds(profile: str, cell: str) -> list[pd.DataFrame]:
    """The episodes of a cell in its own world, and in changed ones where it was played there."""
    own, changed = (deadlines_file(profile, cell, changed) for changed in (False, True))
    found = [read_table(own).assign(perturbation=NONE, severity=math.nan)]
    return [*found, read_table(changed)] if changed.is_file() else found


if __name__ == "__main__":
    main()
