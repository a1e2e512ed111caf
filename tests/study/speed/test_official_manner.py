"""The yardstick computes what our planner and our learner compute, and shares the model's weights."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lib.config import PlannerConfig, WorldModelConfig
from lib.planner import MPPI
from lib.records.paths import ROOT
from lib.study.speed.official_manner import OfficialLearner, OfficialPlanner, soft_cross_entropy, two_hot
from lib.teachers.config import TeacherConfig
from lib.teachers.learner import Learner
from lib.teachers.replay import Batch
from lib.weights.native import load_world_model
from lib.world_model import WorldModel
from lib.world_model import two_hot as our_two_hot

TINY_MT30 = ROOT / "tests" / "fixtures" / "official_tiny_mt30_new.pt"
OBS = 7


def random_model(action_dim, seed=0, dropout=0.0):
    """A small model, random in every layer: with fresh, zero last layers every plan would be worth the same."""
    torch.manual_seed(seed)
    wm = WorldModel(WorldModelConfig(OBS, action_dim, 16, 24, 32, 2, 4, discount=0.9, q_dropout=dropout))
    with torch.no_grad():
        for p in wm.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return wm


def config(**changes):
    settings = dict(samples=40, iterations=3, elites=8, policy_samples=6, horizon=3, mode="eager")
    return PlannerConfig(**settings | changes)


def both_plan(wm, c, batch, warm=True):
    """Our plan, after comparing all of it with the twin's from the same noise."""
    wm.eval().requires_grad_(False)
    g = torch.Generator().manual_seed(3)
    z = wm.encode(torch.randn(batch, wm.native_obs_dim, generator=g))
    warm = 0.5 * torch.randn(batch, c.horizon, wm.action_dim, generator=g) if warm else None
    planner = MPPI(wm, c)
    noise = planner.draw_noise(batch, g)
    plan = planner(z, warm, noise=noise)
    for name, theirs in zip(("actions", "mean", "std"), OfficialPlanner(wm, c)(z, warm, noise=noise), strict=True):
        torch.testing.assert_close(getattr(plan, name), theirs, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    return plan


# ------------------------------------------------------------------------------------------------------------- planner


@pytest.mark.parametrize("selection", ["mean", "sample"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("action_dim", [1, 6, 21])
def test_the_twin_plans_what_mppi_plans(action_dim, batch, selection):
    plan = both_plan(random_model(action_dim), config(action_selection=selection), batch)
    assert plan.mean.std() > 0.01 and 0.05 < plan.std.max() and plan.std.min() < 2  # a plan, not a constant


@pytest.mark.parametrize("c", [config(policy_samples=0), config(horizon=1), config(iterations=1), config(elites=40)])
def test_the_twin_plans_what_mppi_plans_at_the_edges_of_the_budget(c):
    both_plan(random_model(2), c, 2, warm=False)


def test_the_twin_takes_a_bound_multi_task_model():
    wm = load_world_model(TINY_MT30, task="cartpole-swingup")
    assert wm.config.action_padding and wm.config.obs_padding
    both_plan(wm, config(), 2)
    obs = torch.randn(3, wm.native_obs_dim)
    torch.testing.assert_close(OfficialPlanner(wm).net.encode(obs), wm.encode(obs))


def test_the_twin_reads_the_models_own_tensors():
    wm, c = random_model(2), config()
    twin, z = OfficialPlanner(wm, c), torch.randn(1, 32).softmax(-1)
    noise = MPPI(wm, c).draw_noise(1, torch.Generator().manual_seed(0))
    before = twin(z, noise=noise)
    for part in (wm.dynamics, wm.reward_head, wm.pi, wm.q_heads):
        kept = copy.deepcopy(part.state_dict())
        with torch.no_grad():
            for p in part.parameters():
                p.mul_(1.5)
        assert not torch.allclose(twin(z, noise=noise)[1], before[1], atol=1e-3)
        part.load_state_dict(kept)
    assert torch.equal(twin(z, noise=noise)[1], before[1])


def test_the_twin_draws_its_own_noise_and_leaves_dropout_off():
    wm, c = random_model(2, dropout=0.5).train(), config(action_selection="sample")
    twin, z = OfficialPlanner(wm, c), torch.randn(2, 32).softmax(-1)
    noise = MPPI(wm, c).draw_noise(2, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(twin(z, noise=noise), twin(z, noise=noise), strict=True))
    first, second = twin(z), twin(z)
    assert first[0].shape == (2, 3, 2) and not torch.equal(first[1], second[1])
    assert all(torch.isfinite(x).all() and not x.requires_grad for x in first)


# ------------------------------------------------------------------------------------------------------------- learner


@pytest.fixture
def double():
    """Adam divides by the size of the gradient: in single precision, rounding alone moves parameters differently."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(seed, size=8, horizon=3, action_dim=2):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(horizon + 1, size, OBS, generator=g),
        2 * torch.rand(horizon, size, action_dim, generator=g) - 1,
        3 * torch.rand(horizon, size, generator=g),
    )


def test_three_updates_move_every_parameter_as_our_learner_does(double):
    # A large tau, and values far apart: the target heads and the scale must take part within three updates.
    c = TeacherConfig(compile=False, batch_size=8, tau=0.3, entropy_coef=0.1, grad_clip=0.3)
    start = random_model(2)
    with torch.no_grad():
        start.q_heads.layers[-1].weight.mul_(20)
    learners = [kind(copy.deepcopy(start), c) for kind in (Learner, OfficialLearner)]
    losses = []
    for learner in learners:
        torch.manual_seed(11)
        losses.append([learner.update(batch(seed)) for seed in range(3)])
    for ours, theirs in zip(*losses, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-7), name
    assert losses[0][0]["grad_norm"] > c.grad_clip and learners[1].scale > 1.01
    pairs = zip(start.named_parameters(), *(x.wm.parameters() for x in learners), strict=True)
    for (name, before), ours, theirs in pairs:
        assert (ours - before).abs().max() > 1e-4, name
        torch.testing.assert_close(theirs - before, ours - before, rtol=1e-4, atol=1e-8, msg=lambda m, n=name: n + m)


def test_an_update_drops_out_the_live_heads_and_leaves_planning_alone():
    learner = OfficialLearner(random_model(2, dropout=0.5), TeacherConfig(compile=False, batch_size=8, lr=0.0))
    twin = OfficialPlanner(learner.wm, config())
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        values.append(learner.update(batch(0))["value"])
    assert values[0] != values[1] and not learner.net.training and not twin.net.training


def test_the_two_hot_scatter_and_cross_entropy_are_ours():
    x = torch.cat([100 * torch.randn(50), torch.tensor([0.0, 1e6, -1e6])])
    torch.testing.assert_close(two_hot(x[:, None], 101, 10.0), our_two_hot(x), rtol=0, atol=1e-5)
    logits = torch.randn(53, 101)
    expected = F.cross_entropy(logits, our_two_hot(x), reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, x[:, None], 10.0)[:, 0], expected, rtol=1e-4, atol=1e-4)
