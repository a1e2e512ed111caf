"""Buffers of episodes to test a world model on: played by the teacher, disturbed or at random, or read from disk.

source = generate(settings, cell, "noisy", episodes=20, noise=0.3)    # played once, then read from the cache
source = check(read(cell, "test"), wm, cell.task, horizon=12)         # what a training run kept, or any file
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lib.config import ConfigError, PlannerConfig, as_dict, quoted
from lib.environments import identity, make_env
from lib.planner import MPPI
from lib.records import paths
from lib.records.keys import combine, file_hash, key_of, rest_of, shown
from lib.records.ledger import name_of
from lib.records.seeds import episode_seeds
from lib.records.store import cached, known
from lib.study.cells import Cell, Settings
from lib.teachers.controllers import RandomController, ReplanningController
from lib.teachers.replay import Episode, EpisodeFileError, load_episodes, record, save_episodes
from lib.weights.native import load_world_model, teacher_key
from lib.world_model import WorldModel

GENERATED = ("teacher", "noisy", "random")  # what may be generated, and is unless other buffers are asked for
KEPT = {"train": "train_buffer.safetensors", "test": "test_buffer.safetensors"}  # what a training run keeps
PLAYER = (64, 2)  # samples and iterations of the planner that plays: as good as 512 × 6, which takes ten times as long
SHARD = 10  # episodes that are played as one batch and kept in one file
SEEDS = 10_000  # start states of each `buffer_seed`


@dataclass
class Source:
    """A buffer: where states and actions come from. `on_policy`: known to be the teacher's own, undisturbed play."""

    name: str
    episodes: list[Episode]
    key: str
    on_policy: bool
    facts: dict


def generate(settings: Settings, cell: Cell, name: str, episodes: int, noise: float, buffer_seed: int = 0) -> Source:
    """A buffer of `GENERATED` with so many episodes; those that were played before are read from the cache.

    All three start from the same states, which `buffer_seed` picks. The teacher plays with a planner of 64 × 2, under
    smoke with that profile's; `noise` is what disturbs the actions of "noisy", see `ReplanningController`.
    """
    teacher, decisions = settings.teacher_name(cell), settings.decisions(cell.task)
    wm = load_world_model(teacher, task=cell.task, device=settings.device)
    budget = settings.profile.planner or PlannerConfig.budget(*PLAYER)
    budget = dataclasses.replace(budget, mode="eager")  # these few solves do not repay a minute of compiling
    planner = None if name == "random" else MPPI(wm, budget)
    facts = {
        "task": cell.task,
        "teacher": teacher_key(teacher),
        "planner": {k: v for k, v in as_dict(budget).items() if k != "mode"} if planner else None,
        "noise": noise if name == "noisy" else None,
        "decisions": decisions,
    } | ({"environment": identity(cell.task)} if ":" in cell.task else {})
    roots = (record, RandomController, ReplanningController, MPPI, WorldModel)
    seeds = episode_seeds("buffer", episodes, cell.seed, first=SEEDS * buffer_seed)
    found, keys = [], []
    for first in range(0, episodes, SHARD):
        part = seeds[first : first + SHARD]
        what = f"{cell} buffer {name} {first + len(part)}/{episodes}"

        def make(temporary: Path, part=part, what=what) -> None:
            player = RandomController(wm.action_dim)
            if planner:
                # The result depends on these episodes alone.
                player = ReplanningController(planner, noise if name == "noisy" else 0.0, heads_seed=part[0])
            save_episodes(temporary, record(player, partial(make_env, cell.task), part, decisions, what))

        keys.append(key_of(roots, facts, part))
        file = paths.CACHE / "buffers" / f"{cell}-{name}-{name_of(keys[-1])}.safetensors"
        found += load_episodes(cached(file, keys[-1], make, what, **facts, episode_seeds=part))
    return Source(
        name, found, combine([rest_of(key) for key in keys]), name == "teacher", facts | {"episode_seeds": seeds}
    )


def kept(cell: Cell, name: str) -> Path:
    """Where the cell's training run keeps its `train` or `test` episodes; only the machine that trained it has them."""
    return paths.CACHE / "training" / str(cell) / KEPT[name]


def available(cell: Cell, names: tuple[str, ...]) -> list[str]:
    """Those of the names that can be had here; says which kept buffers cannot."""
    lacking = [name for name in names if name in KEPT and not kept(cell, name).is_file()]
    if lacking:
        print(f"left out, as only the machine that trained {cell} has them: {', '.join(lacking)}")
    return [name for name in names if name not in lacking]


def check_name(name: str) -> None:
    """`ConfigError` for what is neither the name of a buffer nor a file."""
    if name not in (*GENERATED, *KEPT) and not any(os.path.isfile(p) for p in (name, paths.ROOT / name)):
        raise ConfigError(f"buffer={quoted(name)} is no file, and none of: {', '.join([*GENERATED, *KEPT])}.")


def read(cell: Cell, name: str) -> Source:
    """A buffer from disk: `train` or `test`, as the cell's training run keeps them, or the name of a file.

    Nobody knows who played a file's episodes, so only `test` is on-policy. Raises `ConfigError` when there is no such
    file and `EpisodeFileError` when it cannot be used.
    """
    on_policy = name == "test"
    if name in KEPT:
        path = kept(cell, name)
        if not path.is_file():
            raise ConfigError(
                f"buffer={name!r} is {shown(path)}, which only the machine that trained {cell} has; leave {name} out, "
                "or train with `python -m lib.teachers.cli`."
            )
    else:
        check_name(name)
        path = next(p for p in (Path(name), paths.ROOT / name) if p.is_file())
        name = path.stem
    episodes = load_episodes(path)
    recorded = paths.CELL.fullmatch(path.resolve().parent.name)  # training's folder has the cell's name
    task = known(path).get("task") or (recorded and paths.task_of(recorded[1]))
    if task and task != cell.task:
        raise EpisodeFileError(
            f"{shown(path)} holds episodes of {task}, not of {cell.task}; take one of the same task."
        )
    return Source(name, episodes, file_hash(path), on_policy, {"file": shown(path)})


def check(source: Source, wm: WorldModel, task: str, horizon: int) -> Source:
    """The buffer, if it fits the world model and has an episode of `horizon` decisions; else `EpisodeFileError`."""
    widths = {(e.obs.shape[1], e.actions.shape[1]) for e in source.episodes}
    own = (wm.native_obs_dim, wm.action_dim)
    if widths != {own}:
        raise EpisodeFileError(
            f"buffer {source.name} holds observations and actions {sorted(widths)} wide, but {task} has {own}; take a "
            "buffer of the same task."
        )
    largest = max(float(np.abs(e.actions).max()) for e in source.episodes)
    if largest > 1 + 1e-5:
        raise EpisodeFileError(f"buffer {source.name} holds an action of {largest:g}; actions must lie in [−1, 1].")
    longest = max(map(len, source.episodes))
    if longest < horizon:
        raise EpisodeFileError(
            f"buffer {source.name} is too short: its longest episode has {longest} decisions, and {horizon} are to be "
            "predicted; take longer episodes or a smaller horizon."
        )
    return source
