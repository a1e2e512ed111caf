"""What is kept of the return when plans take time, on how slow a computer, and what a step takes.

    python paper/deadlines.py --profile smoke

Reads the tables of notebook 09 in `data/results/<profile>/deadlines/`, writes there `summary.csv` (cell × arm × planner
× delay), `steps.csv` (cell × arm × planner × part of a step), and `changed.csv` (cell × changed world × arm × planner ×
delay) where cells were played in some.
"""

import argparse

import pandas as pd

from lib.records import paths
from lib.records.store import read_sidecar, read_table, write_table
from lib.study.delays import deadline_cells, deadlines_file, period_ms, step_table
from lib.study.profiles import PROFILES
from lib.study.stats.deadlines import changed, summarise


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
    files = {cell: deadlines_file(profile, cell, changed=True) for cell in cells}
    if worlds := [changed(cell, read_table(file)) for cell, file in files.items() if file.is_file()]:
        print(write_table(folder / "changed.csv", pd.concat(worlds, ignore_index=True), cells=cells))


if __name__ == "__main__":
    main()
