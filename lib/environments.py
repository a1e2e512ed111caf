"""DMControl tasks as `gymnasium.Env`: action repeat 2, 500 decisions, the official observation order.

    env = make_env("walker-walk", seed=0)
    obs, _ = env.reset(seed=3)                       # (obs_dim,) float32
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())

The simulator is dm_control (through shimmy's compatibility wrapper). An episode in which it diverges ends there: the
step is terminated, its reward NaN, its observation the last one that was seen, and `info["diverged"]` says why. Nothing
is rendered unless asked for, and nothing that renders is loaded before.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from typing import TYPE_CHECKING

import numpy as np

from lib.config import ConfigError, one_of

if TYPE_CHECKING:
    import gymnasium

ACTION_REPEAT = 2  # simulator frames per decision
EPISODE_DECISIONS = 500

# Official names join domain and task with a dash; a few domains have a shorter official name.
DOMAIN_ALIASES = {"cup": "ball_in_cup", "pointmass": "point_mass"}

# Tasks of the suite that cannot be stepped soundly, and why.
REFUSED = dict.fromkeys(("lqr-lqr-2-1", "lqr-lqr-6-2"), "its actions have no bounds that [-1, 1] could stand for")
REFUSED["quadruped-escape"] = "it draws its terrain at every start, which needs a rendering backend"


@functools.cache
def _suite():
    """dm_control's suite, imported late, and without the rendering backend that it would load at once: whatever
    MUJOCO_GL says, physics must not die of a library that only drawing needs."""
    asked = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        from dm_control import _render, suite
    finally:
        del os.environ["MUJOCO_GL"]
        if asked is not None:
            os.environ["MUJOCO_GL"] = asked
    if _render.BACKEND == "off":  # else dm_control was imported before, by somebody who draws
        _render.Renderer = _renderer
    return suite


def _renderer(**size):
    """In the place of dm_control's renderer: loads the backend of MUJOCO_GL, or else one that works, and uses it."""
    from dm_control import _render

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # which needs no screen; dm_control would take one that does
    try:
        return importlib.reload(_render).Renderer(**size)
    except Exception as error:  # each library has its own for one meaning
        raise ConfigError(
            f"nothing can be drawn here with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}: {str(error).rstrip('.')}; "
            "install libegl1 or libosmesa6, and unset MUJOCO_GL and PYOPENGL_PLATFORM or let them name it."
        ) from None


def _official(domain: str, task: str) -> str:
    short = {long: alias for alias, long in DOMAIN_ALIASES.items()}
    return f"{short.get(domain, domain)}-{task}".replace("_", "-")


def task_names() -> list[str]:
    """Official names of the DMControl suite's tasks, such as "walker-walk" and "cup-catch", but for `REFUSED` ones."""
    return sorted({_official(*task) for task in _suite().ALL_TASKS} - {*REFUSED})


def _domain_and_task(name: str) -> tuple[str, str]:
    if name in REFUSED:
        raise ConfigError(f"task={name!r} is not offered: {REFUSED[name]}; take another.")
    one_of("task", name, task_names())
    return next(task for task in _suite().ALL_TASKS if _official(*task) == name)


@functools.cache
def _dm_control_env() -> type[gymnasium.Env]:
    """The class of the environments, made when one is first asked for: nothing else here needs gymnasium."""
    _suite()  # before shimmy imports dm_control, with a rendering backend
    import gymnasium
    from dm_control.rl.control import PhysicsError
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
            with np.errstate(over="ignore"):  # infinite then, as whoever looks will see
                return np.concatenate([np.ravel(obs[k]) for k in self._keys]).astype(np.float32)

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            """Start an episode. `seed` fixes its start state; without one, episodes of an environment follow on."""
            if seed is None:
                seed, self._first_seed = self._first_seed, None
            obs, info = self.env.reset(seed=seed, options=options)
            self._decisions, self._seen = 0, self._flat(obs)
            return self._seen, info

        def step(self, action):
            """Repeat `action` (A,) in [−1, 1] for 2 frames. `ValueError` for a wrong shape or a non-finite action.

            Where the simulator diverges see the module.
            """
            action = np.asarray(action, dtype=np.float64)
            if action.shape != self.action_space.shape or not np.isfinite(action).all():
                raise ValueError(f"{self.task} takes finite actions of shape {self.action_space.shape}, got {action}.")
            native = self._low + (np.clip(action, -1, 1) + 1) * 0.5 * (self._high - self._low)
            total = 0.0
            try:
                for _ in range(ACTION_REPEAT):
                    obs, reward, terminated, truncated, info = self.env.step(native)
                    total += float(reward)
                    if terminated or truncated:
                        break
            except PhysicsError as error:
                return self._diverged(str(error))
            obs = self._flat(obs)
            if not (math.isfinite(total) and np.isfinite(obs).all()):
                return self._diverged("its reward or observation is not finite")
            self._decisions, self._seen = self._decisions + 1, obs
            truncated = truncated or self._decisions >= EPISODE_DECISIONS
            return obs, total, bool(terminated), bool(truncated and not terminated), info

        def _diverged(self, why: str):
            return self._seen, math.nan, True, False, {"diverged": why}

    return DMControlEnv


def make_env(task: str, seed: int | None = None) -> gymnasium.Env:
    """A DMControl task by its official name, such as "walker-walk".

    Raises `ConfigError` that suggests near names when the task is unknown, and for one of `REFUSED`.
    """
    if not isinstance(task, str):
        raise ConfigError(f"task={task!r} must be a name such as 'walker-walk'.")
    return _dm_control_env()(task, seed)
