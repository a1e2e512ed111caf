"""Whole episodes: played, in a replay buffer that samples short sequences, and in files.

An episode of T decisions holds T + 1 observations, T actions and T rewards. Sequences never cross an episode's end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from lib.protocols import Controller
from lib.rollout import rollout

COLUMNS = (
    "lengths",
    "terminated",
    "actions",
    "obs",
    "rewards",
)  # of a file of episodes, as safetensors orders them: widest first


class EpisodeFileError(ValueError):
    """A file of episodes cannot be used; the message says which and why."""


@dataclass
class Episode:
    """obs (T+1, obs_dim), actions (T, A) in [−1, 1], rewards (T,), all float32; and whether the last decision ended it
    other than by the time limit."""

    obs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool = False

    def __len__(self) -> int:
        return len(self.rewards)

    @classmethod
    def of(cls, obs: list, actions: list, rewards: list, terminated: bool = False) -> Episode:
        """The episode of what was noted at each decision; `obs` has one more, the last."""
        return cls(np.array(obs), np.array(actions), np.array(rewards, np.float32), terminated)


def record(controller: Controller, envs, seeds: Sequence[int], decisions: int, what: str = "") -> list[Episode]:
    """One whole episode per seed, played as a batch; the arguments are those of `lib.rollout.rollout`.

    Where the simulator diverged it is as long as it was sound, which may be no decision at all.
    """
    played, terminated = [([], [], []) for _ in seeds], [False for _ in seeds]
    for step in rollout(controller, envs, seeds, decisions, what):
        for row, i in enumerate(step.rows):
            obs, actions, rewards = played[i]
            obs.extend([step.next_obs[row]] if obs else [step.obs[row], step.next_obs[row]])
            actions.append(step.actions[row])
            rewards.append(step.rewards[row])
            terminated[i] = bool(step.terminated[row])
    return [Episode.of(*parts, ended) for parts, ended in zip(played, terminated, strict=True)]


@dataclass
class Batch:
    """Sequences in time-major order: obs (H+1, B, obs_dim), actions (H, B, A), rewards (H, B); and where early ends are
    learned, else None: `terminated` (H, B), 1 where the decision ended its episode early, and `played` (H, B), 0 where
    it stands for one after that, whose observation is the last one, and whose action and reward are zero."""

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor | None = None
    played: Tensor | None = None


class ReplayBuffer:
    """All episodes of a run in flat arrays, room for `capacity` decisions, sampled uniformly over start positions.

    Samples say which decisions terminated their episode if it is `episodic`.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, seed: int = 0, episodic: bool = False):
        self.capacity, self.episodic = capacity, episodic
        rows = 2 * capacity  # one spare row per episode, for its last observation; memory is taken as it is filled
        self._obs = np.zeros((rows, obs_dim), np.float32)
        self._actions = np.zeros((rows, action_dim), np.float32)
        self._rewards = np.zeros(rows, np.float32)
        self._terminated = np.zeros(rows, np.float32)
        self._starts = np.zeros(0, np.int64)  # first row of each episode
        self._lengths = np.zeros(0, np.int64)  # its decisions
        self._rows = 0
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Decisions stored."""
        return int(self._lengths.sum())

    def longest(self) -> int:
        """Decisions of the longest episode stored."""
        return int(self._lengths.max(initial=0))

    def add(self, episode: Episode) -> None:
        """Append an episode. Raises `ValueError` when it does not fit, has no decision or is not finite."""
        length = len(episode)
        if not length or len(episode.obs) != length + 1 or len(episode.actions) != length:
            raise ValueError(f"an episode of {length} rewards needs {length + 1} observations and {length} actions.")
        if not all(np.isfinite(x).all() for x in (episode.obs, episode.actions, episode.rewards)):
            raise ValueError("an episode with non-finite values cannot enter the replay buffer.")
        if len(self) + length > self.capacity:
            raise ValueError(f"the replay buffer is full ({len(self)} decisions); give it a larger capacity.")
        end = self._rows + length + 1
        self._obs[self._rows : end] = episode.obs
        self._actions[self._rows : end - 1] = episode.actions
        self._rewards[self._rows : end - 1] = episode.rewards
        self._terminated[end - 2] = episode.terminated
        self._starts = np.append(self._starts, self._rows)
        self._lengths = np.append(self._lengths, length)
        self._rows = end

    def sample(self, batch_size: int, horizon: int) -> Batch:
        """`batch_size` sequences of `horizon` decisions, uniform over all start positions that fit in an episode.

        Where early ends are learned, every decision of an episode that ended early is a start: an end has to be seen at
        every place of a sequence, or a model learns that nothing ends before its last. (The official code draws from
        inside episodes.)
        """
        ended = self.episodic & (self._terminated[self._starts + self._lengths - 1] > 0)
        room = np.where(ended, self._lengths, np.maximum(self._lengths - horizon + 1, 0))
        ends = np.cumsum(room)
        if not len(ends) or ends[-1] == 0:
            raise ValueError(f"no stored episode is {horizon} decisions long; collect longer episodes first.")
        draw = self.rng.integers(ends[-1], size=batch_size)
        episode = np.searchsorted(ends, draw, side="right")
        start = self._starts[episode] + draw - (ends[episode] - room[episode])
        index = start + np.arange(horizon + 1)[:, None]  # (H+1, B)
        last = self._starts[episode] + self._lengths[episode]  # the row of the last observation
        played = (index[:-1] < last).astype(np.float32)
        index = np.minimum(index, last)  # the row of the last observation has no action, reward or end: zeros
        parts = [self._obs[index], *(x[index[:-1]] for x in (self._actions, self._rewards, self._terminated)), played]
        return Batch(*(torch.from_numpy(x) for x in parts[: None if self.episodic else 3]))

    def episodes(self) -> list[Episode]:
        """The stored episodes, oldest first."""
        return [
            Episode(
                self._obs[s : s + n + 1],
                self._actions[s : s + n],
                self._rewards[s : s + n],
                bool(self._terminated[s + n - 1]),
            )
            for s, n in zip(self._starts, self._lengths, strict=True)
        ]


def save_episodes(path: Path, episodes: list[Episode]) -> None:
    """Write episodes to one safetensors file: obs, actions, rewards end to end, `lengths` in decisions, and which of
    them `terminated`.

    Those without a decision are left out; `EpisodeFileError` when all are.
    """
    if not (episodes := [e for e in episodes if len(e)]):
        raise EpisodeFileError(f"{path} would hold no decision: the simulator diverged at the first of every episode.")
    columns = {name: np.concatenate([getattr(e, name) for e in episodes]) for name in ("obs", "actions", "rewards")}
    columns |= {"lengths": np.array([len(e) for e in episodes], np.int64)}
    save_file(columns | {"terminated": np.array([e.terminated for e in episodes], np.int64)}, path)


def join_episodes(path: Path, files: list[Path]) -> None:
    """Write the episodes of several files to one, byte for byte as `save_episodes` would write them all; of no more
    than one of the files a column is in memory."""
    header, end = {}, 0
    for name in COLUMNS:
        kind, width = ("I64", 8) if name in ("lengths", "terminated") else ("F32", 4)
        shapes = [_opened(file).get_slice(name).get_shape() for file in files]
        shape = [sum(rows for rows, *_ in shapes), *shapes[0][1:]]
        start, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as joined:
        joined.write(len(text).to_bytes(8, "little") + text)
        for name in COLUMNS:
            for file in files:
                joined.write(_opened(file).get_tensor(name).tobytes())


def _opened(file: Path):
    try:
        return safe_open(file, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise EpisodeFileError(f"{file} is not a file of episodes: {error}.") from None


def load_episodes(path: Path) -> list[Episode]:
    """Read `save_episodes`; `EpisodeFileError` when the file is missing, malformed, empty or not finite."""
    try:
        data = load_file(path)
        data.setdefault("terminated", np.zeros_like(data["lengths"]))  # files from before it was kept
        lengths, terminated, actions, obs, rewards = (data[name] for name in COLUMNS)
    except Exception as error:  # safetensors raises several types for one meaning: this is not such a file
        raise EpisodeFileError(f"{path} is not a file of episodes: {error}.") from None
    whole = lengths.shape == terminated.shape and lengths.ndim == 1
    if not whole or (obs.ndim, actions.ndim, rewards.ndim, lengths.dtype.kind) != (2, 2, 1, "i"):
        raise EpisodeFileError(f"{path} is not a file of episodes: its arrays have other dimensions or types.")
    total = int(lengths.sum())
    if not len(lengths) or (lengths < 1).any():
        raise EpisodeFileError(f"{path} holds no episodes.")
    if len(obs) != total + len(lengths) or len(actions) != total or len(rewards) != total:
        raise EpisodeFileError(f"{path} is cut short: {total} decisions are announced, {len(rewards)} rewards stored.")
    if not all(np.isfinite(x).all() for x in (obs, actions, rewards)):
        raise EpisodeFileError(f"{path} holds values that are not finite.")
    episodes, first_obs, first = [], 0, 0
    for n, ended in zip(lengths.tolist(), terminated.tolist(), strict=True):
        part = slice(first, first + n)
        episodes.append(Episode(obs[first_obs : first_obs + n + 1], actions[part], rewards[part], bool(ended)))
        first_obs, first = first_obs + n + 1, first + n
    return episodes
