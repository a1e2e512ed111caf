"""The table that the paper and the figures read: every arm of every evaluated cell, and its configuration.

    python paper/summary.py --profile quick

Writes `data/results/<profile>/horizon/summary.csv` and, from the sidecars of the cells' tables, `arms.json` beside it.
"""

import argparse

import pandas as pd

from lib import paths
from lib.config import PROFILES
from lib.evaluation import evaluated_cells
from lib.results import read_sidecar, read_table, write_json, write_table
from lib.statistics import summarise


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarise the evaluated cells of a profile.")
    parser.add_argument("--profile", default="quick", choices=PROFILES)
    profile = parser.parse_args().profile
    folder = paths.results(profile) / "horizon"
    tables = {cell: folder / f"{cell}.csv" for cell in evaluated_cells(profile)}
    write_json(folder / "arms.json", {cell: read_sidecar(table)["arms"] for cell, table in tables.items()})
    rows = pd.concat([read_table(table) for table in tables.values()], ignore_index=True)
    print(write_table(folder / "summary.csv", summarise(rows), cells=list(tables)))


if __name__ == "__main__":
    main()
