"""Drafts and who acts with them: against slow twins, one row at a time."""

import math

import pytest
import torch

from lib.config import ConfigError, PlannerConfig, WorldModelConfig
from lib.drafts import SCORES, Draft, DraftController, DraftGate, PriorDraft
from lib.planner import MPPI
from lib.world_model import WorldModel, total_variation
from tests.tiny import ACTIONS, BUDGET, LATENT, OBS, latents, streams, tiny_model


def random_draft(seed=0, **shape):
    """A draft whose members and modes differ."""
    torch.manual_seed(seed)
    made = Draft(LATENT, ACTIONS, **{"width": 16} | shape)
    torch.nn.init.normal_(made.head.weight, std=0.5)
    return made.eval().requires_grad_(False)


def inputs(batch=7, seed=3):
    random = torch.Generator().manual_seed(seed)
    return latents(batch), 2 * torch.rand(batch, ACTIONS, generator=random) - 1


# --------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("members", [1, 3])
def test_an_untrained_draft_is_the_prior_without_doubt(members):
    z, a_policy = inputs()
    action, doubt = Draft(LATENT, ACTIONS, members=members).eval()(z, a_policy)
    torch.testing.assert_close(action, a_policy)
    torch.testing.assert_close(doubt, torch.zeros(len(z)))


def test_the_action_is_the_mean_of_members_that_know_nothing_of_each_other():
    draft, (z, a_policy) = random_draft(), inputs()
    own = []
    for member in range(3):
        alone = Draft(LATENT, ACTIONS, width=16, members=1).eval().requires_grad_(False)
        alone.load_state_dict({k: v[member : member + 1] for k, v in draft.state_dict().items()})
        own.append(alone(z, a_policy)[0])
    action, doubt = draft(z, a_policy)
    torch.testing.assert_close(action, sum(own) / 3)
    by_hand = [sum(abs(float(o[i, j] - action[i, j])) for o in own for j in range(ACTIONS)) / 6 for i in range(len(z))]
    torch.testing.assert_close(doubt, torch.tensor(by_hand))
    assert action.abs().max() <= 1 and doubt.min() > 0


def test_of_several_modes_the_heaviest_of_all_acts():
    draft, (z, a_policy) = random_draft(modes=4), inputs()
    actions, weights = draft.components(z, a_policy)
    assert actions.shape == (3, 7, 4, ACTIONS) and weights.shape == (3, 7, 4)
    torch.testing.assert_close(weights.exp().sum(-1), torch.ones(3, 7))
    action, _ = draft(z, a_policy)
    for i in range(len(z)):
        heaviest = max((float(weights[m, i, k]), m, k) for m in range(3) for k in range(4))
        assert torch.equal(action[i], actions[heaviest[1], i, heaviest[2]])


def test_dropout_is_off_outside_training_and_gradients_pass_the_bounds():
    draft, (z, a_policy) = random_draft(), inputs()
    assert torch.equal(draft(z, a_policy)[0], draft(z, a_policy)[0])
    draft.train().requires_grad_(True)
    draft.head.bias.data.fill_(5.0)  # pushed far past the bound
    draft.components(z, a_policy)[0].sum().backward()
    assert (draft.head.bias.grad[:, :ACTIONS] > 0).all()


def test_a_prior_that_learnt_on_is_its_own_action():
    wm, (z, a_policy) = tiny_model(), inputs()
    draft = PriorDraft(LATENT, ACTIONS, 16)
    draft.pi.load_state_dict(wm.pi.state_dict())
    action, doubt = draft(z, a_policy)
    torch.testing.assert_close(action, wm.policy(z)[0])
    assert not doubt.any()


# ------------------------------------------------------------------------------------------------------------- gate


def test_the_scores_are_what_they_say():
    wm, draft, gate = tiny_model(), random_draft(), DraftGate(looks=SCORES)
    z, a_policy = inputs()
    z_pred = latents(7, seed=9)
    action, doubt = draft(z, a_policy)
    scores = gate.scores(wm, z, z_pred, a_policy, action, doubt)

    def ahead(a):
        return wm.reward(z, a) + wm.config.discount * wm.q(wm.next(z, a), wm.policy(wm.next(z, a))[0]).mean(0)

    loss = torch.maximum(
        wm.q(z, a_policy).mean(0) - wm.q(z, action).mean(0),
        ahead(a_policy) - ahead(action),
    )
    torch.testing.assert_close(scores[:, 0], doubt)
    torch.testing.assert_close(scores[:, 1], loss)
    torch.testing.assert_close(scores[:, 2], total_variation(z, z_pred, 8))
    assert SCORES == ("doubt", "value", "mismatch")
    part = DraftGate(mismatch=0.3).scores(wm, z, z_pred, a_policy, action, doubt)
    assert torch.equal(part[:, 2], scores[:, 2]) and part[:, 1].isnan().all()


def test_the_look_ahead_stops_where_the_episode_ends():
    torch.manual_seed(0)
    wm = WorldModel(WorldModelConfig(OBS, ACTIONS, 16, 16, LATENT, 2, 2, episodic=True)).eval()
    with torch.no_grad():
        for p in wm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    draft, (z, a_policy) = random_draft(), inputs()
    action, doubt = draft(z, a_policy)
    with torch.no_grad():
        loss = DraftGate(looks=("value",)).scores(wm, z, z, a_policy, action, doubt)[:, 1]

        def ahead(a):
            after = wm.next(z, a)
            return wm.reward(z, a) + 0.99 * (1 - wm.termination(after)) * wm.q(after, wm.policy(after)[0]).mean(0)

        now = wm.q(z, a_policy).mean(0) - wm.q(z, action).mean(0)
        torch.testing.assert_close(loss, torch.maximum(now, ahead(a_policy) - ahead(action)))


def test_any_score_above_its_threshold_asks_the_planner():
    scores = torch.tensor([[0.1, -3.0, 0.2], [0.3, -3.0, 0.2], [0.1, -1.0, 0.2], [0.1, -3.0, 0.5]])
    assert DraftGate(0.2, -2.0, 0.4)(scores).tolist() == [False, True, True, True]
    assert DraftGate(doubt=0.2)(scores).tolist() == [False, True, False, False]
    assert not DraftGate()(scores).any()


# ------------------------------------------------------------------------------------------------------- controller


def observations(decisions, batch, seed=5):
    return torch.randn(decisions, batch, OBS, generator=torch.Generator().manual_seed(seed))


def test_without_a_planner_it_does_what_the_draft_says():
    wm, draft = tiny_model(), random_draft()
    controller, seen = DraftController(wm, draft, mode="eager"), observations(4, 3)
    controller.reset(3)
    for obs in seen:
        action, info = controller.act(obs)
        z = wm.encode(obs)
        torch.testing.assert_close(action, draft(z, wm.policy(z)[0])[0])
        assert not info["planner_called"].any() and not info["depth"].any() and info["mismatch"].isnan().all()
    controller.reset(1)
    assert controller.act(seen[0, 0].numpy())[0].shape == (ACTIONS,)


def slow_episode(wm, draft, gate, config, horizon, seen, seed):
    """One episode, decision by decision, in plain words: actions and (called, depth)."""
    planner, stream, doubt_at, value_at, drift_at = MPPI(wm, config), streams(seed), *gate.thresholds.tolist()
    plan, left, z_pred, found = [], [], None, []  # what is executed of the latest plan, and what is left of it
    for t, obs in enumerate(seen):
        z = wm.encode(obs[None])
        a_policy = wm.policy(z)[0]
        drafted, doubt = draft(z, a_policy)
        predicted = z if z_pred is None else z_pred
        scores = DraftGate(looks=SCORES).scores(wm, z, predicted, a_policy, drafted, doubt)[0].tolist()
        drifted, called, depth = scores[2] > drift_at, False, 0
        if plan and not drifted:
            depth, action = horizon - len(plan), plan.pop(0)
        else:
            plan, action = [], drafted
            if scores[0] > doubt_at or scores[1] > value_at or drifted:
                start, ahead = list(left), z
                for k in range(config.horizon):
                    if k == len(start):
                        start.append(draft(ahead, wm.policy(ahead)[0])[0])
                    ahead = wm.next(ahead, start[k])
                planner.reset_streams(t)
                solved = planner(z, torch.stack(start, 1), stream).actions
                called, action = True, solved[:, 0]
                plan = [solved[:, k] for k in range(1, horizon)]
                left = [solved[:, k] for k in range(config.horizon)]
        left, z_pred = left[1:], wm.next(z, action)
        found.append((action[0], called, depth))
    return found


@pytest.mark.parametrize("horizon", [1, 2, 3])
@pytest.mark.parametrize("parts", [(0.5, math.inf, math.inf), (math.inf, 0.5, math.inf), (math.inf, math.inf, 0.5),
                                   (0.8, 0.8, 0.6)])  # fmt: skip
def test_the_planner_is_asked_where_the_gate_says_and_its_plan_executed_while_it_holds(horizon, parts):
    wm, draft, config, seeds = tiny_model(num_q=4), random_draft(), PlannerConfig.budget(16, 2, mode="eager"), [3, 4, 5]
    seen = observations(12, 3)
    free = DraftController(wm, draft, MPPI(wm, config), DraftGate(looks=SCORES), horizon)
    free.reset(3)
    scores = torch.stack([torch.stack([free.act(obs)[1][name] for name in SCORES], -1) for obs in seen]).flatten(0, 1)
    levels = [scores[:, i].quantile(q).item() if q < 1 else q for i, q in enumerate(parts)]
    gate = DraftGate(*levels)
    controller = DraftController(wm, draft, MPPI(wm, config), gate, horizon)
    controller.reset(3, streams(*seeds))
    done = [controller.act(obs) for obs in seen]
    called = torch.stack([info["planner_called"] for _, info in done])
    assert called.any() and not called.all()
    if horizon > 1:
        assert any(info["depth"].any() for _, info in done)
    for row, seed in enumerate(seeds):
        for t, (action, asked, depth) in enumerate(slow_episode(wm, draft, gate, config, horizon, seen[:, row], seed)):
            assert bool(called[t, row]) == asked and int(done[t][1]["depth"][row]) == depth
            torch.testing.assert_close(done[t][0][row], action, rtol=0, atol=2e-4)


def test_a_gate_that_asks_for_nothing_leaves_the_draft_alone():
    wm, draft, seen = tiny_model(), random_draft(), observations(5, 2)
    alone, gated = DraftController(wm, draft, mode="eager"), DraftController(wm, draft, MPPI(wm, BUDGET), DraftGate())
    for controller in (alone, gated):
        controller.reset(2)
    for obs in seen:
        torch.testing.assert_close(alone.act(obs)[0], gated.act(obs)[0])


def test_rows_that_are_kept_go_on_as_before():
    wm, draft, seen = tiny_model(num_q=4), random_draft(), observations(8, 3)
    free = DraftController(wm, draft, mode="eager")
    free.reset(3)
    gate = DraftGate(doubt=torch.stack([free.act(obs)[1]["doubt"] for obs in seen]).median())  # rows differ in phase
    whole, part = (DraftController(wm, draft, MPPI(wm, BUDGET), gate) for _ in range(2))
    for controller in (whole, part):
        controller.reset(3, streams(1, 2, 3))
    for t, obs in enumerate(seen):
        if t == 4:
            part.keep([0, 2])
        expected = whole.act(obs)[0]
        got = part.act(obs if t < 4 else obs[[0, 2]])[0]
        torch.testing.assert_close(got, expected if t < 4 else expected[[0, 2]], rtol=0, atol=2e-4)


def test_what_cannot_act_is_refused():
    wm, draft = tiny_model(), random_draft()
    with pytest.raises(ConfigError, match="the draft was made for latent 8 and 2 actions, the world model has 16"):
        DraftController(wm, Draft(8, ACTIONS))
    for pieces in ((MPPI(wm, BUDGET), None), (None, DraftGate()), (MPPI(tiny_model(), BUDGET), DraftGate())):
        with pytest.raises(ConfigError, match="a planner of its own world model and a gate, or neither"):
            DraftController(wm, draft, *pieces)
    with pytest.raises(ConfigError, match="execution_horizon=4 must lie between 1 and the plan's 3"):
        DraftController(wm, draft, MPPI(wm, BUDGET), DraftGate(), 4)
    controller = DraftController(wm, draft, mode="eager")
    controller.reset(1)
    with pytest.raises(ValueError, match="not finite"):
        controller.act(torch.full((1, OBS), torch.nan))
