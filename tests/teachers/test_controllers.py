"""Who plays episodes to learn from: what is planned, added, drawn and remembered."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from lib.planner import MPPI
from lib.teachers.controllers import RandomController, ReplanningController
from tests.tiny import ACTIONS, BUDGET, OBS, streams, tiny_model


def acted(controller, obs, seeds):
    """The actions (T, B, A) at observations (T, B, obs_dim), from a reset."""
    controller.reset(len(seeds), streams(*seeds))
    return torch.stack([controller.act(o)[0] for o in obs])


def test_undisturbed_it_is_the_planner_with_its_plan_moved_by_one(num_q=5):
    """With more heads than are drawn the planner's own stream matters: it goes on, and begins anew with an episode."""
    wm, obs, seeds = tiny_model(num_q=num_q), torch.randn(4, 3, OBS), [1, 2, 3]
    planner, warm, noise, expected = MPPI(wm, BUDGET), None, streams(*seeds), []
    for o in obs:
        plan = planner(wm.encode(o), warm, noise)
        warm = plan.shifted(1)
        expected.append(plan.actions[:, 0])
    assert torch.equal(acted(ReplanningController(MPPI(wm, BUDGET)), obs, seeds), torch.stack(expected))
    assert torch.equal(acted(ReplanningController(planner), obs, seeds), torch.stack(expected))
    other = acted(ReplanningController(planner, heads_seed=1), obs, seeds)
    assert not torch.equal(other, torch.stack(expected))  # else the stream does not matter here


def test_kept_rows_go_on_with_their_streams_and_plans():
    obs = torch.randn(4, 3, OBS)
    for controller in (ReplanningController(MPPI(tiny_model(), BUDGET), 0.1), RandomController(ACTIONS)):
        whole = acted(controller, obs, [1, 2, 3])
        controller.reset(3, streams(1, 2, 3))
        parts = [controller.act(obs[0])[0][[0, 2]]]
        controller.keep([0, 2])
        parts += [controller.act(o[[0, 2]])[0] for o in obs[1:]]
        torch.testing.assert_close(torch.stack(parts), whole[:, [0, 2]], rtol=0, atol=1e-4)
        alone = acted(controller, obs[:, [1]], [2])  # each seed has its own episode, whoever its neighbours are
        torch.testing.assert_close(alone, whole[:, [1]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", ["noise", "exploration"])
def test_noise_has_the_deviation_asked_for_and_is_clipped(how):
    """The exploring teacher's is that of its plan, which is 0.05 here."""
    obs, seeds = torch.randn(1, 300, OBS, generator=torch.Generator().manual_seed(0)), range(300)
    planner = MPPI(tiny_model(), dataclasses.replace(BUDGET, min_std=0.05, max_std=0.05))
    scale = 0.05 if how == "noise" else 1.0
    plain, noisy = (acted(ReplanningController(planner, **{how: by}), obs, seeds) for by in (0.0, scale))
    assert plain.abs().max() <= 1 and torch.equal(plain, acted(ReplanningController(planner), obs, seeds))
    added = (noisy - plain)[plain.abs() < 0.7]
    assert added.std().item() == pytest.approx(0.05, rel=0.1) and added.mean().abs() < 0.005
    assert acted(ReplanningController(planner, **{how: 100 * scale}), obs, seeds).abs().max() == 1


def test_warm_starts_know_nothing_of_the_noise():
    plain, noisy = (ReplanningController(MPPI(tiny_model(), BUDGET), noise) for noise in (0.0, 0.5))
    for controller in (plain, noisy):
        acted(controller, torch.ones(1, 2, OBS), [1, 2])
    assert torch.equal(plain._warm, noisy._warm)


def test_random_actions_are_uniform_and_independent():
    actions = acted(RandomController(ACTIONS), torch.zeros(2000, 2, OBS), [5, 6]).flatten(1).numpy()
    assert stats.kstest(actions.ravel(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(actions[1:, 0], actions[:-1, 0])[0, 1]) < 0.1
    assert np.abs(np.corrcoef(actions.T) - np.eye(2 * ACTIONS)).max() < 0.1
