"""Latency rows: what is counted as planning, the turns the arms take, and what does not count."""

import numpy as np
import pytest
import torch
from test_evaluation import CELL, corrector_file, env, home  # noqa: F401  (fixtures)
from tiny import BUDGET

from lib import latency, paths
from lib.arms import make_arm
from lib.config import PlannerConfig
from lib.correctors import TemporalCorrector, TwoTowerCorrector
from lib.evaluation import Stage
from lib.latency import WARM_UP, alone, measure, step_times


def named(*names, threshold=0.4):
    return [make_arm(name, BUDGET, {"threshold": threshold, "levels": (0.0, 0.0)}) for name in names]


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a step with a plan takes 10 ms, any other 1 ms, and everything else hardly any time."""

    class Clock:
        now, step = 0.0, 0.0

        def perf_counter(self):
            self.now += 1e-12  # nothing takes no time at all
            return self.now

    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    real = latency.make_controller

    def timed_controller(arm, wm, correctors):
        controller = real(arm, wm, correctors)
        act = controller.act

        def slow(obs):
            action, info = act(obs)
            made.now += 0.010 if (info["planner_called"] | info["refined"]).any() else 0.001
            return action, info

        controller.act = slow
        return controller

    monkeypatch.setattr(latency, "make_controller", timed_controller)
    return made


def test_steps_with_and_without_a_plan_are_told_apart(home, env, clock, monkeypatch):  # noqa: F811
    monkeypatch.setattr(latency, "make_env", env)
    stage = Stage.of(CELL, "smoke", corrector_files={"two_tower": corrector_file()})
    rows = measure(stage, named("teacher", "policy", "8x2+two-tower-3", "teacher"), decisions=9)
    found = {(r["arm"], r["part"]): r for r in rows}
    assert len(found) == len(rows) == 3 + 3 + 7  # an arm that is named twice is measured once
    assert {part for arm, part in found if arm == "teacher"} == {"step", "plan", "env"}
    assert {part for arm, part in found if arm == "policy"} == {"step", "between", "env"}
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
    rows = measure(Stage.of(CELL, "smoke"), named("policy", "teacher"), decisions=4)
    rounds = [5, 5, 5, WARM_UP + 4 - 15]
    assert [name for name, _ in turns] == [name for n in rounds for name in ["policy"] * n + ["teacher"] * n]
    for arm in ("policy", "teacher"):
        assert [counts for name, counts in turns if name == arm] == [False] * WARM_UP + [True] * 4
    assert len(env.starts) == 2 * (1 + (WARM_UP + 4) // 5)
    assert {r["threads"] for r in rows} == {torch.get_num_threads()}
    assert all(np.isfinite(r["mean_ms"]) and r["mean_ms"] > 0 for r in rows)


def test_a_batch_of_episodes_is_one_controllers(home, env, clock, monkeypatch):  # noqa: F811
    monkeypatch.setattr(latency, "make_env", env)
    stage = Stage.of(CELL, "smoke", corrector_files={"two_tower": corrector_file()})
    rows = measure(stage, named("8x2+open-loop-3"), decisions=6, batch=4)
    found = {r["part"]: r for r in rows}
    assert {r["batch"] for r in rows} == {4} and len(env.starts) == 4
    assert found["step"]["calls_per_decision"] == pytest.approx(1 / 3)  # of an episode, not of the batch


def test_the_parts_of_a_step_are_those_that_the_arm_has(home, env, clock, monkeypatch):  # noqa: F811
    monkeypatch.setattr(latency, "make_env", env)
    calls = []

    def timed(functions, **_):
        for function in functions.values():
            function()
        calls.extend(functions)
        return {name: np.array([1.0 + number]) for number, name in enumerate(functions)}

    monkeypatch.setattr(latency, "timed", timed)
    files = {"two_tower": corrector_file()}
    arms = named(
        "teacher", "policy", "8x2+open-loop-3", "8x2+two-tower-3", "two-tower-3", "8x2+ladder-3", "value-only-3"
    )
    rows = measure(Stage.of(CELL, "smoke", corrector_files=files), arms, decisions=6)
    assert calls == [("encode", ""), ("predict", ""), ("correct", "two_tower"), ("gate", "ladder"), ("gate", "value")]
    parts = {name: {r["part"]: r["mean_ms"] for r in rows if r["arm"] == name} for name in (arm.name for arm in arms)}
    made_of = {name: [p for p in ("encode", "predict", "correct", "gate") if p in parts[name]] for name in parts}
    assert made_of == {
        "teacher": [],
        "policy": [],
        "8×2+open-loop-3": ["encode", "predict"],
        "8×2+two-tower-3": ["encode", "predict", "correct"],
        "two-tower-3": ["encode", "predict", "correct"],
        "8×2+ladder-3": ["encode", "predict", "correct", "gate"],
        "value-only-3": ["encode", "predict", "gate"],
    }
    assert (parts["8×2+ladder-3"]["gate"], parts["value-only-3"]["gate"]) == (4.0, 5.0)


@pytest.mark.parametrize("corrector", [TwoTowerCorrector, TemporalCorrector])
def test_a_part_by_itself_computes_what_the_step_does(home, env, corrector):  # noqa: F811
    stage = Stage.of(CELL, "smoke")
    wm, arch = stage.wm, corrector.arch
    (arm,) = named(f"8x2+{arch.replace('_', '-')}-3")
    controller = latency.make_controller(arm, wm, {arch: corrector(wm.latent_dim, wm.action_dim).eval()})
    playing = latency._Playing(arm, controller, [env("tiny", seed) for seed in (1, 2)], [1, 2])
    playing.start()
    device = torch.device("cpu")
    for _ in range(2):  # the second is a step without a plan
        before = controller._z_pred, controller._executed
        seen = controller.propose(playing.obs)
        playing.step(device, counts=True)
    parts = {part: function() for (part, _), function in alone(playing).items()}
    assert parts["correct"][0].shape == seen.action.shape and parts["encode"][0].shape == seen.z.shape
    z_pred = wm.next(*before)
    torch.testing.assert_close(seen.z_pred, z_pred)
    now = controller.propose(playing.obs)
    torch.testing.assert_close(parts["encode"][0], now.z)
    torch.testing.assert_close(parts["predict"][1], now.a_policy)
    torch.testing.assert_close(parts["predict"][0], wm.next(now.z_pred, now.action))


def test_times_are_kept_until_arms_or_work_change(home, env, monkeypatch):  # noqa: F811
    monkeypatch.setattr(latency, "make_env", env)
    stage, measured = Stage.of(CELL, "smoke"), []

    def noted(stage, arms, count, batch):
        measured.append(([arm.name for arm in arms], count, batch))
        return [{"arm": arm.name, "part": "step", "batch": batch, "mean_ms": 1.0} for arm in arms]

    monkeypatch.setattr(latency, "measure", noted)
    first = step_times(stage, ["teacher", "policy"], BUDGET, {}, {1: 4, 10: 2})
    assert first["batch"].tolist() == [1, 1, 10, 10] and measured == [
        (["teacher", "policy"], 4, 1),
        (["teacher", "policy"], 2, 10),
    ]
    assert (paths.results("smoke") / "latency" / f"{CELL}.csv").is_file()
    assert step_times(stage, ["teacher", "policy"], BUDGET, {}, {1: 4, 10: 2}).equals(first) and len(measured) == 2
    step_times(stage, ["teacher", "policy"], BUDGET, {}, {1: 5})
    step_times(stage, ["teacher"], BUDGET, {}, {1: 5})
    step_times(stage, ["teacher"], PlannerConfig.budget(4, 1), {}, {1: 5})
    assert len(measured) == 5
