"""The tables that the paper and the figures read: every arm of every evaluated cell, and what all cells say together.

    python paper/summary.py --profile quick

Reads the cells' tables in `data/results/<profile>/horizon/` and `latency/`. Writes `horizon/summary.csv` (cell × arm;
step times weighed by how often the arm plans over its episodes) and, from the sidecars, `horizon/arms.json`; and to
`statistics/`: `comparisons.csv` (cell × arm × reference), `parts.csv` (cell × part of the method), `power.csv` (cell ×
arm × effect), `aggregate.csv` and `profiles.csv` (arms over the cells of this project's own teachers); where candidates
were tried out also `headline.csv` (cell × candidate), which says which of them is picked; under the paper profile also
`coverage.csv`, a simulation that takes half a minute once. Column `cell` names the files of a cell's results: a teacher
from elsewhere may have task, size and seed in common with a shipped one.
"""

import argparse

import pandas as pd

from lib.records import paths
from lib.records.keys import key_of
from lib.records.store import cached, read_sidecar, read_table, write_json, write_table
from lib.study.evaluate import evaluated_cells, read_cell
from lib.study.profiles import PROFILES
from lib.study.selection import pick
from lib.study.stats.aggregates import aggregate, performance_profiles
from lib.study.stats.comparisons import compare, cost_ends
from lib.study.stats.coverage import coverage_table, power_table
from lib.study.stats.intervals import summarise
from lib.study.stats.parts import parts
from lib.study.stats.step_time import step_time


def latency(profile: str, cell: str, episodes: pd.DataFrame) -> pd.DataFrame:
    """What `step_time` says of a control step at batch 1, by arm; no rows if none was measured."""
    file = paths.results(profile) / "latency" / f"{cell}.csv"
    timed = read_table(file).query("batch == 1") if file.is_file() else pd.DataFrame(columns=["arm", "part"])
    return step_time(timed, episodes).set_index("arm")


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarise the evaluated cells of a profile.")
    parser.add_argument("--profile", default="quick", choices=PROFILES)
    name = parser.parse_args().profile
    profile, folder = PROFILES[name], paths.results(name) / "horizon"
    rows = {cell: read_cell(name, cell) for cell in evaluated_cells(name)}
    write_json(folder / "arms.json", {cell: read_sidecar(folder / f"{cell}.csv", "arms")["arms"] for cell in rows})

    def write(file: str, table: pd.DataFrame) -> None:
        print(write_table(folder.parent / file, table, cells=list(rows)))

    steps = {cell: latency(name, cell, episodes) for cell, episodes in rows.items()}

    def arms(cell: str, episodes: pd.DataFrame) -> pd.DataFrame:
        return summarise(episodes).merge(cost_ends(episodes)).join(steps[cell], on="arm")

    write("horizon/summary.csv", each(rows, arms))
    write("statistics/comparisons.csv", each(rows, lambda cell, rows: compare(rows, steps[cell]["step_ms"].to_dict())))
    write("statistics/parts.csv", each(rows, lambda _, rows: parts(rows)))
    write("statistics/power.csv", each(rows, lambda _, rows: power_table(rows)))
    own = {cell: table for cell, table in rows.items() if paths.CELL.fullmatch(cell)}
    if own:
        write("statistics/aggregate.csv", aggregate(own))
        write("statistics/profiles.csv", performance_profiles(own))
    tried = {cell: folder.parent / "corrector" / f"{cell}-candidates.csv" for cell in own}
    tried = {cell: read_table(file) for cell, file in tried.items() if file.is_file()}
    tried = {cell: table for cell, table in tried.items() if len(table)}
    if tried:
        write("statistics/headline.csv", pick(tried, fixed=profile.headline, earlier=profile.earlier))
    if name == "paper":
        coverage, key = folder.parent / "statistics" / "coverage.csv", key_of([coverage_table])
        cached(coverage, key, lambda path: coverage_table().to_csv(path, index=False), "coverage of the intervals")


def each(rows: dict[str, pd.DataFrame], table) -> pd.DataFrame:
    """The tables of all cells below each other, with a first column `cell`."""
    parts = []
    for cell, episodes in rows.items():
        parts.append(table(cell, episodes))
        parts[-1].insert(0, "cell", cell)
    return pd.concat(parts, ignore_index=True)


if __name__ == "__main__":
    main()
