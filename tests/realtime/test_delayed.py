"""Planning in the background: against a world that is the model, a slow twin, and rule by rule."""

import dataclasses
import math

import pytest
import torch

from lib.config import ConfigError
from lib.correctors import TemporalCorrector, TwoTowerCorrector
from lib.drafts import Draft
from lib.gates import DriftGate, ValueGate
from lib.planner import MPPI, Plan
from lib.protocols import Controller
from lib.realtime import RealTimeController
from lib.speculation import SpeculativeController
from tests.realtime.twins import RealTimeTwin
from tests.test_drafts import random_draft
from tests.test_speculation import NotingPlanner, PushCorrector, observations, play, random_corrector
from tests.tiny import ACTIONS, BUDGET, LATENT, OBS, LatentModel, latents, streams, tiny_model


def random_temporal():
    torch.manual_seed(0)
    made = TemporalCorrector(LATENT, ACTIONS, width=12)
    torch.nn.init.normal_(made.update_head.weight, std=0.5)
    return made.eval().requires_grad_(False)


def jitter(most=5):
    """A delay of 0 to `most` − 1 decisions, of the row's own stream."""
    return lambda generator: int(torch.randint(0, most, (), generator=generator))


# ---------------------------------------------------------------------------------- a world that follows the model


def in_the_model(controller, z, decisions):
    """Returns (B,) and records (T, B) of episodes whose world is the controller's model."""
    controller.reset(len(z), streams(*range(len(z))))
    total, infos = 0.0, []
    for _ in range(decisions):
        action, info = controller.act(z)
        total, z = total + controller.wm.reward(z, action), controller.wm.next(z, action)
        infos.append(info)
    return total, {name: torch.stack([info[name] for info in infos]) for name in infos[0]}


@pytest.mark.parametrize("fallback", [None, random_draft()], ids=["prior", "draft"])
@pytest.mark.parametrize("corrector", [None, PushCorrector(), random_temporal()], ids=["plan", "pushed", "temporal"])
@pytest.mark.parametrize("delay", [0, 1, 2, 3, 4, 7, (2, 0, 5, 1)])
def test_every_plan_arrives_where_the_world_is_when_the_model_is_the_world(delay, corrector, fallback):
    """Only if what was imagined is what was done: corrections, ends of plans and the time before the first."""
    planner = MPPI(tiny_model(kind=LatentModel), BUDGET)
    controller = RealTimeController(planner, corrector, DriftGate(1e-5), delay, fallback)
    _, info = in_the_model(controller, latents(2), 24)
    assert not (info["mismatch"] >= 1e-5).any()
    first = delay if isinstance(delay, int) else delay[0]
    assert info["mismatch"].isnan().all() == (delay == 0) and info["plan_age"][:first].isnan().all()
    if isinstance(delay, int):
        ages = [float(t % delay + delay) if delay else 0.0 for t in range(delay, 24)]
        assert info["plan_age"][delay:].tolist() == [[age, age] for age in ages]
        called = [t % delay == 0 if delay else True for t in range(24)]
        assert info["planner_called"].tolist() == [[begun, begun] for begun in called]
    assert planner.solves == info["planner_called"].sum()


class Lawful(MPPI):
    """Plans what a law says, a = law(z), inside the model."""

    law = staticmethod(lambda z: (4 * z[..., :ACTIONS] - 1).clamp(-1, 1))

    def __call__(self, z, warm_start=None, generator=None, noise=None):
        latents, actions = [z], []
        for _ in range(self.config.horizon):
            actions.append(self.law(latents[-1]))
            latents.append(self.wm.next(latents[-1], actions[-1]))
        plan = torch.stack(actions, 1)
        return Plan(plan, plan, torch.zeros_like(plan), torch.stack(latents, 1), torch.zeros(len(z)))


class LawfulDraft(torch.nn.Module):
    latent_dim, action_dim = LATENT, ACTIONS

    def forward(self, z, a_policy):
        return Lawful.law(z), torch.zeros(len(z))


@pytest.mark.parametrize("delay", [1, 2, 3, 4, 5, 8, 40, (1, 6, 0), jitter()])
def test_returns_are_those_of_no_delay_when_the_model_is_the_world(delay):
    wm = tiny_model(kind=LatentModel)
    undelayed, _ = in_the_model(RealTimeController(Lawful(wm, BUDGET), delay=0), latents(3), 30)
    controller = RealTimeController(Lawful(wm, BUDGET), None, None, delay, LawfulDraft())
    returned, info = in_the_model(controller, latents(3), 30)
    torch.testing.assert_close(returned, undelayed, rtol=0, atol=1e-3)
    other, _ = in_the_model(RealTimeController(Lawful(wm, BUDGET), delay=8), latents(3), 30)
    assert (other - undelayed).abs().max() > 0.1  # the prior, where no plan acts, would return something else


# ------------------------------------------------------------------------------------------------- the slow twin


def against_the_twin(delays, corrector=None, threshold=None, draft=None, decisions=14):
    """Checks the batch against twins, row by row; the records (T, B). `delays` are (B, solves), enough of them."""
    wm, obs, queue = tiny_model(num_q=4), observations(decisions, len(delays)), [iter(row) for row in delays]
    order = {}  # generator -> row

    def delay(generator):
        return next(queue[order.setdefault(id(generator), len(order))])

    gate = None if threshold is None else DriftGate(threshold)
    controller = RealTimeController(MPPI(wm, BUDGET), corrector, gate, delay, draft)
    actions, info = play(controller, obs)
    for row, own in enumerate(delays):
        twin = RealTimeTwin(MPPI(wm, BUDGET), corrector, threshold, own, draft, seed=row)
        steps = [twin.act(o) for o in obs[:, row]]
        torch.testing.assert_close(actions[:, row], torch.stack([action for action, _ in steps]), rtol=0, atol=1e-4)
        for name in ("planner_called", "fallback", "depth"):
            assert info[name][:, row].tolist() == [records[name] for _, records in steps], name
        for name in ("plan_age", "mismatch", "delta_abs"):
            wanted = torch.tensor([float(records[name]) for _, records in steps])
            torch.testing.assert_close(info[name][:, row].float(), wanted, rtol=0, atol=1e-4, equal_nan=True)
    return info


DELAYS = [[0] * 20, [1] * 20, [2] * 20, [4] * 20, [2, 0, 0, 5, 1, 3, 0, 1, 4, 2] * 2, [50] * 20, [0, 7] * 10]


@pytest.mark.parametrize("threshold", [None, 0.45], ids=["ungated", "gated"])
@pytest.mark.parametrize("draft", [None, random_draft()], ids=["prior", "draft"])
@pytest.mark.parametrize("corrector", [None, random_corrector(), random_temporal()], ids=["plan", "two", "temporal"])
def test_the_batch_does_what_slow_twins_do(corrector, draft, threshold):
    info = against_the_twin(DELAYS, corrector, threshold, draft)
    arrived = info["plan_age"][1:, 1] == 1  # of the row with a delay of 1, at every decision but the first
    assert arrived.all() and info["mismatch"][1:, 1].min() < 0.45 < info["mismatch"][1:, 1].max()
    assert info["fallback"][1:, 1].any() == (threshold is not None)
    assert info["delta_abs"].any() == (corrector is not None)


# --------------------------------------------------------------------------------------------------- rule by rule


@pytest.mark.parametrize("delay", [0, (0,), lambda generator: 0])
def test_no_delay_is_the_planner_at_every_step_bit_for_bit(delay):
    wm, obs = tiny_model(num_q=4), observations(7, 3)
    actions, info = play(RealTimeController(MPPI(wm, BUDGET), random_corrector(), DriftGate(0.0), delay), obs)
    wanted, records = play(SpeculativeController(MPPI(wm, BUDGET), execution_horizon=1), obs)
    assert torch.equal(actions, wanted) and set(records) | {"plan_age"} == set(info)
    for name, record in records.items():
        assert torch.equal(info[name].nan_to_num(-1), record.nan_to_num(-1)) and info[name].dtype == record.dtype, name
    assert not info["plan_age"].any()


def test_the_planner_is_given_the_predicted_latent_and_what_is_left_of_the_present_plan():
    planner, obs = NotingPlanner(tiny_model(), dataclasses.replace(BUDGET, horizon=5)), observations(5, 1)
    actions, _ = play(RealTimeController(planner, delay=2), obs)
    wm, ((z0, warm0, first), (z1, warm1, second), _) = planner.wm, planner.calls
    z = wm.next(wm.encode(obs[0]), wm.policy(wm.encode(obs[0]))[0])
    torch.testing.assert_close(z0, wm.next(z, wm.policy(z)[0]))
    assert not warm0.any() and torch.equal(warm1, first.shifted(2))
    z = wm.next(wm.encode(obs[2]), first.actions[:, 0])
    torch.testing.assert_close(z1, wm.next(z, first.actions[:, 1]))
    for t, wanted in ((2, first.actions[:, 0]), (3, first.actions[:, 1]), (4, second.actions[:, 0])):
        assert torch.equal(actions[t], wanted)
    for t in (0, 1):
        torch.testing.assert_close(actions[t], wm.policy(wm.encode(obs[t]))[0])


@pytest.mark.parametrize("draft", [None, random_draft()], ids=["prior", "draft"])
def test_a_plan_that_never_arrives_leaves_control_to_who_acts_at_once(draft):
    wm, obs = tiny_model(), observations(6, 2)
    actions, info = play(RealTimeController(MPPI(wm, BUDGET), random_corrector(), None, 1000, draft), obs)
    z = wm.encode(obs)
    prior = wm.policy(z)[0]
    wanted = prior if draft is None else draft(z.flatten(0, 1), prior.flatten(0, 1))[0].view_as(prior)
    torch.testing.assert_close(actions, wanted)
    assert info["fallback"].all() and info["plan_age"].isnan().all() and info["mismatch"].isnan().all()
    assert info["planner_called"].sum(0).tolist() == [1, 1] and not info["depth"].any() and not info["delta_abs"].any()


def test_solves_arrive_in_the_order_in_which_they_were_begun():
    """However delays jitter, the next begins when one arrives, and knows more than it."""
    controller, obs = RealTimeController(MPPI(tiny_model(), BUDGET), delay=jitter()), observations(60, 4)
    _, info = play(controller, obs)
    for row in range(4):
        knew = [t - age for t, age in enumerate(info["plan_age"][:, row].tolist()) if not math.isnan(age)]
        assert knew == sorted(knew)
        begun = [t for t, called in enumerate(info["planner_called"][:, row].tolist()) if called]
        there = [t for before, t in zip([None, *knew], knew, strict=False) if t != before]
        assert set(there) < set(begun) and len(there) > 15
    assert len({tuple(row) for row in info["planner_called"].T.tolist()}) == 4  # or rows went in step


def test_a_dropped_plan_leaves_the_corrected_prior_until_the_next():
    wm, obs, corrector = tiny_model(), observations(7, 1), PushCorrector()
    actions, info = play(RealTimeController(MPPI(wm, BUDGET), corrector, DriftGate(-1.0), 3), obs)
    assert info["fallback"].all() and info["planner_called"].flatten().tolist() == [True, False, False] * 2 + [True]
    assert info["depth"].flatten().tolist() == [0, 0, 0, 3, 4, 5, 3]
    z = wm.encode(obs[3])
    for t in range(3, 6):  # the prior goes on inside the model, from where the plan was dropped
        wanted = (wm.policy(z)[0] + 0.3).clamp(-1, 1)
        torch.testing.assert_close(actions[t], wanted)
        z = wm.next(z, wanted)
    torch.testing.assert_close(actions[6], (wm.policy(wm.encode(obs[6]))[0] + 0.3).clamp(-1, 1))
    assert torch.equal(info["score"].isnan(), info["mismatch"].isnan()) and info["score"][3:].isfinite().all()


def test_rows_with_delays_of_their_own_are_as_when_they_play_alone():
    wm, obs = tiny_model(num_q=4), observations(20, 5)
    made = dict(corrector=random_corrector(), gate=DriftGate(0.5), delay=jitter())
    actions, info = play(RealTimeController(MPPI(wm, BUDGET), **made), obs)
    for row in range(5):
        alone, records = play(RealTimeController(MPPI(wm, BUDGET), **made), obs[:, row : row + 1], [row])
        torch.testing.assert_close(actions[:, row], alone[:, 0], rtol=0, atol=1e-4)
        assert torch.equal(info["planner_called"][:, row], records["planner_called"][:, 0])
        assert torch.equal(info["depth"][:, row], records["depth"][:, 0])
    assert len({tuple(row) for row in info["depth"].T.tolist()}) == 5


@pytest.mark.parametrize("corrector", [None, random_temporal()], ids=["plan", "temporal"])
def test_rows_that_are_kept_go_on_as_if_nothing_had_happened(corrector):
    obs, made = observations(12, 4), dict(corrector=corrector, delay=jitter(), fallback=random_draft())
    whole, part = (RealTimeController(MPPI(tiny_model(num_q=4), BUDGET), **made) for _ in range(2))
    actions, _ = play(whole, obs)
    play(part, obs[:5])
    part.keep([1, 3])
    later = torch.stack([part.act(o[[1, 3]])[0] for o in obs[5:]])
    torch.testing.assert_close(later, actions[5:, [1, 3]], rtol=0, atol=1e-4)


def test_an_episode_can_be_played_again():
    controller, obs = RealTimeController(MPPI(tiny_model(num_q=4), BUDGET), random_corrector(), delay=jitter()), None
    obs = observations(9, 3)
    first, again = play(controller, obs), play(controller, obs)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1]["depth"], again[1]["depth"])


def test_one_observation_alone_and_no_streams_will_do():
    controller = RealTimeController(MPPI(tiny_model(), BUDGET), delay=jitter())
    assert isinstance(controller, Controller)
    controller.reset()
    for obs in observations(4, 1)[:, 0]:
        action, info = controller.act(obs.numpy())
        assert action.shape == (ACTIONS,) and {value.shape for value in info.values()} == {torch.Size([])}


def test_a_step_whose_observation_is_not_finite_is_as_if_it_had_not_been():
    controller, obs = RealTimeController(MPPI(tiny_model(), BUDGET), random_corrector(), delay=2), observations(8, 2)
    wanted, _ = play(controller, obs)
    controller.reset(2, streams(0, 1))
    for t, o in enumerate(obs):
        with pytest.raises(ValueError, match=r"observations of rows \[1\] are not finite"):
            controller.act(torch.stack([o[0], torch.full((OBS,), math.nan)]))
        assert torch.equal(controller.act(o)[0], wanted[t])


@pytest.mark.slow
def test_the_compiled_controller_equals_the_eager_one():
    """With a temporal corrector, a gate and jitter, for a batch of one and then others."""
    seconds = []
    for batch in (1, 3, 2):
        obs, made = observations(8, batch), dict(corrector=random_temporal(), gate=DriftGate(0.4), delay=jitter(4))
        planners = (MPPI(tiny_model(), dataclasses.replace(BUDGET, mode=mode)) for mode in ("compiled", "eager"))
        fast, slow = (RealTimeController(planner, **made) for planner in planners)
        (actions, info), (wanted, records) = play(fast, obs), play(slow, obs)
        torch.testing.assert_close(actions, wanted, rtol=1e-4, atol=1e-4)
        for name in ("planner_called", "fallback", "depth"):
            assert torch.equal(info[name], records[name])
        seconds.append(fast._look.seconds + fast._imagine.seconds)
    assert seconds[0] > 0 and seconds[1] > 0


def test_what_does_not_fit_is_refused():
    planner = MPPI(tiny_model(), BUDGET)
    for delay in (-1, 1.5, "2", None, True, (2, -3), 10_001):
        with pytest.raises(ConfigError, match=r"delay=.* must be a whole number of decisions in 0…10,000"):
            RealTimeController(planner, delay=delay)
    with pytest.raises(ConfigError, match=r"delay=\(\) has none"):
        RealTimeController(planner, delay=())
    with pytest.raises(ConfigError, match="delay=-2 must be a whole number"):
        RealTimeController(planner, delay=lambda generator: -2).reset()
    with pytest.raises(ConfigError, match="the corrector was made for latent 8 and 2 actions, the world model has 16"):
        RealTimeController(planner, TwoTowerCorrector(8, ACTIONS))
    with pytest.raises(ConfigError, match="the draft was made for latent 16 and 3 actions"):
        RealTimeController(planner, fallback=Draft(LATENT, 3))
    with pytest.raises(ConfigError, match="a plan is dropped by its drift; give a gate that scores that"):
        RealTimeController(planner, gate=ValueGate())
    controller = RealTimeController(planner)
    with pytest.raises(ValueError, match=r"call reset\(batch_size=2\) first"):
        controller.act(observations(1, 2)[0])
    with pytest.raises(ConfigError, match="1 generators were given for 2 episodes"):
        controller.reset(2, streams(0))
