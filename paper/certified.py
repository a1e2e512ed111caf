"""The picks of all certified cells, and in simulation how often such picks keep less than they should.

    python paper/certified.py --profile paper

Reads the cells' tables in `data/results/<profile>/certified/`. Writes `certified/summary.csv` (cell ×
chain), and under the paper profile `certified/validity.csv`, a simulation that takes half a minute once.
"""

import argparse

import pandas as pd

from lib.records import paths
from lib.records.keys import key_of
from lib.records.store import cached, write_table
from lib.study.picked import certified_cells, summary
from lib.study.profiles import PROFILES
from lib.study.stats.certification import validity_table


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarise the certified cells of a profile.")
    parser.add_argument("--profile", default="paper", choices=PROFILES)
    profile = parser.parse_args().profile
    folder, cells = paths.results(profile) / "certified", certified_cells(profile)
    table = pd.concat([summary(profile, cell) for cell in cells], ignore_index=True)
    print(write_table(folder / "summary.csv", table, cells=cells))
    if profile == "paper":
        file, key = folder / "validity.csv", key_of([validity_table])
        cached(file, key, lambda path: validity_table().to_csv(path, index=False), "validity of certified choices")


if __name__ == "__main__":
    main()
