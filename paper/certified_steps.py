"""How long the steps of a certified cell's picks take, beside the teacher's.

    python paper/certified_steps.py --profile paper --cell walker-run-1m-1

Writes `data/results/<profile>/certified/<cell>-steps.csv`, a row per arm and part of a step. Nothing else should run on
the machine meanwhile.
"""

import argparse

from lib.study.cells import Cell, resolve
from lib.study.picked import time_picks
from lib.study.profiles import PROFILES


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the picks of a certified cell.")
    parser.add_argument("--profile", default="paper", choices=[name for name, p in PROFILES.items() if p.certification])
    parser.add_argument("--cell", required=True, type=Cell.parse)
    given = parser.parse_args()
    settings = resolve(given.profile, given.cell.task, given.cell.size, given.cell.seed, "", "cpu")
    print(time_picks(settings, settings.cell))


if __name__ == "__main__":
    main()
