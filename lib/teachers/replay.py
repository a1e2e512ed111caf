"""Whole episodes: played, in a replay buffer that samples short sequences, and in files.

An episode of T decisions holds T + 1 observations, T actions and T rewards. Sequences never cross an episode's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from lib.protocols import Controller
from lib.rollout import rollout


class EpisodeFileError(ValueError):
    """A file of episodes cannot be used; the message says which and why."""


@dataclass
class Episode:
    """obs (T+1, obs_dim), actions (T, A) in [−1, 1], rewards (T,), all float32."""

    obs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray

    def __len__(self) -> int:
        return len(self.rewards)

    @classmethod
    def of(cls, obs: list, actions: list, rewards: list) -> Episode:
        """The episode of what was noted at each decision; `obs` has one more, the last."""
        return cls(np.array(obs), np.array(actions), np.array(rewards, np.float32))


def record(controller: Controller, envs, seeds: Sequence[int], decisions: int, what: str = "") -> list[Episode]:
    """One whole episode per seed, played as a batch; the arguments are those of `lib.rollout.rollout`."""
    played = [([], [], []) for _ in seeds]
    for step in rollout(controller, envs, seeds, decisions, what):
        for row, i in enumerate(step.rows):
            obs, actions, rewards = played[i]
            obs.extend([step.next_obs[row]] if obs else [step.obs[row], step.next_obs[row]])
            actions.append(step.actions[row])
            rewards.append(step.rewards[row])
    return [Episode.of(*parts) for parts in played]


@dataclass
class Batch:
    """Sequences in time-major order: obs (H+1, B, obs_dim), actions (H, B, A), rewards (H, B), and `terminated` (H, B),
    1 where the decision ended its episode early; None where that is not learned."""

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor | None = None


class ReplayBuffer:
    """All episodes of a run in flat arrays, room for `capacity` decisions, sampled uniformly over start positions."""

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, seed: int = 0):
        # One spare row per episode for its last observation; episodes are at least 2 decisions long.
        rows = capacity + capacity // 2 + 1
        self._obs = np.zeros((rows, obs_dim), np.float32)
        self._actions = np.zeros((rows, action_dim), np.float32)
        self._rewards = np.zeros(rows, np.float32)
        self._starts: list[int] = []  # first row of each episode
        self._lengths: list[int] = []  # its decisions
        self._rows = 0
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Decisions stored."""
        return sum(self._lengths)

    def add(self, episode: Episode) -> None:
        """Append an episode. Raises `ValueError` when it does not fit or is not finite."""
        length = len(episode)
        if len(episode.obs) != length + 1 or len(episode.actions) != length:
            raise ValueError(f"an episode of {length} rewards needs {length + 1} observations and {length} actions.")
        if not all(np.isfinite(x).all() for x in (episode.obs, episode.actions, episode.rewards)):
            raise ValueError("an episode with non-finite values cannot enter the replay buffer.")
        end = self._rows + length + 1
        if end > len(self._rewards):
            raise ValueError(f"the replay buffer is full ({len(self)} decisions); give it a larger capacity.")
        self._obs[self._rows : end] = episode.obs
        self._actions[self._rows : end - 1] = episode.actions
        self._rewards[self._rows : end - 1] = episode.rewards
        self._starts.append(self._rows)
        self._lengths.append(length)
        self._rows = end

    def sample(self, batch_size: int, horizon: int) -> Batch:
        """`batch_size` sequences of `horizon` decisions, uniform over all start positions that fit in an episode."""
        room = np.maximum(np.array(self._lengths) - horizon + 1, 0)
        ends = np.cumsum(room)
        if not len(ends) or ends[-1] == 0:
            raise ValueError(f"no stored episode is {horizon} decisions long; collect longer episodes first.")
        draw = self.rng.integers(ends[-1], size=batch_size)
        episode = np.searchsorted(ends, draw, side="right")
        start = np.array(self._starts)[episode] + draw - (ends[episode] - room[episode])
        index = start + np.arange(horizon + 1)[:, None]  # (H+1, B)
        return Batch(
            torch.from_numpy(self._obs[index]),
            torch.from_numpy(self._actions[index[:-1]]),
            torch.from_numpy(self._rewards[index[:-1]]),
        )

    def episodes(self) -> list[Episode]:
        """The stored episodes, oldest first."""
        return [
            Episode(self._obs[s : s + n + 1], self._actions[s : s + n], self._rewards[s : s + n])
            for s, n in zip(self._starts, self._lengths, strict=True)
        ]


def save_episodes(path: Path, episodes: list[Episode]) -> None:
    """Write episodes to one safetensors file: obs, actions, rewards end to end, and `lengths` in decisions."""
    save_file(
        {
            "obs": np.concatenate([e.obs for e in episodes]),
            "actions": np.concatenate([e.actions for e in episodes]),
            "rewards": np.concatenate([e.rewards for e in episodes]),
            "lengths": np.array([len(e) for e in episodes], np.int64),
        },
        path,
    )


def load_episodes(path: Path) -> list[Episode]:
    """Read `save_episodes`; `EpisodeFileError` when the file is missing, malformed, empty or not finite."""
    try:
        data = load_file(path)
        obs, actions, rewards, lengths = (data[k] for k in ("obs", "actions", "rewards", "lengths"))
    except Exception as error:  # safetensors raises several types for one meaning: this is not such a file
        raise EpisodeFileError(f"{path} is not a file of episodes: {error}.") from None
    if (obs.ndim, actions.ndim, rewards.ndim, lengths.ndim, lengths.dtype.kind) != (2, 2, 1, 1, "i"):
        raise EpisodeFileError(f"{path} is not a file of episodes: its arrays have other dimensions or types.")
    total = int(lengths.sum())
    if not len(lengths) or (lengths < 1).any():
        raise EpisodeFileError(f"{path} holds no episodes.")
    if len(obs) != total + len(lengths) or len(actions) != total or len(rewards) != total:
        raise EpisodeFileError(f"{path} is cut short: {total} decisions are announced, {len(rewards)} rewards stored.")
    if not all(np.isfinite(x).all() for x in (obs, actions, rewards)):
        raise EpisodeFileError(f"{path} holds values that are not finite.")
    episodes, first_obs, first = [], 0, 0
    for n in lengths.tolist():
        part = slice(first, first + n)
        episodes.append(Episode(obs[first_obs : first_obs + n + 1], actions[part], rewards[part]))
        first_obs, first = first_obs + n + 1, first + n
    return episodes
