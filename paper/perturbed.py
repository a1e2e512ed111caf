"""What a cell's arms return in worlds that their teacher was not trained in.

    python paper/perturbed.py --profile smoke --cell walker-walk-1m-1

Writes `data/results/<profile>/perturbed/<cell>.csv` for the profile's `perturbations` and the arms that it has there,
and `<cell>-std.csv` where noise is among these. Episodes that were played before are not played again.
"""

import argparse

from lib.study.arms import correctors_of
from lib.study.calibrate import gate_numbers
from lib.study.cells import Cell, resolve
from lib.study.evaluate import Stage
from lib.study.networks import ensure_network
from lib.study.perturb import deviations, write_perturbed
from lib.study.profiles import PROFILES


def main() -> None:
    parser = argparse.ArgumentParser(description="Play a cell's arms in perturbed worlds.")
    parser.add_argument("--profile", default="smoke", choices=PROFILES)
    parser.add_argument("--cell", required=True, type=Cell.parse)
    given = parser.parse_args()
    cell, settings = given.cell, resolve(given.profile, given.cell.task, given.cell.size, given.cell.seed, "", "cpu")
    profile = settings.profile
    arms = profile.perturbing(str(cell))
    correctors = {arch: ensure_network(settings, cell, arch) for arch in correctors_of(arms)}
    stage = Stage.of(cell, given.profile, corrector_files=correctors, decisions=settings.decisions(cell.task))
    planner = settings.planner(stage.wm.action_dim)
    numbers = gate_numbers(settings, stage, arms, planner)
    noisy = any(name.startswith("noise") for name in profile.perturbations)
    std = deviations(settings, cell) if noisy else None
    print(write_perturbed(stage, arms, profile.perturbations, profile.perturb_episodes, planner, numbers, std))


if __name__ == "__main__":
    main()
