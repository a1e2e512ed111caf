"""What the tests of statistics share: records of episodes that nobody ran."""

import pandas as pd

from lib.config import PlannerConfig
from lib.study.arms import make_arm


def about(name: str) -> dict:
    """An arm's name and columns, as tables have them."""
    arm = make_arm(name, PlannerConfig())
    return {"arm": arm.name} | arm.columns


def episodes(arms: dict, seeds=range(10), task="walker-walk", teacher_seed=1) -> pd.DataFrame:
    """Rows with returns `arms[name](seed)`; the teacher calls the planner 500 times, the others 167."""
    rows = []
    for name, value in arms.items():
        calls = {"teacher": 500, "policy": 0}.get(name, 167)
        for seed in seeds:
            rows.append(
                about(name)
                | dict(task=task, size="1m", teacher_seed=teacher_seed, corrector_seed=0, episode_seed=seed, length=500,
                       planner_calls=calls, model_evaluations=calls * 9216, fallbacks=0,
                       corrector_calls=333 if "tower" in name else None, delta_abs=0.1 if "tower" in name else None)
                | {"return": value(seed)}
            )  # fmt: skip
    return pd.DataFrame(rows)
