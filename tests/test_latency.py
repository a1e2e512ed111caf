"""Latency rows: what is counted as planning, the turns the arms take, and what does not count."""

import numpy as np
import pytest
import torch
from test_evaluation import CELL, corrector_file, env, home  # noqa: F401  (fixtures)
from tiny import BUDGET

from lib import latency
from lib.evaluation import Stage
from lib.latency import WARM_UP, measure


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a step with a plan takes 10 ms, and any other 1 ms."""

    class Clock:
        now, step = 0.0, 0.0

        def perf_counter(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    real = latency.make_controller

    def timed_controller(arm, wm, correctors):
        controller = real(arm, wm, correctors)
        act = controller.act

        def slow(obs):
            action, info = act(obs)
            made.now += 0.010 if info["planner_called"] | info["refined"] else 0.001
            return action, info

        controller.act = slow
        return controller

    monkeypatch.setattr(latency, "make_controller", timed_controller)
    return made


def test_steps_with_and_without_a_plan_are_told_apart(home, env, clock, monkeypatch):  # noqa: F811
    monkeypatch.setattr(latency, "make_env", env)
    stage = Stage.of(CELL, "smoke", corrector_files={"two_tower": corrector_file()})
    rows = measure(stage, ["teacher", "policy", "8x2+two-tower-3", "teacher"], BUDGET, {}, decisions=9)
    found = {(r["arm"], r["part"]): r for r in rows}
    assert len(found) == len(rows) == 2 + 2 + 3  # an arm that is named twice is measured once
    assert {part for arm, part in found if arm == "teacher"} == {"step", "plan"}
    assert {part for arm, part in found if arm == "policy"} == {"step", "between"}
    step, plan, between = (found["8×2+two-tower-3", part] for part in ("step", "plan", "between"))
    assert plan["p50_ms"] == pytest.approx(10) and between["p95_ms"] == pytest.approx(1)
    assert (plan["share"], between["share"], step["share"]) == pytest.approx((1 / 3, 2 / 3, 1))
    assert step["mean_ms"] == pytest.approx(4) and step["steps_per_s"] == pytest.approx(250)
    assert step["calls_per_decision"] == pytest.approx(1 / 3)
    assert found["teacher", "step"]["calls_per_decision"] == 1 and found["policy", "step"]["calls_per_decision"] == 0


def test_arms_take_turns_and_the_first_decisions_do_not_count(home, env, monkeypatch):  # noqa: F811
    turns = []
    monkeypatch.setattr(latency, "make_env", env)
    real = latency._Playing.step

    def noted(self, device, counts):
        turns.append((self.arm.name, counts))
        real(self, device, counts)

    monkeypatch.setattr(latency._Playing, "step", noted)
    monkeypatch.setattr(latency, "TURN", 5)
    env.ends[800_000_000] = 5  # an episode that ends starts again
    rows = measure(Stage.of(CELL, "smoke"), ["policy", "teacher"], BUDGET, {}, decisions=4)
    rounds = [5, 5, 5, WARM_UP + 4 - 15]
    assert [name for name, _ in turns] == [name for n in rounds for name in ["policy"] * n + ["teacher"] * n]
    for arm in ("policy", "teacher"):
        assert [counts for name, counts in turns if name == arm] == [False] * WARM_UP + [True] * 4
    assert len(env.starts) == 2 * (1 + (WARM_UP + 4) // 5)
    assert {r["threads"] for r in rows} == {torch.get_num_threads()}
    assert all(np.isfinite(r["mean_ms"]) and r["mean_ms"] > 0 for r in rows)
