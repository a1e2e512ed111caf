"""DMControl's suite by official names, with the tasks that the TD-MPC2 authors added.

    env, divergence = load("walker-walk", seed=0)     # a gymnasium.Env, and what it raises when it diverges

dm_control picks a rendering backend at import. Here nothing is rendered unless asked for, and nothing that renders is
loaded before: import dm_control through `dm_suite()` alone.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING

from lib.config import ConfigError, one_of

if TYPE_CHECKING:
    import gymnasium

# Official names join domain and task with a dash; a few domains have a shorter official name.
DOMAIN_ALIASES = {"cup": "ball_in_cup", "pointmass": "point_mass"}

# Tasks of the suite that cannot be stepped soundly, and why.
REFUSED_TASKS = dict.fromkeys(("lqr-lqr-2-1", "lqr-lqr-6-2"), "its actions have no bounds that [-1, 1] could stand for")
REFUSED_TASKS["quadruped-escape"] = "it draws its terrain at every start, which needs a rendering backend"


@functools.cache
def dm_suite():
    """dm_control's suite, imported late, and without the rendering backend that it would load at once: whatever
    MUJOCO_GL says, physics must not die of a library that only drawing needs."""
    logging.getLogger("absl").addFilter(lambda record: "settotalmass" not in record.getMessage())  # nobody's to mend
    asked = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        from dm_control import _render
        from dm_control import suite as loaded
    finally:
        del os.environ["MUJOCO_GL"]
        if asked is not None:
            os.environ["MUJOCO_GL"] = asked
    if _render.BACKEND == "off":  # else dm_control was imported before, by somebody who draws
        _render.Renderer = _renderer
    return loaded


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
    """Official names of all tasks, such as "walker-walk" and "cup-catch", but for `REFUSED_TASKS` ones."""
    return sorted({_official(*task) for task in dm_suite().ALL_TASKS} - {*REFUSED_TASKS} | {*_added()})


def _added() -> dict:
    dm_suite()  # before anything else imports dm_control
    from lib.simulators.added_tasks import ADDED_TASKS

    return ADDED_TASKS


def load(name: str, seed: int) -> tuple[gymnasium.Env, type[Exception]]:
    """A task by its official name, through shimmy's compatibility wrapper, and what it raises when it diverges.

    Raises `ConfigError` that suggests near names when the task is unknown, and for one of `REFUSED_TASKS`.
    """
    if name in REFUSED_TASKS:
        raise ConfigError(f"task={name!r} is not offered: {REFUSED_TASKS[name]}; take another.")
    if name.startswith("mw-"):
        raise ConfigError(f"task={name!r} is one of Meta-World's, which mt80 weights know and nothing here can play.")
    one_of("task", name, task_names())
    from dm_control.rl.control import PhysicsError
    from shimmy.dm_control_compatibility import DmControlCompatibilityV0

    if name in _added():
        env = _added()[name](seed)
    else:
        domain, task = next(known for known in dm_suite().ALL_TASKS if _official(*known) == name)
        env = dm_suite().load(domain, task, task_kwargs={"random": seed})
    return DmControlCompatibilityV0(env), PhysicsError
