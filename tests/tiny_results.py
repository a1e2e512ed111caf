"""What the tests of statistics share: records of episodes that nobody ran."""

import pandas as pd


def episodes(arms: dict, seeds=range(10), task="walker-walk", teacher_seed=1) -> pd.DataFrame:
    """Rows with returns `arms[name](seed)`; the teacher calls the planner 500 times, the others 167."""
    rows = []
    for name, value in arms.items():
        horizon = 1 if name in ("teacher", "policy") or name.startswith("budget") else 3
        calls = {"teacher": 500, "policy": 0}.get(name, 167)
        for seed in seeds:
            rows.append(
                dict(task=task, size="1m", teacher_seed=teacher_seed, corrector_seed=0, arm=name,
                     execution_horizon=horizon, episode_seed=seed, length=500, planner_calls=calls,
                     model_evaluations=calls * 9216, fallbacks=0, corrector_calls=333 if "tower" in name else None,
                     delta_abs=0.1 if "tower" in name else None) | {"return": value(seed)}
            )  # fmt: skip
    return pd.DataFrame(rows)
