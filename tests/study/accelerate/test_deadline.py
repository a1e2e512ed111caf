"""Under a deadline: who is late by how much, what plans in the background, and how its steps are timed and saved."""

import dataclasses
import functools
import time

import numpy as np
import pytest

from lib.bundle import load_controller, save_controller
from lib.config import ConfigError, PlannerConfig
from lib.planner import MPPI
from lib.realtime import BackgroundController, RealTimeController
from lib.records import paths
from lib.study.accelerate import deadline, playing, search
from lib.study.accelerate.deadline import admissible, check_rate, find_delays, in_background, within
from lib.study.accelerate.plan import Clock, Costs, measured
from lib.study.arms import LONGEST_DELAY
from tests.study.accelerate.made import TASK, teacher

COSTS = Costs(fixed=0.0, evaluation=2.1e-4, step=1e-3, update=0.6, compile=0.0, decisions=20)
MS = {"policy": 0.5, "teacher": 35.0, "budget-64×2": 25.0, "budget-16×1": 4.0}  # a decision has 10


@pytest.fixture
def search_of(tmp_path, monkeypatch):
    """A search of a teacher that has learnt nothing, whose steps take what `MS` says, at 100 decisions per second."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(search, "measured", functools.wraps(measured)(lambda *given: COSTS))
    weights = str(teacher(tmp_path / "weights.safetensors", updates=0))

    def made(rate=100.0, ms=MS):
        monkeypatch.setattr(playing.Playing, "times", lambda self, arm, seconds, period: 50 * [ms.get(arm.name, 0.2)])
        found = search.Search(weights, TASK, rate, 0.98, 9, planner=PlannerConfig.budget(128, 2))
        found.prepare()
        return found

    return made


def test_a_planner_that_does_not_fit_into_a_period_plans_in_the_background(search_of):
    found = search_of()
    check_rate(found)
    find_delays(found)
    assert found.delays == {"teacher": 4, "budget-64×2": 3}  # 35 and 25 ms in decisions of 10
    assert found.candidates["reuse"] == in_background(found) == ("async-d4", "64×2+async-d3")
    found.right_sized = "budget-64×2"
    found.stage.corrector_files = {"cloned": "draft"}
    assert in_background(found) == ("64×2+async-d3",)
    found.stage.corrector_files |= {"two_tower": "corrector"}
    assert in_background(found) == ("64×2+async+two-tower-d3",)
    assert found.candidates["planners"] == ("budget-64×2", "budget-16×1")
    kept = {"planners": ("budget-16×1",), "reuse": ("64×2+async+two-tower-d3",), "drafts": ()}
    assert within(found, found.candidates) == kept | {"clone": ("cloned", "policy")}
    assert found.left_out == [
        "64×2+gated-6 and 64×2+two-tower-6: their plans take longer than the 10 ms of a decision",
        "budget-64×2: 1 % of its steps take longer than 25 ms, and a decision has 10",
        "64×2+clone+gated-3-r30: its plans take longer than the 10 ms of a decision",
    ]


def test_one_that_fits_makes_no_plans_in_the_background(search_of):
    for found in (search_of(rate=20.0), search_of(rate=0.0)):
        find_delays(found)
        assert found.delays == {} and found.candidates["reuse"] == ("gated-6", "two-tower-6")


def test_what_is_too_late_for_any_arm_is_named(search_of):
    found = search_of(ms=MS | {"teacher": 121.0, "budget-64×2": 120.0})
    find_delays(found)
    assert in_background(found) == ("64×2+async-d12",)
    said = "teacher in the background: its plans take 121 ms, which is 13 decisions, and 12 are the most"
    assert found.left_out == [said]


def test_what_there_is_no_time_to_time_is_named(search_of):
    found = search_of()
    found.clock = Clock(0.6)  # the report takes 30 of these seconds
    found.stage.costs = dataclasses.replace(COSTS, evaluation=3e-4)
    find_delays(found)
    assert set(found.times) == {"budget-16×1", "budget-64×2"} and found.delays["teacher"] > LONGEST_DELAY
    assert found.left_out == ["teacher in the background: its steps cannot be timed within the minutes"]
    assert not admissible(found, "gated-6") and found.left_out[-1] == "gated-6: " + deadline.UNTIMED


def test_plans_that_come_later_than_measured_leave_an_arm_out(search_of):
    found = search_of()
    found.stage.late = {"64×2+async-d3": 0.25, "async-d4": 0.05}
    assert admissible(found, "async-d4") and not admissible(found, "64×2+async-d3")
    assert found.left_out == ["64×2+async-d3: 25 % of its plans came later than was measured before"]


def test_times_that_refuse_a_rate_are_not_kept(search_of):
    with pytest.raises(ConfigError, match="needs 3e.03 ms here; ask for at most 0.33 decisions per second."):
        check_rate(search_of(ms={"policy": 3_000.0}))
    check_rate(search_of())


def test_times_are_kept_with_the_plan(search_of):
    find_delays(search_of())
    again = search_of(ms={})
    find_delays(again)
    assert again.delays == {"teacher": 4, "budget-64×2": 3}


def test_steps_of_what_plans_in_the_background_are_timed_without_its_solves(search_of, monkeypatch):
    times, solve, slow = playing.Playing.times, MPPI.__call__, 0.03
    found = search_of()

    def slowly(self, *given):
        time.sleep(slow)
        return solve(self, *given)

    monkeypatch.setattr(MPPI, "__call__", slowly)
    arm, begun = found.arm("16×1+async-d1"), time.monotonic()
    ms = times(found.stage, arm, 0.1, 0.004)
    assert time.monotonic() - begun > 0.004 * (len(ms) + playing.WARM_UP)  # decisions come when they are due
    assert len(ms) >= playing.LEAST_STEPS and min(ms) < 1e3 * slow / 2
    assert found.stage.late[arm.name] > deadline.LATE  # after one decision of 4 ms no plan of 30 is there


def test_what_is_saved_never_waits_for_a_plan(search_of, tmp_path):
    found = search_of()
    made = found.controller("16×1+async-d3")
    assert type(made) is BackgroundController and (made.period, made.expected) == (0.01, 3)
    save_controller(made, tmp_path / "c")
    with load_controller(tmp_path / "c", mode="eager") as loaded:
        assert type(loaded) is BackgroundController and (loaded.period, loaded.expected) == (0.01, 3)
        loaded.reset()
        action, info = loaded.act(np.zeros(2, np.float32))
        assert action.shape == (1,) and info["planner_called"] and info["queue"] == 1
    assert type(found.stage.controller(found.arm("16×1+async-d3"))) is RealTimeController  # for the test
