"""Episodes as they are played, the replay buffer, and its files."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy import stats

from lib.planner import MPPI
from lib.teachers.controllers import ReplanningController
from lib.teachers.replay import Episode, EpisodeFileError, ReplayBuffer, load_episodes, record, save_episodes
from tests.tiny import BUDGET, fresh_env, tiny_model


def episode(number, length):
    """Everything in it says where it comes from: (episode, time) as observation, action and reward."""
    time = np.arange(length + 1, dtype=np.float32)
    obs = np.stack([np.full(length + 1, number, np.float32), time], 1)
    return Episode(obs, obs[:-1].copy(), 1000 * np.float32(number) + time[:-1])


def buffer(lengths, capacity=None, seed=0):
    made = ReplayBuffer(capacity or sum(lengths), 2, 2, seed)
    for number, length in enumerate(lengths):
        made.add(episode(number, length))
    return made


# ---------------------------------------------------------------------------------------------------------- sampling


def test_sequences_are_consecutive_and_never_cross_episodes():
    batch = buffer([5, 3, 9, 2, 4]).sample(4000, horizon=3)
    assert batch.obs.shape == (4, 4000, 2) and batch.actions.shape == (3, 4000, 2) and batch.rewards.shape == (3, 4000)
    number, time = batch.obs.unbind(-1)
    assert (number == number[0]).all()
    assert torch.equal(time, time[0] + torch.arange(4)[:, None])
    assert torch.equal(batch.actions, batch.obs[:-1])  # action and reward t belong to observation t
    assert torch.equal(batch.rewards, 1000 * number[:-1] + time[:-1])
    assert set(number[0].tolist()) == {0, 1, 2, 4}  # episode 3 is too short


def test_start_positions_are_uniform():
    lengths, horizon = [5, 3, 9, 2, 4], 3
    batch = buffer(lengths, seed=4).sample(20_000, horizon)
    starts, counts = np.unique(batch.rewards[0].numpy(), return_counts=True)
    wanted = [1000 * n + t for n, length in enumerate(lengths) for t in range(length - horizon + 1)]
    assert starts.tolist() == wanted  # the last valid start of each episode included, and nothing behind it
    assert stats.chisquare(counts).pvalue > 1e-3


def test_an_episode_of_just_the_horizon_has_one_start():
    batch = buffer([3]).sample(50, 3)
    assert (batch.rewards[0] == 0).all() and (batch.obs[-1, :, 1] == 3).all()  # up to the very last observation


def test_sampling_follows_the_seed():
    a, b, c = buffer([20], seed=1), buffer([20], seed=1), buffer([20], seed=2)
    first = a.sample(30, 2).rewards
    assert torch.equal(first, b.sample(30, 2).rewards) and not torch.equal(first, c.sample(30, 2).rewards)
    assert not torch.equal(first, a.sample(30, 2).rewards)


def test_a_batch_is_a_copy():
    made = buffer([20])
    batch = made.sample(5, 2)
    batch.obs.zero_()
    assert made.episodes()[0].obs[:, 1].tolist() == list(range(21))


def test_too_short_episodes_cannot_be_sampled():
    for made in (buffer([2, 2]), ReplayBuffer(10, 2, 2)):
        with pytest.raises(ValueError, match="no stored episode is 3 decisions long"):
            made.sample(4, 3)


# ------------------------------------------------------------------------------------------------------------- adding


def test_length_and_episodes():
    made = buffer([5, 3], capacity=50)
    assert len(made) == 8
    for number, stored in enumerate(made.episodes()):
        for name in ("obs", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(episode(number, len(stored)), name))


def test_the_capacity_is_decisions_and_overflow_is_refused():
    made = buffer([2] * 25, capacity=50)  # the shortest episodes need the most spare rows
    assert len(made) == 50
    with pytest.raises(ValueError, match=r"the replay buffer is full \(50 decisions\)"):
        for _ in range(30):
            made.add(episode(0, 2))
    whole = buffer([50], capacity=50)
    assert len(whole) == 50 and whole.sample(3, 3).obs.shape == (4, 3, 2)
    with pytest.raises(ValueError, match="is full"):
        whole.add(episode(1, 50))
    assert len(whole) == 50


@pytest.mark.parametrize("field, value", [("obs", np.nan), ("rewards", np.inf), ("actions", np.nan)])
def test_episodes_with_non_finite_values_are_refused(field, value):
    bad, made = episode(0, 5), ReplayBuffer(20, 2, 2)
    getattr(bad, field)[2] = value
    with pytest.raises(ValueError, match="non-finite"):
        made.add(bad)
    assert len(made) == 0


def test_episodes_of_unequal_parts_are_refused():
    whole = episode(0, 5)
    for obs, actions in ((whole.obs[:-1], whole.actions), (whole.obs, whole.actions[1:])):
        with pytest.raises(ValueError, match="an episode of 5 rewards needs 6 observations and 5 actions"):
            ReplayBuffer(20, 2, 2).add(Episode(obs, actions, whole.rewards))


# -------------------------------------------------------------------------------------------------------------- files


def test_files_round_trip_exactly(tmp_path):
    rng = np.random.default_rng(0)
    episodes = [
        Episode(*(rng.normal(size=shape).astype(np.float32) for shape in ((n + 1, 3), (n, 2), (n,)))) for n in (4, 1, 7)
    ]
    save_episodes(tmp_path / "episodes.safetensors", episodes)
    again = load_episodes(tmp_path / "episodes.safetensors")
    assert [len(e) for e in again] == [4, 1, 7]
    for before, after in zip(episodes, again, strict=True):
        for name in ("obs", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
            assert getattr(after, name).dtype == np.float32


def arrays(**changes):
    one = episode(0, 5)
    return dict(obs=one.obs, actions=one.actions, rewards=one.rewards, lengths=np.array([5])) | changes


BAD = {
    "no lengths": (lambda a: a.pop("lengths"), "is not a file of episodes"),
    "no episodes": (lambda a: a.update(lengths=np.array([], np.int64)), "holds no episodes"),
    "negative length": (lambda a: a.update(lengths=np.array([-1, 6])), "holds no episodes|cut short"),
    "short": (lambda a: a.update(rewards=a["rewards"][:-1]), "is cut short: 5 decisions are announced, 4 rewards"),
    "float lengths": (lambda a: a.update(lengths=np.array([5.0])), "other dimensions or types"),
    "scalar lengths": (lambda a: a.update(lengths=np.array(5)), "other dimensions or types"),
    "flat obs": (lambda a: a.update(obs=a["obs"][:, 0].copy()), "other dimensions or types"),
    "short obs": (lambda a: a.update(obs=a["obs"][:-1]), "is cut short"),
    "nan": (lambda a: a["obs"].__setitem__((2, 1), np.nan), "not finite"),
    "nan action": (lambda a: a["actions"].__setitem__((2, 1), np.inf), "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_files_are_refused(name, tmp_path):
    edit, message = BAD[name]
    content = arrays()
    edit(content)
    save_file(content, tmp_path / "bad.safetensors")
    with pytest.raises(EpisodeFileError, match=f"bad.safetensors.*({message})"):
        load_episodes(tmp_path / "bad.safetensors")


def test_files_of_another_kind_are_refused(tmp_path):
    save_episodes(tmp_path / "good.safetensors", [episode(0, 5)])
    whole = (tmp_path / "good.safetensors").read_bytes()
    contents = {"empty": b"", "cut": whole[:-10], "pickle": pickle.dumps([episode(0, 5)]), "text": b"hello"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "missing"):
        with pytest.raises(EpisodeFileError, match=f"{name} is not a file of episodes"):
            load_episodes(tmp_path / name)


def test_an_episode_is_recorded_with_what_it_led_to():
    """The slow twin plays one episode after the other by hand."""
    envs = fresh_env()
    envs.ends[32] = 4
    seeds, controller = [31, 32], ReplanningController(MPPI(tiny_model(), BUDGET))
    played = record(controller, envs, seeds, 6)
    assert [len(e) for e in played] == [6, 4]
    for seed, episode in zip(seeds, played, strict=True):
        env = envs("tiny-task")
        obs = [env.reset(seed=seed)[0]]
        rewards = []
        for action in episode.actions:
            o, reward, *_ = env.step(action)
            obs.append(o), rewards.append(reward)
        np.testing.assert_array_equal(episode.obs, obs)
        np.testing.assert_allclose(episode.rewards, rewards, rtol=1e-6)
    again = record(controller, envs, seeds, 6)  # one after the other, with the same planner
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(played, again, strict=True))
    assert record(controller, envs, [], 6) == []
