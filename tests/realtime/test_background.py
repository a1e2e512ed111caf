"""The thread that plans: it does what the simulation does, and no planner, however bad, is waited for."""

import dataclasses
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch

from lib.config import ConfigError
from lib.gates import DriftGate, ValueGate
from lib.planner import MPPI
from lib.protocols import Controller
from lib.realtime import BackgroundController, RealTimeController, background
from lib.records.paths import ROOT
from tests.realtime.test_delayed import random_temporal
from tests.test_drafts import random_draft
from tests.test_speculation import observations, random_corrector
from tests.tiny import BUDGET, OBS, streams, tiny_model


class Released(MPPI):
    """Plans when it is let: `permits` of solves. Notes the plans that it made, but for the two that warm it up."""

    def __init__(self, wm, config):
        super().__init__(wm, config)
        self.permits, self.plans = threading.Semaphore(2), []

    def __call__(self, *inputs):
        self.permits.acquire()
        self.plans.append(super().__call__(*inputs))
        return self.plans[-1]


class Failing(MPPI):
    """Raises from its third solve on; the first two are those that warm it up."""

    calls = 0

    def __call__(self, *inputs):
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("the planner's fuse has blown\nand more")
        return super().__call__(*inputs)


@pytest.fixture
def made():
    """Makes controllers that are closed behind the test, and no thread is left."""
    controllers = []

    def make(planner, *parts, **settings):
        controllers.append(BackgroundController(planner, *parts, **settings))
        return controllers[-1]

    yield make
    for controller in controllers:
        if isinstance(controller.planner, Released):
            controller.planner.permits.release(100)
        controller.close()
    assert not threads()


def threads():
    return [t for t in threading.enumerate() if "planner" in t.name]


def arrive(controller):
    """Let the solve that is on its way end."""
    controller.planner.permits.release()
    assert controller._solve.done.wait(10)


def play(controller, obs, takes):
    """Actions (T, B, A) and records (T, B), where solve after solve ends within as many decisions as `takes` says."""
    controller.reset(obs.shape[1], streams(*range(obs.shape[1])))
    takes, actions, infos = iter(takes), [], []
    due = None
    for t, o in enumerate(obs):
        if t == due:
            arrive(controller)
        action, info = controller.act(o)
        due = t + next(takes) if info["planner_called"].all() else due
        actions.append(action)
        infos.append(info)
    return torch.stack(actions), {name: torch.stack([info[name] for info in infos]) for name in infos[0]}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("delay", [1, 2, 5])
@pytest.mark.parametrize("corrector, threshold, draft", [
    (None, None, None), (random_corrector(), 0.45, None), (random_temporal(), 0.45, random_draft()),
], ids=["plan", "corrected", "draft"])  # fmt: skip
def test_it_acts_as_the_simulated_delay_bit_for_bit(made, corrector, threshold, draft, delay, early):
    """Also where a plan is there before the decision that it was made for."""
    wm, obs, gate = tiny_model(num_q=4), observations(14, 3), threshold and DriftGate(threshold)
    simulated = RealTimeController(MPPI(wm, BUDGET), corrector, gate, delay, draft)
    simulated.reset(3, streams(0, 1, 2))
    wanted = [simulated.act(o) for o in obs]
    controller = made(Released(wm, BUDGET), corrector, gate, fallback=draft, expected=delay)
    actions, info = play(controller, obs, itertools.repeat(1 if early else delay))
    assert torch.equal(actions, torch.stack([action for action, _ in wanted]))
    for name in wanted[0][1]:
        record = torch.stack([records[name] for _, records in wanted])
        assert torch.equal(info[name].float().nan_to_num(-1), record.float().nan_to_num(-1)), name
    arrived = [t > 0 and t % delay == 0 for t in range(14)]
    assert [t.tolist() for t in info["late"]] == [[0 if a else -1] * 3 for a in arrived]
    assert info["deadline_met"].all() and (info["queue"] == 1).all() and not info["failed"].any()
    assert info["dropped"].any() == (threshold is not None)
    assert threshold is None or torch.equal(info["dropped"], (info["late"] == 0) & (info["score"] > threshold))


def test_a_plan_that_is_late_goes_on_with_the_action_that_is_due(made):
    """The first solve is expected within one decision and takes three, and so the second is expected within three."""
    controller, obs = made(Released(tiny_model(), BUDGET)), observations(8, 2)
    actions, info = play(controller, obs, [3, 1, 3])
    first, second = controller.planner.plans[2:4]
    assert info["late"][:, 0].tolist() == [-1, -1, -1, 2, -1, -1, 0, -1]
    assert info["plan_age"][3:, 0].tolist() == [3, 4, 5, 3, 4]
    assert torch.equal(actions[3], first.actions[:, 2]) and torch.equal(actions[6], second.actions[:, 0])
    z = controller.wm.encode(obs[3])
    tv = (z - first.latents[:, 2]).abs().sum(-1) / 4  # of two simplices
    torch.testing.assert_close(info["mismatch"][3], tv)
    assert not info["dropped"].any() and info["planner_called"][:, 0].nonzero().flatten().tolist() == [0, 3, 6]


def test_a_plan_that_arrives_behind_its_end_is_dropped(made):
    controller, obs = made(Released(tiny_model(), BUDGET)), observations(7, 1)
    actions, info = play(controller, obs, [4, 9])  # expected at 1, with actions for 1, 2 and 3
    assert info["late"].flatten().tolist() == [-1] * 4 + [3, -1, -1]
    assert info["dropped"].flatten().tolist() == [False] * 4 + [True, False, False]
    assert info["plan_age"].isnan().all() and info["fallback"].all()
    wm = controller.wm
    torch.testing.assert_close(actions, wm.policy(wm.encode(obs))[0])


def test_a_plan_for_somewhere_else_is_dropped_by_the_gate(made):
    controller, obs = made(Released(tiny_model(), BUDGET), None, DriftGate(-1.0), expected=2), observations(5, 1)
    actions, info = play(controller, obs, [2, 2, 2])
    assert info["dropped"].flatten().tolist() == [False, False, True, False, True] and info["fallback"].all()
    wm = controller.wm
    torch.testing.assert_close(actions, wm.policy(wm.encode(obs))[0])


@pytest.mark.parametrize("draft", [None, random_draft()], ids=["prior", "draft"])
def test_a_planner_that_raises_is_told_of_once_and_control_goes_on(made, capfd, draft):
    controller, obs = made(Failing(tiny_model(), BUDGET), random_corrector(), fallback=draft), observations(6, 1)
    never = RealTimeController(MPPI(tiny_model(), BUDGET), random_corrector(), None, 1000, draft)
    for _ in range(2):  # the next episode tries again
        controller.reset()
        never.reset()
        failed, called = [], []
        for o in obs:
            action, info = controller.act(o)
            torch.testing.assert_close(action, never.act(o)[0])
            failed, called = failed + info["failed"].tolist(), called + info["planner_called"].tolist()
            assert controller._handed.done.wait(10)
        assert failed == [False, True, False, False, False, False] and called == [True] + [False] * 5
        assert str(controller.error) == "the planner's fuse has blown\nand more"
        line = "the planner failed, control goes on without: RuntimeError: the planner's fuse has blown\n"
        assert capfd.readouterr().err == line


def test_a_planner_that_cannot_even_warm_up_is_told_of_at_the_first_decision(made, capfd):
    planner = Failing(tiny_model(), BUDGET)
    planner.calls = 2
    controller = made(planner)
    controller.reset()
    assert capfd.readouterr().err == ""
    assert controller.act(observations(1, 1)[0])[1]["failed"].all()
    assert "the planner's fuse has blown" in capfd.readouterr().err


class Unsound(MPPI):
    spoil = staticmethod(lambda actions: actions * torch.nan)

    def __call__(self, *inputs):
        plan = super().__call__(*inputs)
        return dataclasses.replace(plan, actions=self.spoil(plan.actions))


class Short(Unsound):
    spoil = staticmethod(lambda actions: actions[:, 1:])


@pytest.mark.parametrize("kind", [Unsound, Short])
def test_a_plan_that_is_none_is_a_failure_of_the_planner(made, capfd, kind):
    controller = made(kind(tiny_model(), BUDGET))
    controller.reset()
    assert torch.isfinite(controller.act(observations(1, 1)[0])[0]).all()
    assert "ValueError: the planner gave actions of another shape, or that are not finite." in capfd.readouterr().err


def test_a_planner_that_hangs_is_not_waited_for(made, monkeypatch, capfd):
    monkeypatch.setattr(background, "ENDING", 0.05)
    wm, obs = tiny_model(), observations(40, 1)
    controller = made(Released(wm, BUDGET), period=5.0)
    controller.reset()
    for o in obs:
        action, info = controller.act(o)
        torch.testing.assert_close(action, wm.policy(wm.encode(o))[0])
        assert info["deadline_met"].all() and info["queue"].all() and 0 < info["step_s"] < 5
    controller.reset()  # the next episode has no plan either
    assert not controller.act(obs[0])[1]["planner_called"].any()
    controller.close()
    assert "a planner that hangs could not be stopped; its thread ends with the process." in capfd.readouterr().err
    with pytest.raises(
        RuntimeError, match="the planner still hangs in a solve of before `close`; make another planner"
    ):
        controller.reset()  # it might wake in the midst of another's solve
    controller.planner.permits.release()
    threads()[0].join(10)
    controller.planner.permits.release(100)
    controller.reset()
    controller.act(obs[0])


def test_a_planner_that_hangs_at_once_leaves_the_first_reset_after_a_while(made, monkeypatch):
    monkeypatch.setattr(background, "COMPILING", 0.05)
    planner = Released(tiny_model(), BUDGET)
    planner.permits = threading.Semaphore(0)
    controller, obs = made(planner), observations(3, 1)
    controller.reset()
    assert not controller.act(obs[0])[1]["planner_called"].any()
    planner.permits.release(3)  # what it then ends with, a plan for nowhere, is nobody's
    assert controller._handed.done.wait(10)
    info = controller.act(obs[1])[1]
    assert info["planner_called"].all() and info["plan_age"].isnan().all()


def test_a_deadline_that_is_missed_is_said_to_be(made):
    controller = made(MPPI(tiny_model(), BUDGET), period=1e-9)
    controller.reset()
    assert controller._expected() == 100  # and not as many as the solve took
    info = controller.act(observations(1, 1)[0])[1]
    assert not info["deadline_met"].any() and (info["step_s"] > 1e-9).all()


def test_what_is_on_its_way_belongs_to_its_episode(made):
    controller, obs = made(Released(tiny_model(), BUDGET)), observations(4, 2)
    controller.reset(2)
    controller.act(obs[0])
    controller.reset(2)
    assert not controller.act(obs[1])[1]["planner_called"].any()  # the thread is at the other one's still
    controller.planner.permits.release()
    assert controller._handed.done.wait(10)
    assert controller.act(obs[2])[1]["planner_called"].all()
    arrive(controller)
    info = controller.act(obs[3])[1]
    assert info["plan_age"].tolist() == [1, 1]


def test_rows_that_are_kept_get_their_own_plans(made):
    controller, obs = made(Released(tiny_model(), BUDGET), expected=2), observations(3, 4)
    controller.reset(4)
    controller.act(obs[0])
    controller.keep([1, 2, 3])
    controller.act(obs[1][1:])
    controller.keep([0, 2])
    arrive(controller)
    actions, _ = controller.act(obs[2][[1, 3]])
    assert torch.equal(actions, controller.planner.plans[-1].actions[[1, 3], 0])


def test_a_step_whose_observation_is_not_finite_is_as_if_it_had_not_been(made):
    controller, obs = made(Released(tiny_model(), BUDGET)), observations(3, 1)
    controller.reset()
    controller.act(obs[0])
    arrive(controller)
    with pytest.raises(ValueError, match=r"observations of rows \[0\] are not finite"):
        controller.act(torch.full((1, OBS), torch.inf))
    assert torch.equal(controller.act(obs[1])[0], controller.planner.plans[-1].actions[:, 0])


def test_who_acts_may_write_to_the_action(made):
    controller, obs = made(Released(tiny_model(), BUDGET)), observations(1, 1)
    controller.reset()
    action, _ = controller.act(obs[0])
    wm, z = controller.wm, controller.wm.encode(obs[0])
    expected = wm.next(z, wm.policy(z)[0])
    action.fill_(7.0)
    arrive(controller)
    torch.testing.assert_close(controller._solve.plan.latents[:, 0], expected)


# ------------------------------------------------------------------------------------------------ nothing is left


class Endless(MPPI):
    def __call__(self, *inputs):
        while True:
            super().__call__(*inputs)


def test_a_solve_without_an_end_is_interrupted(made, monkeypatch, capfd):
    monkeypatch.setattr(background, "ENDING", 0.05)
    monkeypatch.setattr(background, "COMPILING", 0.05)
    controller = made(Endless(tiny_model(), BUDGET))
    controller.reset()
    assert torch.isfinite(controller.act(observations(1, 1)[0])[0]).all()
    controller.close()
    assert not threads() and capfd.readouterr().err == ""


def test_closed_twice_and_begun_again():
    obs = observations(1, 1)[0]
    with BackgroundController(MPPI(tiny_model(), BUDGET)) as controller:
        assert isinstance(controller, Controller) and not threads()
        controller.reset()
        controller.act(obs)
        assert len(threads()) == 1
        controller.reset()
        assert len(threads()) == 1
        controller.close()
        assert not threads()
        with pytest.raises(ValueError, match=r"call reset\(batch_size=1\) first"):
            controller.act(obs)
        controller.reset()
        action, info = controller.act(obs[0].numpy())
        assert action.shape == (2,) and {value.shape for value in info.values()} == {torch.Size([])}
    assert not threads()


def test_a_controller_that_nobody_has_any_more_leaves_no_thread():
    controller = BackgroundController(MPPI(tiny_model(), BUDGET))
    controller.reset()
    controller.act(observations(1, 1)[0])
    (thread,) = threads()
    del controller
    gc.collect()
    thread.join(10)
    assert not threads()


ENDS = """
import os, signal, sys, threading, time
import torch
from lib.realtime import BackgroundController, background
from tests.realtime.test_background import Endless, Released
from tests.tiny import BUDGET, OBS, tiny_model
background.ENDING, background.COMPILING = 0.2, 1.0
planner = {planner}(tiny_model(), BUDGET)
planner.permits = threading.Semaphore({permits})
controller = BackgroundController(planner)
controller.reset()
for _ in range(20):
    controller.act(torch.zeros(1, OBS))
{then}
print("end", flush=True)
"""
INTERRUPTED = "while True:\n    os.kill(os.getpid(), signal.SIGINT)\n    controller.act(torch.zeros(1, OBS))"


@pytest.mark.parametrize("planner, then, permits, code, said", [
    ("Released", "", 10**6, 0, ""),  # a solve is on its way
    ("Released", "", 2, 0, "a planner that hangs could not be stopped"),
    ("Endless", "", 0, 0, ""),
    ("Released", "raise SystemExit(3)", 10**6, 3, ""),
    ("Released", INTERRUPTED, 10**6, -2, "KeyboardInterrupt"),
], ids=["ends", "hangs", "without an end", "exits", "interrupted"])  # fmt: skip
def test_the_interpreter_ends_whatever_the_thread_does(planner, then, permits, code, said):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ENDS.format(planner=planner, then=then, permits=permits)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background does not hear
    options = dict(env=environment, preexec_fn=heard, capture_output=True, text=True, timeout=60)
    done = subprocess.run(command, cwd=ROOT, **options)
    assert done.returncode == code, done.stderr
    assert done.stderr == "" if not said else said in done.stderr
    assert "terminate" not in done.stderr and "Fatal" not in done.stderr


def test_what_does_not_fit_is_refused():
    planner = MPPI(tiny_model(), BUDGET)
    for period in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="must be the seconds of a decision, above 0"):
            BackgroundController(planner, period=period)
    with pytest.raises(ConfigError, match="expected=0 would be no delay at all"):
        BackgroundController(planner, expected=0)
    with pytest.raises(ConfigError, match="delay=1.5 must be a whole number of decisions"):
        BackgroundController(planner, expected=1.5)
    with pytest.raises(ConfigError, match="a plan is dropped by its drift"):
        BackgroundController(planner, gate=ValueGate())


class Slow(MPPI):
    def __call__(self, *inputs):
        time.sleep(0.05)
        return super().__call__(*inputs)


def test_a_period_tells_how_long_the_first_solve_will_take(made):
    controller = made(Slow(tiny_model(), BUDGET), period=0.02)
    controller.reset()
    assert controller._expected() >= 3
