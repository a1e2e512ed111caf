"""Episodes of shipped teachers, of their earlier snapshots and of random actions: what offline datasets are made of.

    for source in sources("medium-replay", "walker-walk-1m-1"):
        episodes, about = recorded(source, settings, cell, count=10)

expert          the teacher, replanning at every decision
medium          the shipped snapshot of it whose return was nearest to half of the teacher's last
medium-replay   what training saw until then: random actions, and every snapshot up to that one, exploring
mixed           expert and medium, half of each

Episodes are recorded in shards, files with keys of their own under `data/cache/offline/`: kinds and profiles share
them, a killed run goes on where it was, and asking for 50 episodes where 20 exist plays 30.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lib.config import ConfigError, PlannerConfig, as_dict, one_of
from lib.environments import identity, make_env
from lib.files import numbered
from lib.planner import MPPI
from lib.records import paths
from lib.records.keys import key_of, shown
from lib.records.ledger import name_of
from lib.records.seeds import episode_seeds
from lib.records.store import cached, read_table
from lib.study.cells import Cell, Settings
from lib.study.evaluate import BLOCK
from lib.teachers.controllers import RandomController, ReplanningController
from lib.teachers.replay import Episode, load_episodes, record, save_episodes
from lib.weights.native import load_world_model, resolve_device, teacher_key
from lib.world_model import WorldModel

KINDS = ("expert", "medium", "medium-replay", "mixed")
PLANNER = PlannerConfig.budget(64, 2)  # right-sized: about as good as the standard one, at a fraction of its time
FIRST_SEED = 500_000  # in the block for collecting; the distillation sets have those before
SOURCE_SEEDS = 10_000  # of each source of episodes


@dataclass(frozen=True)
class Source:
    """Who plays: weights by name, "" for random actions; `exploration` in units of the spread of each plan."""

    weights: str
    exploration: float
    seed: int  # the first of its start states


def snapshots(teacher: str) -> dict[int, float]:
    """The shipped snapshots of a teacher, and its end: decisions of training → return at the evaluation there.

    Raises `ConfigError` when there are none with a return, as of every teacher from elsewhere.
    """
    curve = paths.TEACHERS / f"{teacher}.csv"
    returns = read_table(curve).set_index("decision")["return"].to_dict() if curve.is_file() else {}
    found = {d: returns[d] for d in numbered(paths.TEACHERS / teacher) if d in returns}
    if not found:
        raise ConfigError(f"teacher {teacher} has no snapshots in {shown(paths.TEACHERS)}; use dataset=expert.")
    return found | {max(returns): returns[max(returns)]}


def sources(kind: str, teacher: str) -> list[Source]:
    """Who plays the episodes of a kind of dataset, each as many of them. `ConfigError` as of `snapshots`."""
    seeds = iter(range(FIRST_SEED, FIRST_SEED + 10**9, SOURCE_SEEDS))
    random, expert = Source("", 1.0, next(seeds)), Source(teacher, 0.0, next(seeds))
    if one_of("dataset", kind, KINDS) == "expert":
        return [expert]
    *before, last = snapshots(teacher).items()
    middle = min(before, key=lambda item: abs(item[1] - last[1] / 2))[0]
    first = {decisions: next(seeds) for decisions, _ in before}
    medium = Source(f"{teacher}/{middle}", 0.0, first[middle])
    if kind == "medium-replay":
        # Start states of their own: what explores is not what plays medium.
        until = [d for d, _ in before if d <= middle]
        return [random, *(Source(f"{teacher}/{d}", 1.0, first[d] + SOURCE_SEEDS // 2) for d in until)]
    return [medium] if kind == "medium" else [expert, medium]


def recorded(source: Source, settings: Settings, cell: Cell, count: int) -> tuple[list[Episode], dict]:
    """The first `count` episodes of a source, played where they are not recorded, and what is known of them."""
    decisions = settings.decisions(cell.task)
    selection = "sample" if source.exploration else "mean"  # of one elite, as in training, or the elites' mean
    planner = dataclasses.replace(settings.profile.planner or PLANNER, action_selection=selection)
    budget = {k: v for k, v in as_dict(planner).items() if k != "mode"} if source.weights else None
    roots = (record, RandomController, ReplanningController, MPPI, WorldModel)
    weights = teacher_key(source.weights) if source.weights else ""
    controller, episodes = None, []
    seeds = episode_seeds("collect", count, cell.seed, first=source.seed)
    for block in (seeds[i : i + BLOCK] for i in range(0, count, BLOCK)):
        key = key_of(roots, weights, budget, source.exploration, identity(cell.task), decisions, block)
        what = f"{len(block)} episodes of {source.weights or 'random actions'}"

        def make(path: Path, block=block, what=what) -> None:
            nonlocal controller
            controller = controller or _controller(source, settings, cell, planner)
            if source.weights:
                controller.heads_seed = block[0]  # the result depends on these episodes alone
            save_episodes(path, record(controller, partial(make_env, cell.task), block, decisions, what))

        episodes += load_episodes(cached(paths.CACHE / "offline" / f"{name_of(key)}.safetensors", key, make, what))
    returns = [float(e.rewards.sum(dtype=np.float64)) for e in episodes]
    about = {"weights": source.weights or "random actions", "weights_key": weights, "planner": budget}
    about |= {"exploration": source.exploration, "episodes": count, "return_mean": float(np.mean(returns))}
    return episodes, about | {"first_seed": seeds[0]}


def _controller(source: Source, settings: Settings, cell: Cell, planner: PlannerConfig):
    if not source.weights:
        return RandomController(make_env(cell.task).action_space.shape[0])
    wm = load_world_model(source.weights, task=cell.task, device=resolve_device(settings.device))
    return ReplanningController(MPPI(wm, planner), exploration=source.exploration)
