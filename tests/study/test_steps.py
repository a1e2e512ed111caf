"""Latency rows: what is counted as planning, the turns the arms take, and what does not count."""

import dataclasses
import functools
import gc
import math

import numpy as np
import pytest
import torch

from lib.config import PlannerConfig
from lib.correctors import TemporalCorrector, TwoTowerCorrector, token
from lib.gates import LadderGate, Look, ValueGate
from lib.planner import MPPI
from lib.records import paths
from lib.study import steps as latency
from lib.study.arms import make_arm
from lib.study.evaluate import Stage
from lib.study.steps import WARM_UP, alone, measure, step_times, turn_error
from lib.world_model import total_variation
from tests.study.test_evaluate import CELL, corrector_file, env, home  # noqa: F401  (fixtures)
from tests.tiny import BUDGET


def named(*names, threshold=0.4):
    return [make_arm(name, BUDGET, {"threshold": threshold, "levels": (0.0, 0.0)}) for name in names]


@pytest.fixture
def stage(home, env, monkeypatch):
    """The tiny cell, in environments that cost nothing."""
    monkeypatch.setattr(latency, "make_env", env)
    return Stage.of(CELL, "smoke", corrector_files={"two_tower": corrector_file()})


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


def test_there_is_a_last_percentile_of_many_steps_alone(stage, clock, monkeypatch):
    monkeypatch.setattr(latency, "TAIL", 9)
    rows = measure(stage, named("8x2+two-tower-3"), decisions=9)
    found = {r["part"]: r["p999_ms"] for r in rows}
    assert found["step"] == pytest.approx(np.quantile([10] * 3 + [1] * 6, 0.999))
    assert math.isnan(found["plan"]) and math.isnan(found["between"])  # three and six


def test_steps_with_and_without_a_plan_are_told_apart(stage, clock):
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
    assert math.isnan(step["mean_error_ms"]) and step["turns"] == 1
    assert found["teacher", "step"]["calls_per_decision"] == 1 and found["policy", "step"]["calls_per_decision"] == 0


def test_arms_take_turns_and_the_first_decisions_do_not_count(stage, env, monkeypatch):
    turns = []
    real = latency._Playing.step

    def noted(self, device, counts):
        turns.append((self.arm.name, counts))
        real(self, device, counts)

    monkeypatch.setattr(latency._Playing, "step", noted)
    monkeypatch.setattr(latency, "TURN", 5)
    env.ends[800_000_000] = 5  # an episode that ends starts again
    rows = measure(stage, named("policy", "teacher"), decisions=4)
    rounds = [5, 5, 5, WARM_UP + 4 - 15]
    assert [name for name, _ in turns] == [name for n in rounds for name in ["policy"] * n + ["teacher"] * n]
    for arm in ("policy", "teacher"):
        assert [counts for name, counts in turns if name == arm] == [False] * WARM_UP + [True] * 4
    assert len(env.starts) == 2 * (1 + (WARM_UP + 4) // 5)
    assert {r["threads"] for r in rows} == {torch.get_num_threads()}
    assert all(np.isfinite(r["mean_ms"]) and r["mean_ms"] > 0 for r in rows)


def test_errors_of_means_are_over_turns(stage, clock, monkeypatch):
    monkeypatch.setattr(latency, "TURN", 8)  # of which 4 of the second turn count
    rows = measure(stage, named("8x2+two-tower-3"), decisions=14)
    found = {r["part"]: r for r in rows}
    assert {part: found[part]["turns"] for part in ("step", "plan", "between")} == {"step": 3, "plan": 3, "between": 3}
    assert all(math.isnan(found[part]["turns"]) and math.isnan(found[part]["mean_error_ms"]) for part in ("encode",))
    planned = [i % 3 == 0 for i in range(12, 26)]
    times = np.where(planned, 10.0, 1.0)
    by_hand = turn_error(times, [1] * 4 + [2] * 8 + [3] * 2)
    assert by_hand > 0.1 and found["step"]["mean_error_ms"] == pytest.approx(by_hand, rel=1e-6)
    assert found["plan"]["mean_error_ms"] == pytest.approx(0, abs=1e-6)


def test_a_batch_of_episodes_is_one_controllers(stage, env, clock):
    rows = measure(stage, named("8x2+open-loop-3"), decisions=6, batch=4)
    found = {r["part"]: r for r in rows}
    assert {r["batch"] for r in rows} == {4} and len(env.starts) == 4
    assert found["step"]["calls_per_decision"] == pytest.approx(1 / 3)  # of an episode, not of the batch
    assert found["env"]["mean_ms"] < 1e-3  # the controller's 1 or 10 ms are not the environments'


def test_a_step_plans_if_one_of_its_episodes_does(stage, clock, monkeypatch):
    asked, real = [], latency._Playing.step

    def uneven(self, device, counts):
        act = self.controller.act

        def one_asks(obs):
            action, info = act(obs)
            asked.append(len(asked) % 3 == 0)
            flags = torch.tensor([False, asked[-1]])
            return action, info | {"planner_called": flags, "refined": torch.zeros_like(flags)}

        monkeypatch.setattr(self.controller, "act", one_asks)
        real(self, device, counts)
        monkeypatch.setattr(self.controller, "act", act)

    monkeypatch.setattr(latency._Playing, "step", uneven)
    rows = measure(stage, named("8x2+open-loop-3"), decisions=6, batch=2)
    found = {r["part"]: r for r in rows}
    assert found["plan"]["share"] == pytest.approx(1 / 3) and found["between"]["share"] == pytest.approx(2 / 3)
    assert found["step"]["calls_per_decision"] == pytest.approx(1 / 6)


def test_the_garbage_collector_waits(stage, monkeypatch):
    enabled, real = [], latency._Playing.step

    def noted(self, device, counts):
        enabled.append(gc.isenabled())
        real(self, device, counts)
        if len(enabled) == 3:
            raise RuntimeError("stopped")

    monkeypatch.setattr(latency._Playing, "step", noted)
    with pytest.raises(RuntimeError, match="stopped"):
        measure(stage, named("policy"), decisions=4)
    assert enabled == [False] * 3 and gc.isenabled()


def test_the_parts_of_a_step_are_those_that_the_arm_has(stage, clock, monkeypatch):
    calls = []

    def timed(functions, **_):
        for function in functions.values():
            function()
        calls.extend(functions)
        return {name: np.array([1.0 + number]) for number, name in enumerate(functions)}

    monkeypatch.setattr(latency, "timed", timed)
    made_of = {
        "teacher": [],
        "policy": [],
        "8×2+open-loop-3": ["encode", "predict"],
        "8×2+two-tower-3": ["encode", "predict", "correct"],
        "two-tower-3": ["encode", "predict", "correct"],
        "8×2+ladder-3": ["encode", "predict", "correct", "gate"],
        "value-only-3": ["encode", "predict", "gate"],
        "8×2+open-loop-4": ["encode", "predict"],
        "8×2+hold-last-4": ["encode", "predict"],
    }
    arms = named(*(name.replace("×", "x") for name in made_of))
    rows = measure(stage, arms, decisions=8)
    assert calls == [("encode", "whole"), ("predict", "within"), ("correct", "two_tower"), ("gate", LadderGate),
                     ("gate", ValueGate), ("predict", "beyond")]  # fmt: skip
    parts = {name: {r["part"]: r["mean_ms"] for r in rows if r["arm"] == name} for name in (arm.name for arm in arms)}
    assert {
        name: [p for p in ("encode", "predict", "correct", "gate") if p in parts[name]] for name in parts
    } == made_of
    predicted = [parts[name]["predict"] for name in ("8×2+open-loop-3", "8×2+open-loop-4", "8×2+hold-last-4")]
    assert predicted == [2.0, 6.0, 2.0]  # beyond the plan's end the prior is asked once more
    assert (parts["8×2+ladder-3"]["gate"], parts["value-only-3"]["gate"]) == (4.0, 5.0)


def test_a_solve_in_the_background_is_timed_by_itself_and_the_foreground_where_none_begins(stage, clock, monkeypatch):
    solved, real = [], MPPI.__call__

    def noted(planner, z, *rest):
        solved.append((len(z), planner.config.samples))
        return real(planner, z, *rest)

    def timed(functions, rounds, **_):
        del solved[:]
        for function in functions.values():
            function()
        assert rounds == 9 and list(functions) == [("solve", arm.planner) for arm in arms[1:]]
        return {name: np.arange(1.0, 10.0) for name in functions}

    monkeypatch.setattr(MPPI, "__call__", noted)
    monkeypatch.setattr(latency, "timed", timed)
    monkeypatch.setattr(latency, "TAIL", 60)
    arms = named("policy", "8x2+async+two-tower-d2", "4x2+late-d2")
    found = {(r["arm"], r["part"]): r for r in measure(stage, arms, decisions=9)}
    asynchronous, late = arms[1].name, arms[2].name
    assert solved == [(1, 8), (1, 4)]
    assert {part for arm, part in found if arm == asynchronous} == {"step", "plan", "between", "env", "solve"}
    assert {part for arm, part in found if arm == late} == {"step", "plan", "env", "solve"}  # one begins at every step
    between, solve = found[asynchronous, "between"], found[asynchronous, "solve"]
    assert (between["steps"], between["share"]) == (4, pytest.approx(4 / 9)) and between["max_ms"] == pytest.approx(1)
    assert math.isnan(between["p99_ms"]) and solve["p99_ms"] == pytest.approx(np.quantile(np.arange(1.0, 10.0), 0.99))
    assert (solve["steps"], solve["max_ms"], solve["p50_ms"], solve["share"]) == (9, 9, 5, pytest.approx(5 / 9))
    assert found[late, "solve"]["share"] == 1 and math.isnan(solve["mean_error_ms"])
    assert found["policy", "step"]["max_ms"] == pytest.approx(1)


def test_times_may_be_kept_in_a_file_of_their_own(stage, monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "measure", functools.wraps(measure)(lambda *given: [{"part": "step", "batch": 1}]))
    step_times(stage, BUDGET, {}, {1: (["policy"], 4)}, file=tmp_path / "own.csv")
    assert (tmp_path / "own.csv").is_file() and not (paths.results("smoke") / "latency").exists()


@pytest.mark.parametrize("corrector", [TwoTowerCorrector, TemporalCorrector])
@pytest.mark.parametrize("scheme", ["", "value-checked-4"])
def test_a_part_by_itself_computes_what_the_step_does(stage, env, corrector, scheme):
    wm, arch = stage.wm, corrector.arch
    torch.manual_seed(0)
    network = corrector(wm.latent_dim, wm.action_dim).eval()
    torch.nn.init.normal_(network.update_head.weight)
    (arm,) = named(f"8x2+{scheme or arch.replace('_', '-') + '-4'}", threshold=100.0)
    arm = dataclasses.replace(arm, corrector=arch)
    controller = latency.make_controller(arm, wm, {arch: network})
    playing = latency._Playing(arm, controller, [env("tiny", s) for s in (1, 2)], [1, 2])
    playing.start()
    for _ in range(2):  # one with a plan, one without
        playing.step(torch.device("cpu"), counts=True)
    assert playing.planned == [True, False]
    now = playing.controller.propose(playing.obs)
    parts = {part: function() for (part, _), function in alone(playing).items()}

    z_pred, depth = wm.next(now.z_pred, now.action), torch.tensor([1, 1])
    torch.testing.assert_close(parts["encode"][0], now.z)
    expected = (z_pred, now.a_policy, total_variation(now.z, z_pred, 8), wm.policy(z_pred)[0])
    torch.testing.assert_close(parts["predict"], expected)
    history = None
    if network.history_len:
        history = token(now.z, now.z_pred, now.a_plan, depth).unsqueeze(1)  # with nothing before it
        history = torch.nn.functional.pad(history, (0, 0, network.history_len - 1, 0))
    corrected = network(now.z, now.z_pred, now.a_plan, now.a_policy, depth, history)
    torch.testing.assert_close(parts["correct"][0], corrected)
    assert (corrected - now.a_plan).abs().max() > 0.01
    if arm.gate:
        look = Look(now.z, now.z_pred, now.mismatch, now.a_plan, now.a_policy, now.action)
        torch.testing.assert_close(parts["gate"], playing.controller.gate(wm, look))


def test_planners_that_are_too_small_to_wait_for_are_compiled_where_asked(stage, monkeypatch):
    seen = []

    @functools.wraps(measure)  # keys are of the code that it stands for
    def noted(stage, arms, count, batch):
        seen.extend(arms)
        return [{"part": "step"}]

    monkeypatch.setattr(latency, "measure", noted)
    monkeypatch.setattr(latency, "resolve_mode", lambda mode, device: "compiled" if mode == "auto" else mode)
    names, ladder = ["policy", "budget-16x1", "16x1+ladder-3"], {"threshold": 0.4, "levels": (0.0, 0.0)}
    for compile_all in (False, True):
        standard = dataclasses.replace(BUDGET, mode="auto")  # in whose mode the others are
        step_times(stage, standard, {"16×1+ladder-3": ladder}, {1: (names, 4)}, compile_all)
    modes = [(arm.planner and arm.planner.mode, arm.refiner and arm.refiner.mode) for arm in seen]
    assert modes[:3] == [(None, None), ("auto", None), ("auto", "auto")]  # which is eager for so small ones
    assert modes[3:] == [(None, None), ("compiled", None), ("compiled", "compiled")]


def test_times_are_kept_until_arms_or_work_change(stage, monkeypatch):
    measured = []

    @functools.wraps(measure)
    def noted(stage, arms, count, batch):
        measured.append(([arm.name for arm in arms], count, batch))
        return [{"arm": arm.name, "part": "step", "batch": batch, "mean_ms": 1.0} for arm in arms]

    monkeypatch.setattr(latency, "measure", noted)
    both = ["teacher", "policy"]
    work = {1: (both, 4), 10: (["policy"], 2)}
    first = step_times(stage, BUDGET, {}, work)
    assert first["batch"].tolist() == [1, 1, 10]
    assert measured == [(both, 4, 1), (["policy"], 2, 10)]
    assert (paths.results("smoke") / "latency" / f"{CELL}.csv").is_file()
    longer = dataclasses.replace(stage, decisions=99)  # episodes; no step takes another time for it
    for same in (stage, longer):
        assert step_times(same, BUDGET, {}, work).equals(first) and len(measured) == 2
    small, eager, one = PlannerConfig.budget(4, 1), PlannerConfig.budget(4, 1, mode="eager"), {1: (["teacher"], 5)}
    step_times(stage, BUDGET, {}, {1: (both, 4), 10: (["teacher"], 2)})
    for planner, work in ((BUDGET, {1: (both, 5)}), (BUDGET, one), (small, one), (eager, one)):
        step_times(stage, planner, {}, work)
    assert len(measured) == 8
