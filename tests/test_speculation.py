"""The controller: against a world that is its model, against a slow twin, and rule by rule."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from lib.config import ConfigError
from lib.correctors import TemporalCorrector, TwoTowerCorrector
from lib.gates import DriftGate, Gate, LadderGate
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.speculation import SpeculativeController
from lib.world_model import WorldModel
from tests.tiny import ACTIONS, BUDGET, LATENT, OBS, LatentModel, latents, streams, tiny_model


class NotingPlanner(MPPI):
    """MPPI that notes every call: latents, warm start, plan."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = []

    def __call__(self, z, warm_start=None, generator=None, noise=None):
        plan = super().__call__(z, warm_start, generator, noise)
        self.calls.append((z.clone(), warm_start.clone(), plan))
        return plan


class PushCorrector(nn.Module):
    """Moves every planned action by 0.3 and notes the depths it is asked for."""

    latent_dim, action_dim = LATENT, ACTIONS

    def __init__(self):
        super().__init__()
        self.depths = []

    def forward(self, z_real, z_pred, a_plan, a_policy, depth, history=None):
        self.depths.append(depth.tolist())
        return (a_plan + 0.3).clamp(-1, 1)


class Where(Gate):
    """Replans where a function of the look is true."""

    def __init__(self, function):
        super().__init__(threshold=0.5)
        self.function = function

    def score(self, wm, look):
        return self.function(look).float()


def drifted(limit):
    """A gate that replans beyond an L1 distance of the latents."""
    return Where(lambda look: (look.z - look.z_pred).abs().sum(-1) > limit)


def controlled(corrector=None, gate=None, horizon=3, tail="policy", planner=None, **changes):
    """A controller of the tiny model that plans with the tests' budget, but for `changes`."""
    planner = planner or MPPI(tiny_model(), dataclasses.replace(BUDGET, **changes))
    return SpeculativeController(planner, corrector, gate, horizon, tail)


def random_corrector(seed=0):
    """A corrector with a random last layer."""
    torch.manual_seed(seed)
    made = TwoTowerCorrector(LATENT, ACTIONS)
    nn.init.normal_(made.update_head.weight, std=0.2)
    return made.eval().requires_grad_(False)


def observations(steps, batch, seed=0):
    """(T, B, obs_dim), without any relation between steps."""
    return torch.randn(steps, batch, OBS, generator=torch.Generator().manual_seed(seed))


def play(controller, obs, seeds=None):
    """Act on obs (T, B, obs_dim) from a reset. Returns actions (T, B, A) and info as name -> (T, B)."""
    batch = obs.shape[1]
    controller.reset(batch, streams(*(seeds or range(batch))))
    steps = [controller.act(o) for o in obs]
    return torch.stack([a for a, _ in steps]), {k: torch.stack([i[k] for _, i in steps]) for k in steps[0][1]}


# ---------------------------------------------------------------------------------- a world that follows the model


@pytest.mark.parametrize("tail", ["policy", "hold"])
@pytest.mark.parametrize("horizon", range(1, 7))
def test_nothing_drifts_when_the_model_is_the_world(horizon, tail):
    planner = MPPI(tiny_model(kind=LatentModel), BUDGET)
    controller, z, infos = controlled(PushCorrector(), None, horizon, tail, planner), latents(2), []
    controller.reset(2, streams(0, 1))
    for _ in range(13):
        action, info = controller.act(z)
        z = controller.wm.next(z, action)
        infos.append(info)
    info = {name: torch.stack([i[name] for i in infos]) for name in info}
    depth = torch.arange(13) % horizon
    assert torch.equal(info["depth"], depth[:, None].expand(-1, 2))
    assert torch.equal(info["planner_called"], info["depth"] == 0)
    assert info["mismatch"].isnan().equal(info["depth"] == 0)
    assert not (info["mismatch"] >= 1e-5).any()
    assert planner.solves == 2 * math.ceil(13 / horizon) == info["planner_called"].sum()


# ------------------------------------------------------------------------------------------------- the slow twin


class Twin:
    """The same controller for one episode, one step at a time, with lists."""

    def __init__(self, planner, corrector, threshold, horizon, tail, seed):
        self.planner, self.corrector, self.threshold = planner, corrector, threshold
        self.horizon, self.tail = horizon, tail
        self.generator = torch.Generator().manual_seed(seed)
        self.plan = None

    def act(self, obs):
        """obs (obs_dim,) -> action (A,), planner called, fallback, depth, mismatch."""
        wm, width = self.planner.wm, BUDGET.horizon
        z = wm.encode(obs[None])[0]
        mismatch = math.nan
        called, fallback = self.plan is None or self.depth == self.horizon, False
        if not called:
            simplices = zip(z.split(8), self.predicted.split(8), strict=True)
            distances = [sum(abs(p - q) for p, q in zip(a.tolist(), b.tolist(), strict=True)) for a, b in simplices]
            mismatch = 0.5 * sum(distances) / len(distances)
            if self.threshold is not None and mismatch > self.threshold:
                called = fallback = True
        if called:
            warm = [torch.zeros(ACTIONS)] * width
            if self.plan is not None:
                left = [self.mean[t] for t in range(self.depth, width)]
                warm = left + [torch.zeros(ACTIONS)] * (width - len(left))
            solved = self.planner(z[None], torch.stack(warm)[None], [self.generator])
            self.plan, self.mean = list(solved.actions[0]), list(solved.mean[0])
            self.predicted, self.depth, mismatch = z, 0, math.nan
        if self.depth < width:
            action = self.plan[self.depth]
        elif self.tail == "policy":
            action = wm.policy(self.predicted[None])[0][0]
        else:
            action = self.plan[-1]
        if self.corrector is not None and not called:
            inputs = z[None], self.predicted[None], action[None], wm.policy(z[None])[0], torch.tensor([self.depth])
            action = self.corrector(*inputs)[0]
        depth = self.depth
        self.predicted = wm.next(self.predicted[None], action[None])[0]
        self.depth += 1
        return action, called, fallback, depth, mismatch


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.4])  # None: open loop
@pytest.mark.parametrize(("horizon", "tail"), [(1, "policy"), (2, "policy"), (5, "policy"), (5, "hold")])
def test_the_batch_does_what_a_slow_twin_does(horizon, threshold, corrected, tail):
    obs, wm = observations(9, 3), tiny_model()
    corrector = random_corrector() if corrected else None
    gate = DriftGate(threshold) if threshold else None
    actions, info = play(controlled(corrector, gate, horizon, tail), obs)
    for row in range(3):
        twin = Twin(MPPI(wm, BUDGET), corrector, threshold, horizon, tail, seed=row)
        steps = [twin.act(o) for o in obs[:, row]]
        torch.testing.assert_close(actions[:, row], torch.stack([s[0] for s in steps]), rtol=0, atol=1e-4)
        for number, name in enumerate(("planner_called", "fallback", "depth"), start=1):
            assert info[name][:, row].tolist() == [s[number] for s in steps]
        mismatch = torch.tensor([s[4] for s in steps])
        torch.testing.assert_close(info["mismatch"][:, row], mismatch, rtol=0, atol=1e-4, equal_nan=True)
    if threshold and horizon == 5:  # rows were out of step, or nothing was tested
        assert info["fallback"].any() and not info["fallback"].all()
        assert len(set(map(tuple, info["depth"].T.tolist()))) > 1


# ----------------------------------------------------------------------------------------------------- replanning


def test_a_forced_miss_is_one_call_whose_first_action_is_executed():
    planner, obs = NotingPlanner(tiny_model(), BUDGET), observations(5, 2)
    gate = Where(lambda look: torch.tensor([True, False]) & (controller._state.depth == 2))
    controller = controlled(PushCorrector(), gate, 4, planner=planner)
    actions, info = play(controller, obs)
    assert info["fallback"].int().tolist() == [[0, 0], [0, 0], [1, 0], [0, 0], [1, 0]]
    assert info["planner_called"].int().tolist() == [[1, 1], [0, 0], [1, 0], [0, 0], [1, 1]]
    assert info["depth"].tolist() == [[0, 0], [1, 1], [0, 2], [1, 3], [0, 0]]
    assert planner.solves == 5 and len(planner.calls) == 3
    (_, _, first), (z, warm, second), _ = planner.calls
    assert torch.equal(z, planner.wm.encode(obs[2])[:1]) and torch.equal(warm, first.shifted(2)[:1])
    assert torch.equal(actions[2, 0], second.actions[0, 0])
    assert info["mismatch"][2].isnan().tolist() == [True, False]
    torch.testing.assert_close(actions[3, 0], (second.actions[0, 1] + 0.3).clamp(-1, 1))  # its tail is queued


@pytest.mark.parametrize("horizon", range(1, 6))
def test_the_warm_start_moves_by_the_steps_executed(horizon):
    planner = NotingPlanner(tiny_model(), BUDGET)
    controller = controlled(horizon=horizon, planner=planner)
    play(controller, observations(2 * horizon + 1, 2))
    (_, start, first), (_, second_start, second), (_, third_start, _) = planner.calls
    assert not start.any()
    expected = torch.zeros_like(first.mean)
    expected[:, : max(3 - horizon, 0)] = first.mean[:, horizon:]
    assert torch.equal(second_start, expected) and torch.equal(third_start, second.shifted(horizon))
    play(controller, observations(1, 4))
    assert planner.calls[-1][1].shape == (4, 3, ACTIONS) and not planner.calls[-1][1].any()


# --------------------------------------------------------------------------------- what is executed and predicted


def test_the_corrector_acts_at_depths_from_one():
    planner, corrector = NotingPlanner(tiny_model(), BUDGET), PushCorrector()
    actions, info = play(controlled(corrector, planner=planner), observations(6, 2))
    assert corrector.depths == [[1, 1], [2, 2]] * 2
    plans = torch.cat([plan.actions.transpose(0, 1) for _, _, plan in planner.calls])  # (6, B, A)
    pushed = (plans + 0.3).clamp(-1, 1)
    fresh = info["depth"] == 0
    assert torch.equal(actions, torch.where(fresh.unsqueeze(-1), plans, pushed))
    torch.testing.assert_close(info["delta_abs"], (actions - plans).abs().mean(-1))


@pytest.mark.parametrize("override", [False, True])
def test_the_prediction_follows_what_was_executed(override):
    controller, expected = controlled(PushCorrector(), horizon=6), None
    controller.reset(2)
    for step, obs in enumerate(observations(6, 2)):
        proposal = controller.propose(obs)
        expected = proposal.z if expected is None else expected
        assert torch.equal(proposal.z_pred, expected), step
        executed = -proposal.action if override else proposal.action
        controller.commit(executed)
        expected = controller.wm.next(expected, executed)


def test_a_longer_plan_is_executed_as_it_was_planned():
    planner = NotingPlanner(tiny_model(), dataclasses.replace(BUDGET, horizon=5))
    actions, _ = play(controlled(horizon=5, tail="plan", planner=planner), observations(5, 2))
    assert len(planner.calls) == 1
    torch.testing.assert_close(actions, planner.calls[0][2].actions.transpose(0, 1))


def test_a_temporal_corrector_is_given_the_tokens_of_its_own_plan():
    """Against lists: at depth k of a plan the last min(k, K) tokens count, and nothing of the plan before."""
    torch.manual_seed(0)
    corrector = TemporalCorrector(LATENT, ACTIONS, history_len=3)
    nn.init.normal_(corrector.update_head.weight, std=0.2)
    controller = controlled(corrector.eval().requires_grad_(False), drifted(1.7), 5)
    controller.reset(3, streams(0, 1, 2))
    tokens, depths = [[], [], []], set()
    for obs in observations(14, 3):
        step = controller.propose(obs)
        for row in range(3):
            depth = int(step.depth[row])
            if depth == 0:
                tokens[row] = []
                continue
            now = [10 * (step.z - step.z_pred)[row], step.a_plan[row], torch.tensor([depth / 12])]
            tokens[row].append(torch.cat(now))
            last = tokens[row][-3:]
            history = torch.stack([torch.zeros(LATENT + ACTIONS + 1)] * (3 - len(last)) + last)
            a_policy = controller.wm.policy(step.z[row : row + 1])[0]
            inputs = step.z[row : row + 1], step.z_pred[row : row + 1], step.a_plan[row : row + 1], a_policy
            expected = corrector(*inputs, torch.tensor([depth]), history[None])[0]
            torch.testing.assert_close(step.action[row], expected, rtol=0, atol=1e-5)
            depths.add((row, depth))
        controller.commit(step.action)
    assert {d for _, d in depths} == {1, 2, 3, 4} and len({len(t) for t in tokens}) > 1


# ------------------------------------------------------------------------------------------------ rows of a batch


def test_rows_ignore_their_neighbours():
    controller, obs = controlled(random_corrector(), drifted(1.6), 4), observations(10, 3)
    actions, info = play(controller, obs)
    other = observations(10, 3, seed=9)
    other[:, 1] = obs[:, 1]
    others, other_info = play(controller, other, seeds=[7, 1, 8])
    torch.testing.assert_close(others[:, 1], actions[:, 1], rtol=0, atol=1e-4)
    assert torch.equal(other_info["depth"][:, 1], info["depth"][:, 1])
    assert not torch.equal(other_info["depth"], info["depth"])


def test_kept_rows_go_on_as_if_they_had_been_alone():
    controller, obs = controlled(random_corrector(), drifted(1.6), 4), observations(10, 3)
    alone, _ = play(controller, obs[:, [0, 2]], seeds=[0, 2])
    controller.reset(3, streams(0, 1, 2))
    for o in obs[:5]:
        controller.act(o)
    controller.keep([0, 2])
    kept = torch.stack([controller.act(o)[0] for o in obs[5:, [0, 2]]])
    torch.testing.assert_close(kept, alone[5:], rtol=0, atol=1e-4)


def test_a_run_can_be_repeated():
    controller = controlled(random_corrector(), horizon=2)
    assert torch.equal(play(controller, observations(5, 2))[0], play(controller, observations(5, 2))[0])


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "options, message",
    [({"horizon": 0}, "execution_horizon=0 must be at least 1"), ({"tail": "last"}, "tail='last' is not known"),
     ({"horizon": 4, "tail": "plan"}, "tail='plan' executes 4 planned steps, but the planner plans 3"),
     ({"corrector": TwoTowerCorrector(24, ACTIONS)}, "the corrector was made for latent 24 and 2 actions")],
)  # fmt: skip
def test_what_cannot_be_controlled_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        controlled(**options)


def test_what_does_not_fit_the_episodes_is_refused():
    controller = controlled()
    broken = torch.zeros(3, OBS)
    broken[1, 2], broken[2, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"call reset\(batch_size=2\) first"):
        controller.act(torch.zeros(2, OBS))
    with pytest.raises(ConfigError, match="1 generators .* 2 episodes"):
        controller.reset(2, streams(0))
    controller.reset(3)
    for obs, message in (
        (torch.zeros(2, OBS), "2 observations for 3 episodes"),
        (torch.zeros(3, OBS + 1), "takes observations 5 wide"),
        (broken, r"rows \[1, 2\] are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            controller.act(obs)
    assert controller.planner.solves == 0


def test_the_policy_arm_is_the_mean_of_the_prior():
    wm = tiny_model()
    controller, obs = PolicyController(wm, mode="eager"), observations(1, 3)[0]
    controller.reset(3)
    action, info = controller.act(obs)
    assert torch.equal(action, wm.policy(wm.encode(obs))[0])
    assert not info["planner_called"].any() and info["mismatch"].isnan().all()
    with pytest.raises(ValueError, match="not finite"):
        controller.act(obs * torch.nan)


# ------------------------------------------------------------------------------ state that is only the controller's


def test_proposing_twice_proposes_the_same_and_what_is_handed_out_may_be_written_to():
    obs, other = observations(4, 2), controlled(random_corrector())
    expected, _ = play(controlled(random_corrector()), obs)
    other.reset(2, streams(0, 1))
    for t, o in enumerate(obs):
        proposal = other.propose(o)
        if not proposal.planner_called.any():
            again = other.propose(o)
            assert torch.equal(again.z_pred, proposal.z_pred) and torch.equal(again.action, proposal.action)
        actions = proposal.action.clone()
        torch.testing.assert_close(actions, expected[t])
        other.commit(actions)
        actions.zero_(), proposal.z_pred.zero_(), proposal.a_plan.zero_()  # an environment may scale actions in place


def test_an_action_that_is_not_finite_is_refused():
    corrector = PushCorrector()
    controller, obs = controlled(corrector), observations(2, 2)
    controller.reset(2, streams(0, 1))
    controller.act(obs[0])
    corrector.forward = lambda z_real, z_pred, a_plan, a_policy, depth, history=None: a_plan * torch.nan
    with pytest.raises(ValueError, match="an action is not finite"):
        controller.act(obs[1])


@pytest.mark.slow
@pytest.mark.parametrize("gate", [None, LadderGate])
def test_the_compiled_controller_equals_the_eager_one(gate):
    """With a temporal corrector and beyond the plan's horizon, for a batch of one and then others."""
    seconds = []
    for batch in (1, 3, 2):
        obs = observations(6, batch)
        made = []
        for mode in ("compiled", "eager"):
            torch.manual_seed(0)
            corrector = TemporalCorrector(LATENT, ACTIONS).eval().requires_grad_(False)
            nn.init.normal_(corrector.update_head.weight, std=0.2)
            made.append(controlled(corrector, gate and gate(0.3, (0.2, 0.4)), 5, mode=mode))
        (fast, fast_info), (slow, slow_info) = (play(controller, obs) for controller in made)
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
        assert torch.equal(fast_info["fallback"], slow_info["fallback"])
        torch.testing.assert_close(fast_info["mismatch"], slow_info["mismatch"], rtol=1e-4, atol=1e-4, equal_nan=True)
        seconds.append(made[0]._look.seconds)
    assert seconds[0] > 0 and seconds[1] > 0 and seconds[2] == 0  # once for a batch of one, once for all others


@pytest.mark.slow
def test_the_compiled_controller_sees_that_its_corrector_has_changed():
    corrector, obs = random_corrector(), observations(4, 1)
    controller = controlled(corrector, mode="compiled")
    first = play(controller, obs)[0]
    corrector.update_head.weight.mul_(-1)
    turned = play(controller, obs)[0]
    assert not torch.equal(turned[1], first[1])
    corrector.update_head.weight = nn.Parameter(-corrector.update_head.weight, requires_grad=False)
    torch.testing.assert_close(play(controller, obs)[0], first)
    corrector.train()  # dropout acts
    assert not torch.equal(play(controller, obs)[0][1], first[1])
    corrector.eval()
    torch.testing.assert_close(play(controller, obs)[0], first)


@pytest.mark.slow
def test_models_do_not_share_compiled_code_that_does_not_fit():
    """All controllers of a process share what is compiled; only the number of actions tells these models apart."""
    obs = observations(1, 1)[0]
    for action_dim in (2, 1, 3):
        wm = WorldModel.from_size("1m", OBS, action_dim).eval()
        made = [PolicyController(wm, mode=mode) for mode in ("compiled", "eager")]
        fast, slow = (play(controller, obs[None])[0][0] for controller in made)
        assert fast.shape == (1, action_dim)
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
