"""Control against the clock with a planner in the background, run by run of the profile.

    python paper/realtime.py --profile paper

Writes `data/results/<profile>/realtime/summary.csv`: missed deadlines, how long steps took, and the reward of a
decision; over the first episodes, whose decisions are `compared`, also beside a simulated delay. And
`step.csv`: how long the step that does not plan takes by itself, beside its matrix products. Nothing else should run on
the machine meanwhile.
"""

import argparse

import pandas as pd

from lib.records import paths
from lib.records.store import write_table
from lib.study.arms import network_file
from lib.study.cells import Cell
from lib.study.foreground import foreground
from lib.study.profiles import PROFILES
from lib.study.realtime_demo import CORRECTORS, demo

TOLD = [
    "cell", "rate", "planner", "slower", "decisions", "missed", "missed_in_act", "loop_late", "solve_ms", "solves",
    "taken_up", "dropped", "age_at_arrival", "delay", "reward", "reward_compared", "reward_simulated",
]  # fmt: skip
STEPS = {"p50": "step_p50_ms", "p99": "step_p99_ms", "p99.9": "step_p999_ms", "longest": "step_max_ms"}


ALONE = 100_000  # steps


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Control against the clock, as a profile says.")
    parser.add_argument("--profile", default="paper", choices=PROFILES)
    profile = parser.parse_args(arguments).profile
    folder, rows = paths.results(profile) / "realtime", []
    cells = dict.fromkeys(Cell.parse(run.cell) for run in PROFILES[profile].realtime)
    steps = [
        foreground(cell, next(n for n in CORRECTORS if network_file("paper", cell, n).is_file()), ALONE)
        for cell in cells
    ]
    print(write_table(folder / "step.csv", pd.DataFrame(steps)))
    for run in PROFILES[profile].realtime:
        task, size, seed = paths.cell_parts(run.cell)
        found = demo(task, run.rate, run.seconds, run.planner, run.slower, size, seed)
        took = {column: found["step_ms"][name] for name, column in STEPS.items()}
        rows.append({name: found[name] for name in TOLD} | took | {"compared": sum(n for _, n in found["episodes"])})
    print(write_table(folder / "summary.csv", pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
