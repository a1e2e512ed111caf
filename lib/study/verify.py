"""Checking committed results: runs a seeded sample of the recorded episodes again and compares.

python -m lib.study.verify --profile paper
"""

from __future__ import annotations

import sys

import numpy as np
import tyro

from lib.config import ConfigError, one_of
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import intact, read_sidecar, read_table
from lib.study.arms import make_controller, network_file, recorded
from lib.study.evaluate import evaluated_cells, run_episodes
from lib.study.profiles import PROFILES
from lib.weights.distilled import NetworkError, load_network
from lib.weights.native import CheckpointError, load_world_model, teacher_key


def verify(profile: str = "paper", sample: int = 1, seed: int = 0) -> list[str]:
    """Re-run `sample` seeded episodes of every committed arm of a profile and compare.

    Floating point differs between machines and episodes are chaotic, so a return need not be equal: it must lie within
    six standard deviations (of the arm's other episodes) of the committed one. A table that is not what its sidecar
    describes does not hold either. Returns a sentence per episode or table that does not hold.
    """
    folder, wrong = paths.results(one_of("profile", profile, PROFILES)) / "horizon", []
    random = np.random.default_rng(seed)
    for name in evaluated_cells(profile):
        table, about = read_table(folder / f"{name}.csv"), read_sidecar(folder / f"{name}.csv")
        if not intact(folder / f"{name}.csv"):
            wrong.append(f"{name}.csv is not the file that its sidecar describes")
            print(f"WRONG {wrong[-1]}")
        if not {"arms", "teacher", "task"} <= about.keys():
            raise ConfigError(f"the sidecar of {name}.csv names no arms; run make all PROFILE={profile} again.")
        task, teacher = about["task"], about["teacher"]
        wm = load_world_model(teacher, task=task)
        for arm_name, settings in about["arms"].items():
            arm = recorded(settings)
            committed = table[table["arm"] == arm_name].set_index("episode_seed")["return"]
            seeds = random.choice(committed.index, size=min(sample, len(committed)), replace=False).tolist()
            file = network_file(profile, name, arm.corrector)
            correctors = {arm.corrector: load_network(file, teacher_key(teacher))} if arm.corrector else {}
            controller, what = make_controller(arm, wm, correctors), f"verify {name} {arm_name}"
            rows = run_episodes(arm, controller, task, seeds, settings["decisions"], what).episodes
            for row in rows:
                before, others = committed[row["episode_seed"]], committed.drop(row["episode_seed"])
                spread = others.std(ddof=1) if len(others) > 1 else 0.0
                result = f"episode {row['episode_seed']}: {row['return']:.1f} now"
                note = f"{name} {arm_name}, {result}, {before:.1f} committed"
                holds = abs(row["return"] - before) <= max(6 * spread, 0.02 * abs(before), 1.0)
                print(f"{'ok   ' if holds else 'WRONG'} {note}")
                wrong += [] if holds else [note]
    return wrong


def main(arguments: list[str] | None = None) -> int:
    try:
        wrong = tyro.cli(verify, prog="python -m lib.study.verify", args=arguments)
    except (ConfigError, CheckpointError, NetworkError, ResultError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
