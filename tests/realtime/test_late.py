"""The naive rivals: against a slow twin, and rule by rule."""

import math

import pytest
import torch

from lib.config import ConfigError
from lib.drafts import Draft
from lib.planner import MPPI
from lib.protocols import Controller
from lib.realtime import LateController
from lib.speculation import SpeculativeController
from tests.realtime.test_delayed import DELAYS, jitter
from tests.realtime.twins import LateTwin
from tests.test_drafts import random_draft
from tests.test_speculation import NotingPlanner, observations, play
from tests.tiny import ACTIONS, BUDGET, LATENT, OBS, tiny_model


@pytest.mark.parametrize("hold", [False, True])
def test_the_batch_does_what_slow_twins_do(hold):
    wm, obs, queue, order = tiny_model(num_q=4), observations(14, len(DELAYS)), [iter(row) for row in DELAYS], {}

    def delay(generator):
        return next(queue[order.setdefault(id(generator), len(order))])

    actions, info = play(LateController(MPPI(wm, BUDGET), delay, hold), obs)
    for row, own in enumerate(DELAYS):
        twin = LateTwin(MPPI(wm, BUDGET), own, hold, seed=row)
        steps = [twin.act(o) for o in obs[:, row]]
        torch.testing.assert_close(actions[:, row], torch.stack([s[0] for s in steps]), rtol=0, atol=1e-4)
        assert info["planner_called"][:, row].tolist() == [s[1] for s in steps]
        assert info["fallback"][:, row].tolist() == [s[2] is None for s in steps]
        assert info["depth"][:, row].tolist() == [s[2] or 0 for s in steps]
        ages = torch.tensor([math.nan if s[2] is None else float(s[2]) for s in steps])
        assert torch.equal(info["plan_age"][:, row].nan_to_num(-1), ages.nan_to_num(-1))
    assert info["mismatch"].isnan().all() and not info["delta_abs"].any() and not info["refined"].any()


@pytest.mark.parametrize("hold", [False, True])
def test_no_delay_is_the_planner_at_every_step_bit_for_bit(hold):
    wm, obs = tiny_model(num_q=4), observations(7, 3)
    actions, info = play(LateController(MPPI(wm, BUDGET), 0, hold), obs)
    assert torch.equal(actions, play(SpeculativeController(MPPI(wm, BUDGET), execution_horizon=1), obs)[0])
    assert info["planner_called"].all() and not info["depth"].any()


def test_an_action_is_the_first_of_a_plan_for_the_state_of_then():
    planner, obs = NotingPlanner(tiny_model(), BUDGET), observations(6, 1)
    actions, info = play(LateController(planner, 2), obs)
    z = planner.wm.encode(obs)
    for t in range(6):
        torch.testing.assert_close(planner.calls[t][0], z[t])
        wanted = planner.calls[t - 2][2] if t >= 2 else None
        torch.testing.assert_close(actions[t], wanted.actions[:, 0] if wanted else planner.wm.policy(z[t])[0])
        assert torch.equal(planner.calls[t][1], wanted.shifted(2) if wanted else torch.zeros_like(planner.calls[0][1]))
    assert info["depth"].flatten().tolist() == [0, 0, 2, 2, 2, 2] and planner.solves == 6


def test_the_last_action_is_held_while_the_next_solve_runs():
    planner, obs = NotingPlanner(tiny_model(), BUDGET), observations(7, 1)
    actions, info = play(LateController(planner, 2, hold=True), obs)
    z = planner.wm.encode(obs)
    torch.testing.assert_close(torch.stack([call[0] for call in planner.calls]), z[::2])
    for t in range(2, 7):
        assert torch.equal(actions[t], planner.calls[t // 2 - 1][2].actions[:, 0])
    assert info["depth"].flatten().tolist() == [0, 0, 2, 3, 2, 3, 2]


def test_what_arrives_late_does_not_replace_what_is_newer():
    """The first solve takes five decisions, those after it one."""
    planner, obs = NotingPlanner(tiny_model(), BUDGET), observations(7, 1)
    actions, info = play(LateController(planner, (5, 1, 1, 1, 1, 1, 1)), obs)
    assert info["plan_age"].flatten().nan_to_num(-1).tolist() == [-1, -1, 1, 1, 1, 1, 1]
    assert torch.equal(actions[5], planner.calls[4][2].actions[:, 0])


def test_rows_are_as_when_they_play_alone_and_go_on_when_others_end():
    wm, obs = tiny_model(num_q=4), observations(12, 3)
    for hold in (False, True):
        actions, info = play(LateController(MPPI(wm, BUDGET), jitter(), hold, random_draft()), obs)
        for row in range(3):
            controller = LateController(MPPI(wm, BUDGET), jitter(), hold, random_draft())
            alone, records = play(controller, obs[:, row : row + 1], [row])
            torch.testing.assert_close(actions[:, row], alone[:, 0], rtol=0, atol=1e-4)
            assert torch.equal(info["depth"][:, row], records["depth"][:, 0])
        part = LateController(MPPI(wm, BUDGET), jitter(), hold, random_draft())
        play(part, obs[:5])
        part.keep([0, 2])
        later = torch.stack([part.act(o[[0, 2]])[0] for o in obs[5:]])
        torch.testing.assert_close(later, actions[5:, [0, 2]], rtol=0, atol=1e-4)


def test_who_acts_before_the_first_arrives():
    wm, obs, draft = tiny_model(), observations(3, 2), random_draft()
    actions, info = play(LateController(MPPI(wm, BUDGET), 100, True, draft), obs)
    for t, o in enumerate(obs):
        z = wm.encode(o)
        torch.testing.assert_close(actions[t], draft(z, wm.policy(z)[0])[0])
    assert info["fallback"].all() and info["plan_age"].isnan().all()


def test_what_does_not_fit_is_refused():
    planner = MPPI(tiny_model(), BUDGET)
    assert isinstance(LateController(planner), Controller)
    with pytest.raises(ConfigError, match="delay=-1 must be a whole number"):
        LateController(planner, -1)
    with pytest.raises(ConfigError, match="the draft was made for latent 8"):
        LateController(planner, fallback=Draft(8, ACTIONS))
    controller = LateController(planner)
    controller.reset(2)
    with pytest.raises(ValueError, match=r"observations of rows \[0\] are not finite"):
        controller.act(torch.stack([torch.full((OBS,), torch.inf), torch.zeros(OBS)]))
    broken = random_draft()
    broken.head.bias.fill_(torch.nan)
    controller = LateController(planner, 1, fallback=broken)
    controller.reset(1)
    with pytest.raises(ValueError, match="an action is not finite"):
        controller.act(torch.zeros(1, OBS))
    assert broken.latent_dim == LATENT
