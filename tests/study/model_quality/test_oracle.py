"""The oracle against `lib.environments`: the same starts, steps and observations; states that come back to the bit."""

import numpy as np
import pytest

from lib.config import ConfigError
from lib.environments import make_env
from lib.study.model_quality.oracle import SCORED, Oracle

TASKS = list(SCORED)


@pytest.fixture(scope="module", params=TASKS)
def oracle(request):
    return Oracle(request.param)


def drawn(oracle, *shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, oracle.action_dim))


def played(oracle, actions):
    """Rewards (T, 2) and the states after each action (T, A)."""
    rewards, states = [], []
    for action in actions:
        rewards.append(oracle.step(action))
        states.append(oracle.save())
    return np.array(rewards), states


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_it_steps_as_the_environment_does(oracle):
    env = make_env(oracle.task)
    obs, _ = env.reset(seed=5)
    start, dim = oracle.reset(5), oracle.scored.obs_dim
    np.testing.assert_allclose(start.features[:dim], obs, rtol=1e-6, atol=1e-7)
    for action in drawn(oracle, 12).astype(np.float32):
        obs, reward, *_ = env.step(action)
        frames = oracle.step(action)
        assert frames.shape == (2,) and frames[0] + frames[1] == reward
        np.testing.assert_allclose(oracle.save().features[:dim], obs, rtol=1e-6, atol=1e-7)
    assert oracle.reward() == frames[1]


def test_features_are_those_of_dm_control(oracle):
    oracle.reset(1)
    for action in drawn(oracle, 6):
        oracle.step(action)
        physics, task = oracle._dm.physics, oracle._dm.task
        native = np.concatenate([np.ravel(v) for v in task.get_observation(physics).values()])
        seen, dim = oracle.save().features, oracle.scored.obs_dim
        np.testing.assert_allclose(seen[:dim], native, rtol=0, atol=1e-12)
        if oracle.task == "walker-walk":
            assert seen[dim:] == [physics.horizontal_velocity()]
        assert len(seen) == dim + (oracle.task == "walker-walk")


def test_a_state_that_is_set_goes_on_to_the_bit(oracle):
    oracle.reset(2)
    actions = drawn(oracle, 16)
    for action in actions[:10]:  # walker touches the ground: the solver's warm start counts
        oracle.step(action)
    middle = oracle.save()
    rewards, states = played(oracle, actions[10:])
    for other in (oracle, Oracle(oracle.task)):
        other.reset(77)  # elsewhere, with another target
        other.step(actions[0])
        other.set(middle)
        assert same(other.save(), middle)
        again, others = played(other, actions[10:])
        assert np.array_equal(again, rewards) and all(map(same, others, states))


def test_dm_controls_own_state_would_not_do():
    """The warm start matters: without it walker goes elsewhere, so that the test above can fail."""
    oracle = Oracle("walker-walk")
    oracle.reset(2)
    for action in drawn(oracle, 12):
        oracle.step(action)
    state = oracle.save()
    rewards, states = played(oracle, drawn(oracle, 6, seed=1))
    with oracle._dm.physics.reset_context():
        oracle._dm.physics.set_state(state.integration[1 : 1 + 18])
    _, others = played(oracle, drawn(oracle, 6, seed=1))
    np.testing.assert_allclose(others[-1].features, states[-1].features, atol=1e-6)
    assert not np.array_equal(others[-1].integration[1:19], states[-1].integration[1:19])


def test_the_target_of_reacher_is_part_of_the_state():
    oracle = Oracle("reacher-easy")
    first, second = oracle.reset(1), oracle.reset(2)
    assert not np.array_equal(first.geometry, second.geometry)
    oracle.set(first)
    assert same(oracle.save(), first) and not np.array_equal(oracle.save().features, second.features)
    both = drawn(oracle, 1, 4, 3).repeat(2, axis=0)
    seen = oracle.imagine([first, second], both)
    for state, mine in zip((first, second), seen, strict=True):
        np.testing.assert_array_equal(oracle.imagine([state], both[:1])[0], mine)


def test_imagining_is_stepping_from_every_state_with_every_sequence(oracle, monkeypatch):
    states = []
    for seed in (3, 4):
        oracle.reset(seed)
        for action in drawn(oracle, 8, seed=seed):
            oracle.step(action)
        states.append(oracle.save())
    before, actions = oracle.save(), drawn(oracle, 2, 3, 4)
    actions[0, 0] *= 3  # clipped
    monkeypatch.setattr("lib.study.model_quality.oracle.ROLLS", 4)  # several parts
    seen = oracle.imagine(states, actions)
    assert same(oracle.save(), before)  # nothing has moved
    for state, sequences, mine in zip(states, actions, seen, strict=True):
        for sequence, features in zip(sequences, mine, strict=True):
            oracle.set(state)
            np.testing.assert_array_equal(features, [s.features for s in played(oracle, sequence)[1]])


def test_scores_are_the_tasks_own_terms():
    rng = np.random.default_rng(0)
    for task in TASKS:
        oracle = Oracle(task)
        oracle.reset(6)
        for action in rng.uniform(-1, 1, (5, oracle.action_dim)):
            oracle.step(action)
            physics = oracle._dm.physics
            score = oracle.scored.score(oracle.save().features)
            if task == "cartpole-swingup":
                assert score == pytest.approx(physics.pole_angle_cosine().item(), abs=1e-12)
            elif task == "reacher-easy":
                assert score == pytest.approx(-physics.finger_to_target_dist(), abs=1e-12)
    score = SCORED["walker-walk"].score
    stands = np.zeros(25)
    stands[[0, 14, 24]] = 1, 1.25, 1.5  # upright, m, m/s
    halves = np.stack([stands] * 4)
    halves[1, 0], halves[2, 24], halves[3, 14] = 0, 0, 0.6
    np.testing.assert_allclose(score(halves), [1, 0.5, 1 / 6, 0.1], atol=1e-12)
    # The reward is 1 where the score is, and for the same factors.
    assert Oracle("walker-walk")._dm.task._move_speed == 1 and score(stands) == 1


def test_action_sets_are_those_of_the_study():
    assert SCORED["cartpole-swingup"].actions.ravel().tolist() == [-1, -0.5, 0, 0.5, 1]
    assert sorted(map(tuple, SCORED["reacher-easy"].actions)) == [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    walker = SCORED["walker-walk"].actions
    assert walker.shape == (64, 6) and np.abs(walker).max() <= 1 and len(np.unique(walker, axis=0)) == 64
    assert [SCORED[task].success for task in TASKS] == [0.6, 0.5, 0.6]


def test_a_task_without_a_score_is_a_sentence():
    with pytest.raises(ConfigError, match="task='walker-wakl' is not known; use one of: cartpole-swingup"):
        Oracle("walker-wakl")
