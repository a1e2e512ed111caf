"""The demonstration: it is stepped by the clock, and says what came of it."""

import dataclasses
import json
import threading
import time

import gymnasium
import numpy as np
import pytest
import torch

from lib.config import ConfigError
from lib.realtime import BackgroundController
from lib.records import paths
from lib.records.store import read_table
from lib.study import foreground, realtime_demo
from lib.study.profiles import PROFILES, RealTimeRun
from lib.study.realtime_demo import SlowedPlanner, against_the_clock, listed, main, own_period
from paper import realtime
from tests.test_speculation import random_corrector
from tests.tiny import ACTIONS, BUDGET, OBS, streams, tiny_model


class SlowEnv(gymnasium.Env):
    """Takes `seconds` for its third step, and ends after five."""

    decisions, seconds = 5, 0.1

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(OBS, np.float32), {}

    def step(self, action):
        assert action.shape == (ACTIONS,)
        self.steps += 1
        time.sleep(self.seconds if self.steps == 3 else 0)
        return np.full(OBS, 0.1, np.float32), 1.0, False, self.steps == self.decisions, {}


class Bar:
    def update(self):
        pass


def test_decisions_are_due_when_the_clock_says():
    """Two episodes, the second cut off; what the simulator takes is the loop's lateness, and no step's."""
    with BackgroundController(SlowedPlanner(tiny_model(), BUDGET), period=0.03) as controller:
        started = time.perf_counter()
        rows = list(against_the_clock(controller, SlowEnv(), [1, 2], 9, 0.03, Bar()))
        assert time.perf_counter() - started > 2 * 0.1 + 6 * 0.03
    assert [(row["episode"], row["decision"]) for row in rows] == [(0, t) for t in range(5)] + [
        (1, t) for t in range(4)
    ]
    assert [row["reward"] for row in rows] == [1.0] * 9
    for late in (3, 8):  # behind the slow step
        assert 0.06 < rows[late]["late_s"] <= rows[late]["ready_s"] and rows[late]["step_s"] < rows[late]["late_s"]
    assert rows[4]["late_s"] < rows[3]["late_s"]  # what follows has moved, and is not late for ever


def test_a_slower_computer_takes_so_many_times_as_long(monkeypatch):
    planner, slept = SlowedPlanner(tiny_model(), BUDGET), []
    monkeypatch.setattr(time, "sleep", slept.append)
    z = torch.full((1, 16), 1 / 8)
    planner(z, None, streams(0))
    planner.factor = 4.0
    planner(z, None, streams(0))
    assert slept[0] == 0 and slept[1] == pytest.approx(0.75 * planner.seconds[1]) and planner.seconds[1] > 0


def test_what_was_measured_is_there_before_anything_is_simulated(tmp_path, monkeypatch, capsys):
    """The simulated half takes as long again, and may never end."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(realtime_demo, "simulated", killed)
    out = tmp_path / "demo.json"
    words = ["--task", "cup-catch", "--planner", "8x2", "--rate", "100", "--seconds", "0.5", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    told = json.loads(out.read_text())
    assert told["decisions"] == 50 and "returns_simulated" not in told and "missed deadlines" in capsys.readouterr().out


def test_runs_of_a_profile_are_rows_of_a_table(tmp_path, monkeypatch):
    runs = [RealTimeRun("cup-catch-1m-1", "8x2", 100, 0.3), RealTimeRun("cup-catch-1m-1", "8x2", 50, 0.2, slower=3)]
    profile = dataclasses.replace(PROFILES["smoke"], realtime=tuple(runs))
    monkeypatch.setattr(realtime, "PROFILES", {"smoke": profile})
    monkeypatch.setattr(realtime, "ALONE", 50)
    monkeypatch.setattr(foreground, "resolve_mode", lambda *_: "eager")
    real = paths.results  # of the paper's, where the correctors are
    monkeypatch.setattr(paths, "results", lambda name: tmp_path / name if name == "smoke" else real(name))
    realtime.main(["--profile", "smoke"])
    table = read_table(tmp_path / "smoke" / "realtime" / "summary.csv")
    assert list(table["decisions"]) == list(table["compared"]) == [30, 10] and list(table["slower"]) == [1, 3]
    (step,) = read_table(tmp_path / "smoke" / "realtime" / "step.csv").to_dict("records")
    assert step["steps"] == 50 and 0 < step["floor_ms"] < step["p50_ms"] <= step["p99_ms"] <= step["max_ms"]
    assert (table["step_p50_ms"] <= table["step_p999_ms"]).all() and (table["missed"] <= table["decisions"]).all()


def test_the_products_of_a_step_are_those_that_it_makes(monkeypatch):
    """Counted as torch runs them, in a step with one plan behind it."""
    wm, corrector, seen = tiny_model(), random_corrector(), []
    with BackgroundController(foreground.Stopped(wm, BUDGET), corrector) as controller:
        controller.reset()
        obs = torch.zeros(1, OBS)
        while controller.act(obs)[1]["late"] < 0:
            time.sleep(1e-3)
        controller.planner.stopped = True
        for _ in range(BUDGET.horizon + 1):  # to where the prior goes on inside the model
            controller.act(obs)
        real = torch.nn.functional.linear

        def noted(x, weight, bias=None):
            if threading.current_thread() is threading.main_thread():
                seen.append((weight.shape[1], weight.shape[0]))
            return real(x, weight, bias)

        monkeypatch.setattr(torch.nn.functional, "linear", noted)
        controller.act(obs)
        controller.planner.go.set()
    assert sorted(seen) == sorted((p.k, p.n) for p in foreground.step_products(wm, corrector))


def test_of_many_episodes_the_first_are_listed():
    assert listed([1.0, 2.25]) == "1.0  2.2" and listed(range(10)).endswith("7.0  and 2 more")


def test_the_period_of_a_task_is_the_physics_time_of_a_decision():
    assert own_period("walker-run") == pytest.approx(0.05) and own_period("cartpole-swingup") == pytest.approx(0.02)
    assert own_period("gym:HalfCheetah-v5") == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="gym:MountainCarContinuous-v0 does not tell how long its steps take; give"):
        own_period("gym:MountainCarContinuous-v0")


def test_a_short_run_tells_what_came_of_it(tmp_path, capsys):
    out = tmp_path / "new" / "demo.json"
    words = ["--task", "cup-catch", "--planner", "8x2", "--rate", "25", "--seconds", "2", "--slower", "2"]
    assert main([*words, "--out", str(out)]) == 0
    told, table = json.loads(out.read_text()), capsys.readouterr().out
    assert told["decisions"] == 50 and told["rate"] == 25 and told["slower"] == 2
    assert told["delay"] == np.ceil(told["age_at_arrival"]) and told["solves"] >= told["taken_up"] > 0
    assert len(told["returns"]) == len(told["returns_simulated"]) == 1 and told["episodes"][0][1] == 50
    assert 0 <= told["missed_in_act"] <= told["missed"] <= 50
    assert f"missed deadlines                  {told['missed']} of 50" in table
    assert table.index("in real time") < table.index(f"with a simulated delay of {told['delay']}")
    assert main(words) == 0 and sorted(path.name for path in tmp_path.rglob("*")) == ["demo.json", "new"]


@pytest.mark.parametrize("words, said", [
    (["--task", "walker-rnu"], "task='walker-rnu' is not known"),
    (["--rate", "-1"], "--rate -1 must lie in 0…10000."),
    (["--rate", "nan"], "--rate nan must lie in 0…10000."),
    (["--seconds", "0"], "--seconds 0 must lie in 0.1…86400."),
    (["--slower", "0.5"], "--slower 0.5 must lie in 1…10000."),
    (["--planner", "512"], "budget '512' is not known; write samples x iterations, as in 512x6."),
    (["--seed", "77"], "there is no teacher 'walker-run-1m-77'"),
    (["--seconds", "0.3", "--rate", "1"], "--seconds 0.3 is less than the 1 s of one decision."),
    (["--seconds", "0.3", "--task", "finger-spin", "--draft"], "--draft: finger-spin-1m-1 has no draft among the"),
    (["--out", "."], "--out . must be a JSON file, as in build/realtime.json."),
])  # fmt: skip
def test_what_cannot_be_played_is_one_sentence(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"realtime_demo: {said}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
