"""What the arms keep in changed worlds, over all cells that were played there.

    python paper/changed.py --profile smoke

Reads the tables of `paper/perturbed.py` in `data/results/<profile>/perturbed/`, writes `summary.csv` there and, over
the changed worlds, `statistics/changed.csv`: see `lib.study.stats.changed`. The planner that others stand beside is the
first of the profile's arms.
"""

import argparse

import pandas as pd

from lib.records import paths
from lib.records.store import read_table, write_table
from lib.study.arms import arm_name
from lib.study.perturb import perturbed_cells, perturbed_file
from lib.study.profiles import PROFILES
from lib.study.stats.changed import counted, summarise


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarise the cells of a profile that were played in changed worlds.")
    parser.add_argument("--profile", default="paper", choices=PROFILES)
    profile = parser.parse_args().profile
    cells, reference = perturbed_cells(profile), arm_name(PROFILES[profile].perturb_arms[0])
    tables = [summarise(cell, read_table(perturbed_file(profile, cell)), reference) for cell in cells]
    summary, about = pd.concat(tables, ignore_index=True), {"cells": cells, "reference": reference}
    print(write_table(paths.results(profile) / "statistics" / "changed.csv", counted(summary), **about))
    print(write_table(perturbed_file(profile, "summary"), summary, **about))


if __name__ == "__main__":
    main()
