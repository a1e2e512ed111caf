"""Episodes as they are played, the replay buffer, and its files."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy import stats

from lib.planner import MPPI
from lib.teachers.controllers import RandomController, ReplanningController
from lib.teachers.replay import (
    Episode,
    EpisodeFileError,
    ReplayBuffer,
    join_episodes,
    load_episodes,
    record,
    save_episodes,
)
from tests.tiny import ACTIONS, BUDGET, fresh_env, tiny_model


def episode(number, length, terminated=False):
    """Everything in it says where it comes from: (episode, time) as observation, action and reward."""
    time = np.arange(length + 1, dtype=np.float32)
    obs = np.stack([np.full(length + 1, number, np.float32), time], 1)
    return Episode(obs, obs[:-1].copy(), 1000 * np.float32(number) + time[:-1], terminated)


def buffer(lengths, capacity=None, seed=0):
    made = ReplayBuffer(capacity or sum(lengths), 2, 2, seed)
    for number, length in enumerate(lengths):
        made.add(episode(number, length))
    return made


def assert_same(episodes, others):
    for one, other in zip(episodes, others, strict=True):
        assert one.terminated == other.terminated
        for array, twin in ((getattr(one, name), getattr(other, name)) for name in ("obs", "actions", "rewards")):
            np.testing.assert_array_equal(array, twin)
            assert array.dtype == twin.dtype == np.float32


WHOLE = episode(0, 5)


def spoilt(name, value):
    """One part of an episode of five decisions, with a value at time 2."""
    array = getattr(WHOLE, name).copy()
    array[2] = value
    return {name: array}


# ---------------------------------------------------------------------------------------------------------- sampling


def test_sequences_are_consecutive_and_never_cross_episodes():
    batch = buffer([5, 3, 9, 2, 4]).sample(4000, horizon=3)
    assert batch.obs.shape == (4, 4000, 2) and batch.actions.shape == (3, 4000, 2) and batch.rewards.shape == (3, 4000)
    number, time = batch.obs.unbind(-1)
    assert (number == number[0]).all()
    assert torch.equal(time, time[0] + torch.arange(4)[:, None])
    assert torch.equal(batch.actions, batch.obs[:-1])  # action and reward t belong to observation t
    assert torch.equal(batch.rewards, 1000 * number[:-1] + time[:-1])
    assert set(number[0].tolist()) == {0, 1, 2, 4}  # episode 3 is too short, episode 1 has just one start


def test_start_positions_are_uniform():
    lengths, horizon = [5, 3, 9, 2, 4], 3
    batch = buffer(lengths, seed=4).sample(20_000, horizon)
    starts, counts = np.unique(batch.rewards[0].numpy(), return_counts=True)
    wanted = [1000 * n + t for n, length in enumerate(lengths) for t in range(length - horizon + 1)]
    assert starts.tolist() == wanted  # the last valid start of each episode included, and nothing behind it
    assert stats.chisquare(counts).pvalue > 1e-3


def test_sampling_follows_the_seed():
    a, b, c = buffer([20], seed=1), buffer([20], seed=1), buffer([20], seed=2)
    first = a.sample(30, 2).rewards
    assert torch.equal(first, b.sample(30, 2).rewards) and not torch.equal(first, c.sample(30, 2).rewards)
    assert not torch.equal(first, a.sample(30, 2).rewards)


def test_batches_of_an_episodic_task_begin_at_every_decision_before_an_early_end():
    """An end must be seen at every place of a sequence: else a model learns that nothing ends before its last one."""
    made = ReplayBuffer(50, 2, 2, episodic=True)
    lengths = {0: (5, True), 1: (4, False), 2: (2, True)}
    for number, (length, terminated) in lengths.items():
        made.add(episode(number, length, terminated))
    batch = made.sample(900, 3)
    starts = {(int(number), int(time)) for number, time in batch.obs[0]}
    assert starts == {(0, t) for t in range(5)} | {(1, 0), (1, 1)} | {(2, 0), (2, 1)}
    assert all(abs((batch.obs[0] == torch.tensor(s)).all(1).float().mean() - 1 / 9) < 0.05 for s in starts)
    for b in range(900):
        number, first = map(int, batch.obs[0, b])
        length, terminated = lengths[number]
        whole = episode(number, length, terminated)
        for t in range(3):
            now = first + t
            assert batch.played[t, b] == (now < length)
            assert batch.terminated[t, b] == (terminated and now == length - 1)
            assert torch.equal(batch.obs[t + 1, b], torch.from_numpy(whole.obs[min(now + 1, length)]))
            if now < length:
                assert torch.equal(batch.actions[t, b], torch.from_numpy(whole.actions[now]))
                assert batch.rewards[t, b] == whole.rewards[now]
            else:
                assert not batch.actions[t, b].any() and batch.rewards[t, b] == 0
    assert (batch.terminated.mean(1) > 0.1).all()
    assert_same(made.episodes(), [episode(n, *lengths[n]) for n in lengths])
    plain = buffer([5]).sample(2, 3)
    assert plain.terminated is None and plain.played is None


def test_a_batch_is_a_copy():
    made = buffer([20])
    made.sample(5, 2).obs.zero_()
    assert_same(made.episodes(), [episode(0, 20)])


@pytest.mark.parametrize("made", [buffer([2, 2]), ReplayBuffer(10, 2, 2)], ids=["too short episodes", "no episodes"])
def test_what_is_too_short_cannot_be_sampled(made):
    with pytest.raises(ValueError, match="no stored episode is 3 decisions long"):
        made.sample(4, 3)


# ------------------------------------------------------------------------------------------------------------- adding


def test_length_and_episodes():
    made = buffer([5, 3], capacity=50)
    assert len(made) == 8
    assert_same(made.episodes(), [episode(0, 5), episode(1, 3)])


def test_the_capacity_is_decisions_and_overflow_is_refused():
    made = buffer([1] * 50, capacity=50)  # the shortest episodes need the most spare rows
    assert len(made) == 50
    assert_same(made.episodes(), [episode(number, 1) for number in range(50)])
    with pytest.raises(ValueError, match=r"the replay buffer is full \(50 decisions\)"):
        made.add(episode(0, 1))
    whole = buffer([50], capacity=50)
    assert len(whole) == 50 and whole.sample(3, 3).obs.shape == (4, 3, 2)
    with pytest.raises(ValueError, match="is full"):
        whole.add(episode(1, 50))
    assert len(whole) == 50


UNEQUAL = "an episode of 5 rewards needs 6 observations and 5 actions"


@pytest.mark.parametrize(
    ("change", "message"),
    [(spoilt("obs", np.nan), "non-finite"), (spoilt("rewards", np.inf), "non-finite"),
     (spoilt("actions", np.nan), "non-finite"), ({"obs": WHOLE.obs[:-1]}, UNEQUAL),
     ({"actions": WHOLE.actions[1:]}, UNEQUAL), (vars(episode(0, 0)), "an episode of 0 rewards needs")],
)  # fmt: skip
def test_episodes_that_cannot_be_are_refused(change, message):
    made = ReplayBuffer(20, 2, 2)
    with pytest.raises(ValueError, match=message):
        made.add(Episode(**vars(WHOLE) | change))
    assert len(made) == 0


# -------------------------------------------------------------------------------------------------------------- files


def test_files_round_trip_exactly(tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "episodes.safetensors"
    shapes = [((n + 1, 3), (n, 2), (n,)) for n in (4, 1, 7)]
    episodes = [Episode(*(rng.normal(size=shape).astype(np.float32) for shape in parts)) for parts in shapes]
    episodes[1].terminated = True
    save_episodes(file, episodes)
    assert_same(episodes, load_episodes(file))


@pytest.mark.parametrize("parts", [(4,), (1, 3), (2, 1, 1), (1, 1, 1, 1)])
def test_files_are_joined_byte_for_byte(parts, tmp_path):
    episodes = [episode(number, length, length < 3) for number, length in enumerate([5, 1, 9, 2])]
    save_episodes(tmp_path / "whole.safetensors", episodes)
    files = [tmp_path / f"{number}.safetensors" for number in range(len(parts))]
    for file, end, count in zip(files, np.cumsum(parts), parts, strict=True):
        save_episodes(file, episodes[end - count : end])
    join_episodes(tmp_path / "joined.safetensors", files)
    assert (tmp_path / "joined.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    files[-1].write_bytes(b"cut")
    with pytest.raises(EpisodeFileError, match=f"{files[-1].name} is not a file of episodes"):
        join_episodes(tmp_path / "joined.safetensors", files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": None}, "is not a file of episodes"),
        ({"terminated": np.array([0, 0])}, "other dimensions or types"),
        ({"lengths": np.array([], np.int64), "terminated": np.array([], np.int64)}, "holds no episodes"),
        ({"lengths": np.array([-1, 6]), "terminated": np.array([0, 0])}, "holds no episodes|cut short"),
        ({"rewards": WHOLE.rewards[:-1]}, "is cut short: 5 decisions are announced, 4 rewards"),
        ({"lengths": np.array([5.0])}, "other dimensions or types"),
        ({"lengths": np.array(5)}, "other dimensions or types"),
        ({"obs": WHOLE.obs[:, 0].copy()}, "other dimensions or types"),
        ({"obs": WHOLE.obs[:-1]}, "is cut short"),
        (spoilt("obs", [0, np.nan]), "not finite"),
        (spoilt("actions", [0, np.inf]), "not finite"),
    ],
)
def test_malformed_files_are_refused(change, message, tmp_path):
    content = vars(WHOLE) | {"lengths": np.array([5]), "terminated": np.array([0])} | change
    save_file({name: array for name, array in content.items() if array is not None}, tmp_path / "bad.safetensors")
    with pytest.raises(EpisodeFileError, match=f"bad.safetensors.*({message})"):
        load_episodes(tmp_path / "bad.safetensors")


def test_files_from_before_terminations_were_kept_have_none(tmp_path):
    content = {name: getattr(WHOLE, name) for name in ("obs", "actions", "rewards")}
    save_file(content | {"lengths": np.array([5])}, tmp_path / "old.safetensors")
    assert_same(load_episodes(tmp_path / "old.safetensors"), [WHOLE])


def test_files_of_another_kind_are_refused(tmp_path):
    save_episodes(tmp_path / "good.safetensors", [WHOLE])
    whole = (tmp_path / "good.safetensors").read_bytes()
    for name, content in {"empty": b"", "cut": whole[:-10], "pickle": pickle.dumps([WHOLE]), "text": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("empty", "cut", "pickle", "text", "missing"):
        with pytest.raises(EpisodeFileError, match=f"{name} is not a file of episodes"):
            load_episodes(tmp_path / name)


def test_an_episode_is_recorded_with_what_it_led_to():
    """The slow twin plays one episode after the other by hand."""
    envs = fresh_env()
    envs.ends[32] = 4
    seeds, controller = [31, 32], ReplanningController(MPPI(tiny_model(), BUDGET))
    played = record(controller, envs, seeds, 6)
    assert [(len(e), e.terminated) for e in played] == [(6, False), (4, True)]
    for seed, episode in zip(seeds, played, strict=True):
        env = envs("tiny-task")
        obs, rewards = [env.reset(seed=seed)[0]], []
        for action in episode.actions:
            o, reward, *_ = env.step(action)
            obs.append(o), rewards.append(reward)
        np.testing.assert_array_equal(episode.obs, obs)
        np.testing.assert_allclose(episode.rewards, rewards, rtol=1e-6)
    again = record(controller, envs, seeds, 6)  # one after the other, with the same planner
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(played, again, strict=True))
    assert record(controller, envs, [], 6) == []


def test_what_a_diverging_simulator_leaves_is_recorded(tmp_path):
    envs, controller = fresh_env(), RandomController(ACTIONS)
    whole = record(controller, envs, [31, 32, 33], 6)
    envs.breaks = {31: 4, 33: 1}
    played = record(controller, envs, [31, 32, 33], 6)
    assert [len(e) for e in played] == [3, 6, 0] and played[2].rewards.sum() == 0
    assert_same(played[:2], [Episode(whole[0].obs[:4], whole[0].actions[:3], whole[0].rewards[:3]), whole[1]])
    save_episodes(tmp_path / "a.safetensors", played)
    assert_same(load_episodes(tmp_path / "a.safetensors"), played[:2])
    with pytest.raises(EpisodeFileError, match="b.safetensors would hold no decision: the simulator diverged"):
        save_episodes(tmp_path / "b.safetensors", played[2:])
