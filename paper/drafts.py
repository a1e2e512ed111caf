"""What the drafts of all cells err and return, for the paper and its figure.

    python paper/drafts.py --profile paper

Reads the tables of notebook 11 in `data/results/<profile>/distilled/`, writes `statistics/drafts.csv` (cell × draft ×
training × labels).
"""

import argparse

from lib.files import files
from lib.records import paths
from lib.records.keys import ResultError, shown
from lib.records.store import how_to_make, read_table, write_table
from lib.study.profiles import PROFILES
from lib.study.stats.drafts import learnt


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarise the drafts of a profile.")
    parser.add_argument("--profile", default="paper", choices=PROFILES)
    results = paths.results(parser.parse_args().profile)
    found = files(results / "distilled", "*.csv")
    if not found:
        folder = results / "distilled"
        raise ResultError(f"{shown(folder)} holds no cell with drafts; {how_to_make(folder / 'a.csv')}.")
    tables = {file.stem: read_table(file) for file in found}
    print(write_table(results / "statistics" / "drafts.csv", learnt(tables), cells=list(tables)))


if __name__ == "__main__":
    main()
