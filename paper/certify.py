"""The cheapest way to control a cell of which a test shows that it keeps 98 % of the teacher's return.

    python paper/certify.py --profile paper --cell walker-walk-1m-1

Writes `data/results/<profile>/certified/<cell>.csv`, a row per candidate of the profile's chains, and
`<cell>-episodes.csv`. Episodes that were played before are not played again. A teacher from elsewhere is named with
`--teacher`; its results bear its name.
"""

import argparse

from lib.study.cells import Cell, resolve
from lib.study.certify import write_certified
from lib.study.profiles import PROFILES


def main() -> None:
    parser = argparse.ArgumentParser(description="Certify the cheapest way to control a cell.")
    parser.add_argument("--profile", default="paper", choices=[name for name, p in PROFILES.items() if p.certification])
    parser.add_argument("--cell", required=True, type=Cell.parse)
    parser.add_argument("--teacher", default="")
    given = parser.parse_args()
    settings = resolve(given.profile, given.cell.task, given.cell.size, given.cell.seed, given.teacher, "cpu")
    print(write_certified(settings, settings.cell))


if __name__ == "__main__":
    main()
