"""The loop: what it yields, in what order, whose episodes end, and the random streams that belong to a seed."""

from functools import partial

import numpy as np
import pytest
import torch

from lib.environments import EnvironmentFailed, make_env
from lib.rollout import rollout
from lib.teachers.controllers import RandomController
from tests.tiny import ACTIONS, fresh_env


class Noted:
    """Draws each row's action from its own stream, and notes what it is told."""

    def __init__(self):
        self.told = []

    def reset(self, batch_size=1, generators=None):
        self.generators = generators
        self.told.append(("reset", batch_size))

    def keep(self, rows):
        self.generators = [self.generators[i] for i in rows]
        self.told.append(("keep", rows))

    def act(self, obs):
        assert obs.dtype == torch.float32 and len(obs) == len(self.generators)
        action = torch.stack([2 * torch.rand(ACTIONS, generator=g) - 1 for g in self.generators])
        return action, {"first": obs[:, 0], "flag": action[:, 0] > 0}


@pytest.mark.parametrize("made", [False, True])
def test_each_seed_has_its_own_episode_whoever_makes_the_environments(made):
    """The slow twin plays one episode after the other by hand."""
    env, seeds, controller = fresh_env(), [5, 6, 7], Noted()
    env.ends = {5: 3, 7: 2}
    steps = list(rollout(controller, [env("tiny") for _ in seeds] if made else lambda seed: env("tiny"), seeds, 4))
    assert [step.rows for step in steps] == [[0, 1, 2], [0, 1, 2], [0, 1], [1]]
    assert [step.terminated.tolist() for step in steps] == [[False] * 3, [False, False, True], [True, False], [False]]
    assert controller.told == [("reset", 3), ("keep", [0, 1]), ("keep", [1])]
    for number, seed in enumerate(seeds):
        world, stream = env("tiny"), torch.Generator().manual_seed(seed)
        obs = world.reset(seed=seed)[0]
        for step in (step for step in steps if number in step.rows):
            row, action = step.rows.index(number), (2 * torch.rand(ACTIONS, generator=stream) - 1).numpy()
            assert np.array_equal(step.obs[row], obs) and np.array_equal(step.actions[row], action)
            obs, reward, *_ = world.step(action)
            assert np.array_equal(step.next_obs[row], obs) and step.rewards[row] == reward
            assert step.info["first"][row] == step.obs[row, 0] and step.info["flag"][row] == (action[0] > 0)


@pytest.mark.parametrize("lost", [np.nan, np.inf, None], ids=["no reward", "infinite reward", "no observation"])
def test_where_the_simulator_diverges_the_step_is_left_out_and_the_others_go_on(lost, capsys):
    env, seeds, controller = fresh_env(), [5, 6, 7], Noted()
    env.ends = {7: 3}
    whole = list(rollout(controller, env, seeds, 4))

    class Lost(env):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            if (self.seed, self.decision) != (6, 3):
                return obs, reward, terminated, truncated, info
            return (obs, lost, terminated, truncated, info) if lost else (obs * np.nan, reward, False, False, info)

    controller, said = Noted(), capsys.readouterr().err
    steps = list(rollout(controller, Lost, seeds, 4, "an arm"))
    assert [step.rows for step in steps] == [[0, 1, 2], [0, 1, 2], [0, 2], [0]]
    assert controller.told == [("reset", 3), ("keep", [0, 2]), ("keep", [0])]
    for step, other in zip(steps, whole, strict=True):
        rows = [other.rows.index(i) for i in step.rows]
        for name in ("obs", "actions", "rewards", "next_obs"):
            assert np.array_equal(getattr(step, name), getattr(other, name)[rows])
        assert all(np.array_equal(step.info[k], other.info[k][rows]) for k in other.info)
    assert "diverged" not in said
    where = "an arm: the simulator diverged at decision 2 of the episode with seed 6, which ends there\n"
    assert where in capsys.readouterr().err


def test_a_batch_that_diverges_as_a_whole_is_over():
    env, controller = fresh_env(), Noted()
    env.breaks = {1: 2, 2: 2, 3: 1}
    assert [step.rows for step in rollout(controller, env, [1, 2, 3], 5)] == [[0, 1]]
    assert list(rollout(Noted(), env, [3], 5)) == []


def test_an_episode_of_one_or_none():
    env, controller = fresh_env(), Noted()
    env.ends = {1: 2}
    assert [step.rewards.shape for step in rollout(controller, env, [1], 5)] == [(1,), (1,)]
    assert list(rollout(controller, env, [], 5)) == [] and list(rollout(controller, env, [1], 0)) == []


def test_a_bar_is_drawn_only_with_a_label(capsys):
    for what in ("", "an arm"):
        list(rollout(Noted(), fresh_env(), [1], 2, what))
        assert ("an arm" in capsys.readouterr().err) == bool(what)


@pytest.mark.parametrize(("seed", "why"), [(1, "RuntimeError: a cable broke"), (2, "is not finite")])
def test_an_environment_of_others_that_fails_ends_the_evaluation(seed, why):
    envs, controller = partial(make_env, "tests.own_envs:Failing"), RandomController(1)
    played = []
    with pytest.raises(
        EnvironmentFailed, match=f"Failing, decision 1: .*{why}.*; this was the episode with seed {seed}"
    ):
        for step in rollout(controller, envs, [0, seed], 10):
            played.append(step.rows)
    assert played == [[0, 1]]
