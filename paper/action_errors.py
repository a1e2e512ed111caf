"""How far the actions of a cell's arms are from the teacher's, on states that they visit themselves.

    python paper/action_errors.py --profile quick --cell walker-walk-1m-1

Writes `data/results/<profile>/horizon/<cell>-action-error.csv` for the profile's `error_arms`. Arms that were measured
before are not measured again.
"""

import argparse

from lib.study.action_error import write_action_errors
from lib.study.arms import correctors_of
from lib.study.cells import Cell, resolve
from lib.study.evaluate import Stage
from lib.study.networks import ensure_network
from lib.study.profiles import PROFILES


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the action errors of a cell's arms.")
    parser.add_argument("--profile", default="quick", choices=PROFILES)
    parser.add_argument("--cell", required=True, type=Cell.parse)
    given = parser.parse_args()
    cell, settings = given.cell, resolve(given.profile, given.cell.task, given.cell.size, given.cell.seed, "", "cpu")
    arms = settings.profile.error_arms
    correctors = {arch: ensure_network(settings, cell, arch) for arch in correctors_of(arms)}
    stage = Stage.of(cell, given.profile, corrector_files=correctors, decisions=settings.decisions(cell.task))
    planner = settings.planner(stage.wm.action_dim)
    print(write_action_errors(stage, arms, planner, {}, settings.profile.error_states))


if __name__ == "__main__":
    main()
