"""Thresholds against plans that are cut short one by one."""

import numpy as np
import pytest
import torch

from lib.config import ConfigError
from lib.correctors import TwoTowerCorrector
from lib.distil.thresholds import calibrate, calls_per_decision, judged, trust_by_depth
from lib.gates import DriftGate, LadderGate, ValueGate
from lib.world_model import total_variation
from tests.distil.sets import set_of
from tests.tiny import ACTIONS, LATENT, tiny_model

HORIZON = 4  # steps that a plan of the set is executed


def states(episodes=6, decisions=18, seed=0, sources=(0, 1)):
    """A distillation set of unrelated states: every plan is executed for `HORIZON` steps, or to the episode's end."""
    place = [(s, e, d) for s in sources for e in range(episodes) for d in range(decisions) if d % HORIZON]
    source, episode, decision = torch.tensor(place).unbind(1)
    where = {"source": source, "episode": episode + 100 * source, "decision": decision, "depth": decision % HORIZON}
    data = set_of(len(place), seed, **where)
    data.mismatch = total_variation(data.z_real.float(), data.z_pred.float())
    return data


def rate_by_hand(data, score, threshold):
    """Plan by plan: it ends at the first step above the threshold, at the horizon, or with the episode."""
    plans = {}
    for i in range(len(data)):
        key = data.source[i].item(), data.episode[i].item(), data.decision[i].item() // HORIZON
        plans.setdefault(key, {})[data.depth[i].item()] = score[i].item()
    calls = steps = 0
    for plan in plans.values():
        length = 1
        while length < HORIZON and length in plan and plan[length] <= threshold:
            length += 1
        calls, steps = calls + 1, steps + length
    return calls / steps


def test_calls_per_decision_is_what_cutting_plans_short_gives():
    data = states()
    score = torch.rand(len(data), generator=torch.Generator().manual_seed(3))
    for threshold in (-1.0, 0.0, 0.2, 0.5, 0.9, 1.0, torch.inf):
        by_hand = rate_by_hand(data, score, threshold)
        assert calls_per_decision(data, score, threshold, HORIZON) == pytest.approx(by_hand)
    assert calls_per_decision(data, score, -1.0, HORIZON) == 1.0


@pytest.mark.parametrize("wanted", [0.3, 0.5, 0.9])
def test_the_threshold_is_the_smallest_that_gives_the_wanted_rate(wanted):
    data, wm = states(), tiny_model()
    numbers = calibrate(DriftGate(), wm, data, None, HORIZON, call_rate=wanted)
    score, _ = judged(DriftGate(), wm, data, None)
    by_hand = [t for t in score.unique().tolist() if rate_by_hand(data, score, t) <= wanted]
    assert numbers["threshold"] == min(by_hand)
    assert numbers["call_rate"] == pytest.approx(rate_by_hand(data, score, min(by_hand)))
    assert numbers["call_rate"] <= wanted and numbers["states"] == len(data)


def test_the_threshold_for_an_error_accepts_as_many_states_as_it_may():
    data, wm = states(), tiny_model()
    score, error = judged(DriftGate(), wm, data, None)
    torch.testing.assert_close(error, (data.a_plan - data.a_teacher).square().mean(-1))
    data.a_teacher = torch.where((score > 0.75).unsqueeze(-1), data.a_teacher, data.a_plan + 0.1)
    score, error = judged(DriftGate(), wm, data, None)
    numbers = calibrate(DriftGate(), wm, data, None, HORIZON, action_error=0.05, quantile=0.8)
    by_hand = [t for t in score.unique().tolist() if np.quantile(error[score <= t].numpy(), 0.8) <= 0.05]
    assert numbers["threshold"] == max(by_hand) and numbers["action_error"] <= 0.05
    assert 0.74 <= numbers["threshold"] < score.max()


def test_scores_and_errors_are_those_of_the_gate_with_its_corrector():
    data, wm = states(), tiny_model(num_q=3)
    torch.manual_seed(0)
    corrector = TwoTowerCorrector(LATENT, ACTIONS)
    torch.nn.init.normal_(corrector.update_head.weight, std=0.3)
    corrector.eval().requires_grad_(False)
    score, error = judged(ValueGate(), wm, data, corrector)
    for row in range(0, len(data), 17):
        z, z_pred = (x[row : row + 1].float() for x in (data.z_real, data.z_pred))
        plan, prior = data.a_plan[row : row + 1], data.a_policy[row : row + 1]
        corrected = corrector(z, z_pred, plan, prior, data.depth[row : row + 1])
        values = [wm.q(z, a).mean().item() for a in (plan, corrected, prior)]
        best = (plan, corrected, prior)[int(np.argmax(values))]
        assert score[row].item() == pytest.approx(wm.q(z_pred, plan).mean().item() - max(values), abs=1e-4)
        assert error[row].item() == pytest.approx((best - data.a_teacher[row]).square().mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({}, "a call_rate or an action_error, and not both"),
        ({"call_rate": 0.2, "action_error": 0.1}, "a call_rate or an action_error, and not both"),
        ({"call_rate": 0.2}, "call_rate=0.2 is out of reach: executing every plan to its end calls at 0.2"),
        ({"action_error": 1e-9}, "action_error=1e-09 is out of reach"),
    ],
)
def test_what_cannot_be_reached_is_said(wanted, sentence):
    with pytest.raises(ConfigError, match=sentence):
        calibrate(DriftGate(), tiny_model(), states(), None, HORIZON, **wanted)


def test_scores_that_are_not_finite_are_refused():
    wm = tiny_model()
    wm.q_heads.layers[-1].bias.data[0] = torch.nan
    with pytest.raises(ConfigError, match="scores on the held-out states are not finite"):
        calibrate(ValueGate(), wm, states(), None, HORIZON, call_rate=0.5)


def test_states_that_need_no_check_are_no_thresholds():
    """Where trusted states alone give fewer calls than wanted, the smallest loss of value is the threshold."""
    data, wm = states(episodes=30), tiny_model()
    levels = tuple(data.mismatch.quantile(torch.tensor([0.15, 0.75])).tolist())
    gate = LadderGate(levels=levels)
    score, _ = judged(gate, wm, data, None)
    assert calls_per_decision(data, score, -torch.inf, HORIZON) < 0.5
    numbers = calibrate(gate, wm, data, None, HORIZON, call_rate=0.5)
    assert numbers["threshold"] == score[score > -torch.inf].min().item() and numbers["call_rate"] < 0.5
    with pytest.raises(ConfigError, match="no held-out state has a score"):
        calibrate(LadderGate(levels=(1.0, 1.0)), wm, data, None, HORIZON, call_rate=0.5)


def test_a_corrector_is_trusted_as_far_as_its_errors_say():
    """Labels are nearly the corrector's actions at depth 1, the plan's at 2, half way at 3; against a slow twin."""
    data = states(episodes=8)
    torch.manual_seed(0)
    corrector = TwoTowerCorrector(LATENT, ACTIONS)
    torch.nn.init.normal_(corrector.update_head.weight, std=0.3)
    corrector.eval().requires_grad_(False)
    z, z_pred = data.z_real.float(), data.z_pred.float()
    correction = corrector(z, z_pred, data.a_plan, data.a_policy, data.depth) - data.a_plan
    share = torch.tensor([0.0, 1.0, 0.0, 0.5])[data.depth].unsqueeze(-1)
    data.a_teacher = data.a_plan + share * correction + 0.02 * torch.randn(correction.shape)
    found = trust_by_depth(data, corrector, 6)
    assert found["trust"] == pytest.approx([1, 0, 0.5, 0.5, 0.5], abs=0.05) and found["states"] == len(data)
    assert all(0 <= trust <= 1 for trust in found["trust"])
    order = data.episode.unique().tolist()
    grid = np.linspace(0, 1, 4001)

    def error(rows, trust):
        off = data.a_plan[rows] + trust * correction[rows] - data.a_teacher[rows]
        return off.square().mean().item()

    for depth in (1, 2, 3):
        rows = [row for row in range(len(data)) if data.depth[row] == depth]
        assert found["plan_mse"][depth - 1] == pytest.approx(error(rows, 0), abs=1e-7)
        assert found["corrector_mse"][depth - 1] == pytest.approx(error(rows, 1), abs=1e-7)
        assert found["trust"][depth - 1] == pytest.approx(min(grid, key=lambda t: error(rows, t)), abs=3e-4)
        halves = [[row for row in rows if order.index(data.episode[row].item()) % 2 == side] for side in (0, 1)]
        told = [min(grid, key=lambda t, half=half: error(half, t)) for half in halves]
        crossed = [error(half, trust) * len(half) for half, trust in zip(halves, told[::-1], strict=True)]
        assert found["trusted_mse"][depth - 1] == pytest.approx(sum(crossed) / len(rows), rel=5e-3)
    assert len(trust_by_depth(data, corrector, 2)["trust"]) == 1
    assert trust_by_depth(data, corrector, 1)["trust"] == []


def test_a_corrector_that_adds_nothing_is_not_trusted():
    data = states()
    assert trust_by_depth(data, TwoTowerCorrector(LATENT, ACTIONS).eval(), 4)["trust"] == [0, 0, 0]
