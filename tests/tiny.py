"""What the tests of the control loop share: a small random world model, and an environment that costs nothing."""

import gymnasium
import numpy as np
import torch

from lib.config import PlannerConfig, WorldModelConfig
from lib.world_model import WorldModel

OBS, ACTIONS, LATENT = 5, 2, 16
BUDGET = PlannerConfig.budget(16, 2, mode="eager")


class LatentModel(WorldModel):
    """A world model whose observations are its latents: with it, an environment can follow the model exactly."""

    def encode(self, obs):
        return obs


def tiny_model(num_q=2, seed=0, kind=WorldModel, action_dim=ACTIONS, latent_dim=LATENT):
    """Random in every layer: with fresh, zero last layers every plan would be worth the same."""
    torch.manual_seed(seed)
    wm = kind(WorldModelConfig(OBS, action_dim, 16, 16, latent_dim, 2, num_q))
    with torch.no_grad():
        for p in wm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return wm.eval().requires_grad_(False)


def latents(batch, seed=1):
    """Random SimNorm latents (B, L)."""
    z = torch.randn(batch, LATENT // 8, 8, generator=torch.Generator().manual_seed(seed))
    return (2 * z).softmax(-1).flatten(1)


def streams(*seeds):
    """One generator per row."""
    return [torch.Generator().manual_seed(s) for s in seeds]


class TinyEnv:
    """x ← tanh(M x + N a), reward x₀ + 1. Every step of any environment is noted in `steps`: (seed, decision, action).

    `ends` maps a seed to the decision at which its episode terminates early, `breaks` to that at which it diverges.
    """

    steps: list = []
    starts: list = []
    ends: dict = {}
    breaks: dict = {}

    def __init__(self, task, seed=None):
        random = np.random.default_rng(0)
        self.m, self.n = random.normal(size=(OBS, OBS)), random.normal(size=(OBS, ACTIONS))

    def reset(self, *, seed):
        self.seed, self.decision, self.x = seed, 0, np.random.default_rng(seed).normal(size=OBS)
        self.starts.append((seed, tuple(self.x)))
        return self.x.astype(np.float32), {}

    def step(self, action):
        assert action.shape == (ACTIONS,) and np.abs(action).max() <= 1
        self.steps.append((self.seed, self.decision, action.copy()))
        self.x = np.tanh(self.m @ self.x + self.n @ action)
        self.decision += 1
        if self.decision == self.breaks.get(self.seed):
            return self.x.astype(np.float32), float("nan"), True, False, {}
        ended = self.decision == self.ends.get(self.seed)
        return self.x.astype(np.float32), float(self.x[0] + 1), ended, False, {}


def fresh_env():
    """A TinyEnv class with empty notes."""
    return type("NotedEnv", (TinyEnv,), {"steps": [], "starts": [], "ends": {}, "breaks": {}})


class Shorter(gymnasium.Wrapper):
    """Every third seed's episode ends at its fourth decision."""

    def reset(self, *, seed=None, options=None):
        self.left = 4 if seed is not None and seed % 3 == 1 else 100
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        self.left -= 1
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated or self.left == 0, info


class Diverging(Shorter):
    """Every third seed's physics blow up in its fourth decision."""

    def step(self, action):
        if self.left == 1:
            self.env.unwrapped._env.physics.data.qvel[:] = 1e12
        self.left -= 1
        return self.env.step(action)
