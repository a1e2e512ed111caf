"""What is asked for, and refused before anything is made."""

from __future__ import annotations

from lib.config import ConfigError
from lib.environments import make_env
from lib.weights.native import CheckpointError, load_world_model
from lib.world_model import WorldModel


def check(rate: float, keep: float, minutes: float) -> None:
    """`ConfigError` for numbers that are none of a run."""
    if not 0 < keep < 1:
        raise ConfigError(f"keep={keep} must lie between 0 and 1, as 0.98 for 98 %.")
    if not 0 <= rate < 1e6:
        raise ConfigError(f"rate={rate} must be a number of decisions per second, or 0 for no deadline.")
    if not 0 < minutes <= 10_000:
        raise ConfigError(f"minutes={minutes} must be above 0, and at most 10,000.")


def fitting(teacher: str, task: str) -> WorldModel:
    """The teacher's world model. Raises `CheckpointError` for one that has other widths than the environment."""
    wm, env = load_world_model(teacher, task=task), make_env(task)
    env.close()
    theirs, ours = (*env.observation_space.shape, *env.action_space.shape), (wm.native_obs_dim, wm.action_dim)
    if theirs != ours:
        numbers = "{} observations and {} actions, but {} has {} and {}".format(*ours, task, *theirs)
        raise CheckpointError(f"{teacher} takes {numbers}; give the environment that it was trained on.")
    return wm
