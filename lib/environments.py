"""DMControl tasks as `gymnasium.Env`: action repeat 2, 500 decisions, the official observation order.

    env = make_env("walker-walk", seed=0)
    obs, _ = env.reset(seed=3)                       # (obs_dim,) float32
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())

The simulator is dm_control (through shimmy's compatibility wrapper); nothing here renders unless asked to.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

import numpy as np

from lib.config import ConfigError, one_of

if TYPE_CHECKING:
    import gymnasium

ACTION_REPEAT = 2  # simulator frames per decision
EPISODE_DECISIONS = 500

# Official names join domain and task with a dash; a few domains have a shorter official name.
DOMAIN_ALIASES = {"cup": "ball_in_cup", "pointmass": "point_mass"}


def _suite():
    """dm_control's suite, imported late: it picks a rendering backend at import, and a headless machine has none."""
    if "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "disable"
    from dm_control import suite

    return suite


def task_names() -> list[str]:
    """Official names of all DMControl suite tasks, such as "walker-walk" and "cup-catch"."""
    short = {long: alias for alias, long in DOMAIN_ALIASES.items()}
    return sorted(f"{short.get(d, d)}-{t}".replace("_", "-") for d, t in _suite().ALL_TASKS)


def _domain_and_task(name: str) -> tuple[str, str]:
    for domain, task in _suite().ALL_TASKS:
        short = {long: alias for alias, long in DOMAIN_ALIASES.items()}.get(domain, domain)
        if f"{short}-{task}".replace("_", "-") == name:
            return domain, task
    one_of("task", name, task_names())
    raise AssertionError("one_of raises for an unknown task")


@functools.cache
def _dm_control_env() -> type[gymnasium.Env]:
    """The class of the environments, made when one is first asked for: nothing else here needs gymnasium."""
    _suite()  # chooses the rendering backend, before shimmy imports dm_control
    import gymnasium
    from shimmy.dm_control_compatibility import DmControlCompatibilityV0

    class DMControlEnv(gymnasium.Wrapper):
        """A suite task: flat float32 observations in dm_control's own order, rewards summed over the action repeat."""

        def __init__(self, task: str, seed: int | None = None):
            domain, name = _domain_and_task(task)
            self.task = task
            self._dm_env = _suite().load(domain, name, task_kwargs={"random": seed if seed is not None else 0})
            super().__init__(DmControlCompatibilityV0(self._dm_env))
            self._keys = list(self._dm_env.observation_spec())  # shimmy's Dict space sorts; official weights do not
            size = sum(int(np.prod(s.shape)) or 1 for s in self._dm_env.observation_spec().values())
            spec = self._dm_env.action_spec()
            self._low, self._high = spec.minimum, spec.maximum
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, spec.shape, np.float32)
            self._first_seed, self._decisions = seed, 0

        def _flat(self, obs) -> np.ndarray:
            return np.concatenate([np.ravel(obs[k]) for k in self._keys]).astype(np.float32)

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            """Start an episode. `seed` fixes its start state; without one, episodes of an environment follow on."""
            if seed is None:
                seed, self._first_seed = self._first_seed, None
            obs, info = self.env.reset(seed=seed, options=options)
            self._decisions = 0
            return self._flat(obs), info

        def step(self, action):
            """Repeat `action` (A,) in [−1, 1] for 2 frames. `ValueError` for a wrong shape or a non-finite action."""
            action = np.asarray(action, dtype=np.float64)
            if action.shape != self.action_space.shape or not np.isfinite(action).all():
                raise ValueError(f"{self.task} takes finite actions of shape {self.action_space.shape}, got {action}.")
            native = self._low + (np.clip(action, -1, 1) + 1) * 0.5 * (self._high - self._low)
            total = 0.0
            for _ in range(ACTION_REPEAT):
                obs, reward, terminated, truncated, info = self.env.step(native)
                total += float(reward)
                if terminated or truncated:
                    break
            self._decisions += 1
            truncated = truncated or self._decisions >= EPISODE_DECISIONS
            return self._flat(obs), total, bool(terminated), bool(truncated and not terminated), info

    return DMControlEnv


def make_env(task: str, seed: int | None = None) -> gymnasium.Env:
    """A DMControl task by its official name, such as "walker-walk".

    Raises `ConfigError` that suggests near names when the task is unknown.
    """
    if not isinstance(task, str):
        raise ConfigError(f"task={task!r} must be a name such as 'walker-walk'.")
    return _dm_control_env()(task, seed)
