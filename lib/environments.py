"""Environments as `gymnasium.Env` with flat float32 observations and actions in [−1, 1].

    env = make_env("walker-walk", seed=0)     # DMControl's suite, and the tasks that the TD-MPC2 authors added
    env = make_env("gym:HalfCheetah-v5")      # any registered Gymnasium environment, also gym:module:Id-v0
    env = make_env("my_module:make")          # what your own function or class `make` returns
    obs, _ = env.reset(seed=3)                # (obs_dim,) float32
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())

A decision repeats its action, for two frames in the suite and one elsewhere, and sums the rewards. Where the suite's
simulator diverges the episode ends: that step is terminated, its reward NaN, its observation the last one seen, and
`info[TOLD]` is "diverged: " and why. Where another environment raises, that begins with "failed: ", and where what it
gives is not finite, with "unsound: "; so may the info of a reset, whose observation is then nothing to act on.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import inspect
import logging
import math
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib.config import ConfigError, one_of, quoted

if TYPE_CHECKING:
    import gymnasium

ACTION_REPEAT = 2  # simulator frames per decision of the suite
EPISODE_DECISIONS = 500  # of the suite
TOLD = "speculative_tdmpc2"  # the key in `info` under which an environment's failure is told


class EnvironmentFailed(RuntimeError):
    """An environment raised, or gave what is not finite; the message names it, the decision and the reason."""


def failure(info: dict) -> str:
    """What an environment outside the suite failed with, by a step's or reset's info; "" if it did not."""
    how, _, why = info.get(TOLD, "").partition(": ")
    return why if how in ("failed", "unsound") else ""


def make_env(
    task: str, seed: int | None = None, repeat: int | None = None, decisions: int | None = None
) -> gymnasium.Env:
    """The environment of a name: see the module. Its `decisions` are those of a whole episode.

    The action's `repeat` is 2 for the suite and 1 elsewhere unless given; `decisions` follow from the environment's own
    time limit. Raises `ConfigError` for an unknown name, with near ones, and for an environment that cannot be
    controlled so: pixels, actions that are discrete or have no bounds, no time limit.
    """
    if not isinstance(task, str):
        raise ConfigError(f"task={task!r} must be a name such as 'walker-walk'.")
    kind, _, name = task.partition(":")
    if name:
        _quieten()
        env = _gymnasium_env(name) if kind == "gym" else _own_env(kind, name)
        return _adapter()(env, task, seed, repeat or action_repeat(task), decisions)
    from lib.simulators import suite

    env, divergence = suite.load(task, 0 if seed is None else seed)
    return _adapter()(env, task, seed, repeat or ACTION_REPEAT, decisions or EPISODE_DECISIONS, divergence)


def action_repeat(task: str) -> int:
    """Simulator frames of a decision, unless another number is asked for."""
    return 1 if ":" in task else ACTION_REPEAT


def task_names() -> list[str]:
    """Official names of the DMControl tasks that can be made, such as "walker-walk" and "cup-catch"."""
    from lib.simulators import suite

    return suite.task_names()


def check_task(task: str) -> None:
    """`ConfigError` unless an environment of this name can be made."""
    make_env(task).close() if ":" in task else one_of("task", task, task_names())


@functools.cache
def episode_decisions(task: str, at_most: int = EPISODE_DECISIONS) -> int:
    """Decisions of an episode: the whole one, unless `at_most` is less than one of the suite."""
    if ":" not in task:
        return min(at_most, EPISODE_DECISIONS)
    env = make_env(task)
    env.close()
    return min(env.decisions, at_most) if at_most < EPISODE_DECISIONS else env.decisions


@functools.cache
def identity(task: str) -> str:
    """What stands for an environment in the keys of results: its name; outside the suite also whose code it is, the
    version of Gymnasium and what it was registered with, or the checksum of the factory's module."""
    kind, _, name = task.partition(":")
    if not name:
        return task
    import gymnasium

    env = make_env(task)
    env.close()
    source = inspect.getsourcefile(sys.modules[kind]) if kind != "gym" else None
    code = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else env.spec.to_json()
    return f"{task} {gymnasium.__version__} {code}"


# ---------------------------------------------------------------------------------------------- whose environment


@functools.cache
def _quieten() -> None:
    """MuJoCo's warnings go to Python's log, not to the terminal and a MUJOCO_LOG.TXT; what nobody can mend, nowhere."""
    with contextlib.suppress(ImportError):  # an environment of one's own needs no MuJoCo
        import mujoco

        if mujoco.get_mju_user_warning() is None:
            mujoco.set_mju_user_warning(_heard)


def _heard(warning: str) -> None:
    if "settotalmass" not in warning:
        logging.getLogger("mujoco").warning(warning.strip())


def _gymnasium_env(name: str) -> gymnasium.Env:
    import gymnasium

    try:
        return gymnasium.make(name)
    except gymnasium.error.UnregisteredEnv:
        near = difflib.get_close_matches(name, sorted(gymnasium.registry, reverse=True), n=3)
        hint = f" Did you mean {' or '.join(f'gym:{known}' for known in near)}?" if near else ""
        raise ConfigError(
            f"gym:{quoted(name)} is not registered; gymnasium.pprint_registry() lists all.{hint}"
        ) from None
    except (gymnasium.error.Error, ImportError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"gym:{quoted(name)} cannot be made: {said}; install what it needs.") from None


def _own_env(module: str, name: str) -> gymnasium.Env:
    """What the factory `name` of a module makes; only that is imported. No fingerprint follows it: see `identity`."""
    import gymnasium

    try:
        factory = pkgutil.resolve_name(f"{module}:{name}")
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"task={quoted(f'{module}:{name}')}: {str(error).rstrip('.')}; run where {module} can be imported from, or "
            "put its folder on the PYTHONPATH."
        ) from None
    except AttributeError:
        found = sys.modules[module]
        one_of(f"the factory in {module}", name, [known for known in dir(found) if callable(getattr(found, known))])
        raise
    try:
        env = factory()
    except Exception as error:  # whatever somebody's code may raise
        raise ConfigError(f"{module}:{name}() raised {type(error).__name__}: {error}.") from error
    if not isinstance(env, gymnasium.Env):
        raise ConfigError(f"{module}:{name} returned a {type(env).__name__}; it must return a gymnasium.Env.")
    return env


# --------------------------------------------------------------------------------------------------- the adapter


def _width(space, task: str) -> int:
    """Numbers in an observation of a space; `ConfigError` for one that is not of numbers."""
    import gymnasium.spaces as spaces

    if isinstance(space, spaces.Dict):
        return sum(_width(part, task) for part in space.values())
    if isinstance(space, spaces.Tuple):
        return sum(_width(part, task) for part in space)
    if isinstance(space, spaces.Box) and len(space.shape) >= 2 and space.dtype == np.uint8:
        raise ConfigError(f"{task} is seen through pixels, {space.shape}; only observations of states are supported.")
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ConfigError(f"{task} has observations of {type(space).__name__}; only numbers are supported.")
    return math.prod(space.shape)


def _order(obs):
    """The keys of an observation's parts, at all levels, in the order that it has them; None for an array."""
    if isinstance(obs, tuple):
        obs = dict(enumerate(obs))
    return {key: _order(part) for key, part in obs.items()} if isinstance(obs, dict) else None


def _leaves(obs, order) -> list[np.ndarray]:
    """The arrays in an observation, in an order that `_order` has told."""
    if order is None:
        return [np.ravel(obs)]
    return [leaf for key, below in order.items() for leaf in _leaves(obs[key], below)]


def _bounds(space, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest actions (A,); `ConfigError` unless there are some."""
    import gymnasium.spaces as spaces

    if not isinstance(space, spaces.Box):
        raise ConfigError(f"{task} takes actions of {type(space).__name__}; only continuous ones (Box) are supported.")
    low, high = (np.asarray(x, np.float64).ravel() for x in (space.low, space.high))
    if not (np.isfinite(low).all() and np.isfinite(high).all() and low.size):
        raise ConfigError(
            f"{task} takes actions without bounds that [-1, 1] could stand for; give its action space some."
        )
    return low, high


def _time_limit(env: gymnasium.Env) -> int | None:
    """Frames of an episode, as the environment was registered or wrapped; None where nothing says so."""
    import gymnasium

    limits = [env.spec.max_episode_steps if env.spec else None]
    while isinstance(env, gymnasium.Wrapper):
        limits.append(env._max_episode_steps if isinstance(env, gymnasium.wrappers.TimeLimit) else None)
        env = env.env
    return min(filter(None, limits), default=None)


@functools.cache
def _adapter() -> type[gymnasium.Env]:
    """The class of the environments, made when one is first asked for: nothing else here needs gymnasium."""
    import gymnasium

    class Adapter(gymnasium.Wrapper):
        """See the module. `divergence` are exceptions of a simulator that diverges; () where that is a failure."""

        def __init__(self, env, task: str, seed: int | None, repeat: int, decisions: int | None, divergence=()):
            super().__init__(env)
            self.task, self._repeat, self._divergence, self._order = task, repeat, divergence, None
            if repeat < 1 or (decisions is not None and decisions < 1):
                raise ConfigError(f"{task}: repeat={repeat} and decisions={decisions} must be at least 1.")
            if not decisions and not (frames := _time_limit(env)):
                raise ConfigError(f"{task} has no time limit; wrap it in gymnasium.wrappers.TimeLimit.")
            self.decisions = decisions or math.ceil(frames / repeat)
            self._low, self._high = _bounds(env.action_space, task)
            width = _width(env.observation_space, task)
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self._low.shape, np.float32)
            self._first_seed, self._decisions = seed, 0

        def _flat(self, obs) -> np.ndarray:
            with np.errstate(over="ignore"):  # infinite then, as whoever looks will see
                flat = np.concatenate(_leaves(obs, self._order)).astype(np.float32)
            if flat.shape != self.observation_space.shape:
                raise ConfigError(
                    f"{self.task} gave an observation of {flat.size} numbers, but its observation_space declares "
                    f"{self.observation_space.shape[0]}; correct the environment."
                )
            return flat

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            """Start an episode. `seed` fixes its start state; without one, episodes of an environment follow on."""
            seed, self._first_seed, self._decisions = self._first_seed if seed is None else seed, None, 0
            self._seen = np.zeros(self.observation_space.shape, np.float32)
            try:
                obs, info = self.env.reset(seed=seed, options=options)
                self._order = self._order or _order(obs)
                obs = self._flat(obs)
            except ConfigError:
                raise
            except Exception as error:  # whatever somebody's environment may raise
                return self._seen, self._told(
                    "failed", f"its reset with seed {seed} raised {type(error).__name__}: {error}"
                )
            if not np.isfinite(obs).all():
                return self._seen, self._told("unsound", f"its reset with seed {seed} gave what is not finite")
            self._seen = obs
            return obs, info

        def step(self, action):
            """Repeat `action` (A,) in [−1, 1]. `ValueError` for a wrong shape or a non-finite action.

            Where the environment fails see the module.
            """
            action = np.asarray(action, dtype=np.float64)
            if action.shape != self.action_space.shape or not np.isfinite(action).all():
                raise ValueError(f"{self.task} takes finite actions of shape {self.action_space.shape}, got {action}.")
            space = self.env.action_space
            native = self._low + (np.clip(action, -1, 1) + 1) * 0.5 * (self._high - self._low)
            native, total = native.reshape(space.shape).astype(space.dtype, copy=False), 0.0
            try:
                for _ in range(self._repeat):
                    obs, reward, terminated, truncated, info = self.env.step(native)
                    total += float(reward)
                    if terminated or truncated:
                        break
                obs = self._flat(obs)
            except self._divergence as error:
                return self._ended("diverged", str(error))
            except ConfigError:
                raise
            except Exception as error:  # whatever somebody's environment may raise
                return self._ended("failed", f"{type(error).__name__}: {error}")
            if not (math.isfinite(total) and np.isfinite(obs).all()):
                how = "diverged" if self._divergence else "unsound"
                return self._ended(how, "its reward or observation is not finite")
            self._decisions, self._seen = self._decisions + 1, obs
            truncated = truncated or self._decisions >= self.decisions
            return obs, total, bool(terminated), bool(truncated and not terminated), info

        def _ended(self, how: str, why: str):
            return self._seen, math.nan, True, False, self._told(how, why)

        def _told(self, how: str, why: str) -> dict[str, str]:
            return {TOLD: f"{how}: {self.task}, decision {self._decisions}: {why}"}

    return Adapter
