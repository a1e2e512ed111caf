"""float32 and bfloat16 play the same episodes, and the verdict is that of the lower bound."""

import numpy as np
import pytest

from lib.config import WorldModelConfig
from lib.records import paths
from lib.records.seeds import SEED_BLOCKS
from lib.study.cells import Cell
from lib.study.speed import bfloat16
from lib.study.speed.bfloat16 import paired_returns, verdict
from lib.weights.native import save_world_model
from lib.world_model import WorldModel

CELL = Cell("walker-walk", "1m", 1)


def rows_of(exact, half):
    return [
        {"arm": arm, "episode_seed": seed, "return": value}
        for arm, values in (("float32", exact), ("bfloat16", half))
        for seed, value in enumerate(values)
    ]


def test_the_verdict_follows_the_one_sided_bound():
    exact = 900 + 10 * np.sin(np.arange(60))
    noise = np.cos(np.arange(60) ** 2)
    good = verdict(rows_of(exact, exact + noise))
    assert good.episodes == 60 and good.good_enough and good.bound < good.difference < 1
    assert good.reference == pytest.approx(exact.mean()) and "shown to be good enough" in str(good)
    worse = verdict(rows_of(exact, exact - 9.5 + 5 * noise))  # the mean is close to the margin of 9, its bound is not
    assert not worse.good_enough and "not shown to be good enough" in str(worse)
    assert not verdict(rows_of([900.0], [900.0])).good_enough  # one episode has no bound


def test_pairs_go_by_the_seed_and_not_by_the_order():
    rows = rows_of([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert verdict(rows[:3] + rows[:2:-1]).difference == 0


def test_episodes_are_paired_recorded_and_not_run_again(tmp_path, monkeypatch):
    for name in ("TEACHERS", "CACHE"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    paths.TEACHERS.mkdir()
    save_world_model(WorldModel(WorldModelConfig(24, 6, 16, 16, 16, 2, 2)), paths.TEACHERS / f"{CELL}.safetensors")
    seen, run = [], bfloat16.run_episodes

    def noted(arm, controller, *rest):
        seen.append((arm.planner.dtype, controller.planner.networks.dtype, controller.planner.mode))
        return run(arm, controller, *rest)

    monkeypatch.setattr(bfloat16, "run_episodes", noted)
    given = dict(episodes=2, budget=(16, 1), decisions=4, mode="eager")
    rows = paired_returns(CELL, **given)
    start = SEED_BLOCKS["calibrate"]
    assert [(r["arm"], r["episode_seed"]) for r in rows] == [(d, start + i) for d in bfloat16.DTYPES for i in (0, 1)]
    assert [list(r) for r in rows] == 4 * [["arm", "episode_seed", "return"]]
    assert [(d, str(n).removeprefix("torch."), m) for d, n, m in seen] == [(d, d, "eager") for d in bfloat16.DTYPES]
    assert paired_returns(CELL, **given) == rows and len(seen) == 2
    paired_returns(CELL, **given | {"episodes": 3})
    assert len(seen) == 4
