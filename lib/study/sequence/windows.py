"""Trajectories for offline reinforcement learning, and the windows of them that sequence models learn from.

    data = TrajectorySet("expert", trajectories)             # checked: shapes, finite values, actions in [-1, 1]
    training, validation = data.split(0.1, seed=1)
    batch = Windows(training.trajectories, context=20).sample(np.random.default_rng(0), 64)

A window is K consecutive decisions of one trajectory. Windows near the end are shorter; the rest of their rows is
padding *behind* them, which a causal model cannot see from the rows that count, so that it needs no attention mask.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

ACTION_TOLERANCE = 1e-3  # beyond ±1, from rounding in somebody's file


class OfflineDataError(ValueError):
    """Offline data cannot be used; the message says which, why and what to do."""


@dataclass
class Trajectory:
    """Decisions of one episode: obs (T, obs_dim), actions (T, A) in [−1, 1], rewards (T,), all float32."""

    obs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def returns_to_go(self) -> np.ndarray:
        """Sum of the rewards from each decision to the end, undiscounted (T,)."""
        return np.cumsum(self.rewards[::-1], dtype=np.float64)[::-1].astype(np.float32)


@dataclass
class TrajectorySet:
    """Whole episodes of one environment; `about` is their card. `OfflineDataError` when they cannot be learnt from."""

    name: str
    trajectories: list[Trajectory]
    about: dict = field(default_factory=dict)

    def __post_init__(self):
        if not self.trajectories:
            raise OfflineDataError(f"{self.name} holds no trajectory; give data with whole episodes.")
        widths = set()
        for number, t in enumerate(self.trajectories):
            if (t.obs.ndim, t.actions.ndim, t.rewards.ndim) != (2, 2, 1) or not len(t):
                shapes = ", ".join(str(x.shape) for x in (t.obs, t.actions, t.rewards))
                raise OfflineDataError(
                    f"trajectory {number} of {self.name} has shapes {shapes}, not (T, obs_dim), (T, A) and (T,)."
                )
            if not len(t.obs) == len(t.actions) == len(t):
                raise OfflineDataError(
                    f"trajectory {number} of {self.name} has {len(t.obs)} observations, {len(t.actions)} actions and "
                    f"{len(t)} rewards; it needs as many of each."
                )
            if not all(np.isfinite(x).all() for x in (t.obs, t.actions, t.rewards)):
                raise OfflineDataError(f"trajectory {number} of {self.name} holds values that are not finite.")
            if np.abs(t.actions).max() > 1 + ACTION_TOLERANCE:
                raise OfflineDataError(
                    f"trajectory {number} of {self.name} has an action of {np.abs(t.actions).max():.3g}; rescale its "
                    "actions to [-1, 1]."
                )
            widths.add((t.obs.shape[1], t.actions.shape[1]))
        if len(widths) > 1:
            raise OfflineDataError(
                f"the trajectories of {self.name} have {sorted(widths)} observations and actions; give one task's."
            )

    @property
    def obs_dim(self) -> int:
        return self.trajectories[0].obs.shape[1]

    @property
    def action_dim(self) -> int:
        return self.trajectories[0].actions.shape[1]

    @property
    def decisions(self) -> int:
        return sum(map(len, self.trajectories))

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each trajectory (n,)."""
        return np.array([t.rewards.sum(dtype=np.float64) for t in self.trajectories])

    @property
    def key(self) -> str:
        """sha256 of all that can be learnt from it: equal data has an equal key, wherever it comes from."""
        digest = hashlib.sha256()
        for t in self.trajectories:
            for array in (t.obs, t.actions, t.rewards):
                digest.update(repr(array.shape).encode() + np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple[TrajectorySet, TrajectorySet]:
        """Training and validation sets; a trajectory is on one side only, and at least one is held out.

        Raises `OfflineDataError` for a single trajectory.
        """
        n = len(self.trajectories)
        if n < 2:
            raise OfflineDataError(f"{self.name} holds one trajectory; two are needed to hold one out.")
        order = np.random.default_rng(seed).permutation(n)
        held = set(order[: min(max(round(fraction * n), 1), n - 1)].tolist())
        sides = ([t for i, t in enumerate(self.trajectories) if (i in held) == side] for side in (False, True))
        return tuple(TrajectorySet(self.name, side, self.about) for side in sides)


def return_scale(data: TrajectorySet) -> float:
    """What returns to go are divided by, so that none is beyond ±1: the least power of ten that does it, 1 where all
    are zero. Of a DMControl task it is 1000, which no episode there can pass, however little the data has."""
    card = data.about.get("card")
    if isinstance(card, dict) and ":" not in str(card.get("task", ":")):
        return 1000.0
    largest = max(float(np.abs(t.returns_to_go).max()) for t in data.trajectories)
    return 10.0 ** math.ceil(round(math.log10(largest), 6)) if largest else 1.0  # rounded: 1000.0001 are 1000


# -------------------------------------------------------------------------------------------------------- windows


@dataclass
class WindowBatch:
    """B windows of K decisions: obs (B, K, obs_dim), actions (B, K, A), returns_to_go (B, K), timesteps (B, K) since
    the trajectory's start, mask (B, K), false for padding, which is zero."""

    obs: Tensor
    actions: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    mask: Tensor

    def to(self, device) -> WindowBatch:
        return WindowBatch(*(x.to(device) for x in vars(self).values()))


class Windows:
    """Windows of `context` decisions of trajectories, which lie end to end in flat arrays."""

    def __init__(self, trajectories: list[Trajectory], context: int):
        self.context = context
        lengths = np.array([len(t) for t in trajectories])
        self._first = np.repeat(np.cumsum(lengths) - lengths, lengths)  # of each row's trajectory
        self._end = np.repeat(np.cumsum(lengths), lengths)
        self._obs = np.concatenate([t.obs for t in trajectories])
        self._actions = np.concatenate([t.actions for t in trajectories])
        self._to_go = np.concatenate([t.returns_to_go for t in trajectories])

    def __len__(self) -> int:
        """Decisions, each of which starts a window."""
        return len(self._end)

    def sample(self, rng: np.random.Generator, batch_size: int) -> WindowBatch:
        """Windows of trajectories that are drawn in proportion to their length, from uniform starts in them (Chen et
        al. 2021, section 4): together, every decision starts a window as often as any other."""
        return self.starting_at(rng.integers(len(self), size=batch_size))

    def covering(self) -> np.ndarray:
        """Starts of windows that hold every decision once."""
        rows = np.arange(len(self))
        return rows[(rows - self._first) % self.context == 0]

    def starting_at(self, rows: np.ndarray) -> WindowBatch:
        """The windows that start at `rows` (B,), positions among all decisions."""
        index = rows[:, None] + np.arange(self.context)  # (B, K)
        mask = index < self._end[rows][:, None]
        index = np.where(mask, index, rows[:, None])
        columns = (self._obs[index], self._actions[index], self._to_go[index], index - self._first[index])
        columns = (np.where(mask[..., None] if x.ndim == 3 else mask, x, np.zeros((), x.dtype)) for x in columns)
        return WindowBatch(*(torch.from_numpy(x) for x in (*columns, mask)))


# --------------------------------------------------------------------------------------------------------- policies


class OfflinePolicy(nn.Module):
    """What policies that learn from trajectories have in common: `arm`, their name; `shape`, their sizes, a `Shape`;
    and the normalisation of observations, which is stored with the weights."""

    arm: str
    Shape: type

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.register_buffer("obs_mean", torch.zeros(shape.obs_dim))
        self.register_buffer("obs_std", torch.ones(shape.obs_dim))

    @classmethod
    def of(cls, data: TrajectorySet, **changes) -> OfflinePolicy:
        """A fresh policy for trajectories, whose observations it normalises; what hardly varies is not blown up."""
        policy = cls(cls.Shape(data.obs_dim, data.action_dim, **changes))
        obs = np.concatenate([t.obs for t in data.trajectories]).astype(np.float64)
        policy.obs_mean.copy_(torch.from_numpy(obs.mean(0)))
        policy.obs_std.copy_(torch.from_numpy(np.maximum(obs.std(0), 1e-3)))
        return policy

    @property
    def device(self) -> torch.device:
        return self.obs_mean.device

    def normalised(self, obs: Tensor) -> Tensor:
        """Observations (…, obs_dim) with mean 0 and standard deviation 1 over the data."""
        return (obs - self.obs_mean) / self.obs_std
