"""Cards of teachers: what a teacher returns with its own planner, beside the official agent's returns.

    card, curve = teacher_card(settings, cell)         # of data/teachers/, or measured here
    write_table(results("quick") / "teacher" / f"{cell}-card.csv", [card_row(card)])

A shipped teacher has a card and a learning curve from its training. Of any other teacher only the weights are known: it
plays a few episodes here, and what its training was stays unknown.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lib.config import as_dict
from lib.environments import identity, make_env
from lib.planner import MPPI
from lib.records import paths
from lib.records.keys import key_of
from lib.records.ledger import name_of
from lib.records.seeds import episode_seeds
from lib.records.store import cached, read_table, write_json
from lib.study.cells import Cell, Settings
from lib.study.stats.intervals import bootstrap_ci
from lib.teachers.controllers import ReplanningController
from lib.teachers.replay import record
from lib.weights.names import CARD, card_of
from lib.weights.native import load_world_model, size_of, teacher_key, teacher_path
from lib.world_model import WorldModel


def teacher_card(settings: Settings, cell: Cell) -> tuple[dict, pd.DataFrame | None]:
    """The card of a cell's teacher, and its learning curve or None.

    Both come from `data/teachers/` for a shipped teacher; for any other one the card is measured, see `measured_card`.
    Raises `CheckpointError` when there is no such teacher.
    """
    name = settings.teacher_name(cell)
    weights = teacher_path(name)
    card = card_of(weights, *CARD) if weights.resolve().parent == paths.TEACHERS.resolve() else None
    if card is None:
        return measured_card(settings, cell, name), None
    return card, read_table(weights.with_suffix(".csv"))


def measured_card(settings: Settings, cell: Cell, teacher: str, episodes: int = 0) -> dict:
    """A card from so many episodes, or as many as the profile plays per arm, on card seeds; kept, so they are played
    once.

    `teacher` is a name or a weights file. The card says nothing of a training.
    """
    wm = load_world_model(teacher, task=cell.task, device=settings.device)
    planner, profile = MPPI(wm, settings.planner(wm.action_dim)), settings.profile
    seeds = episode_seeds("card", episodes or profile.eval_episodes, cell.seed)
    budget = {name: value for name, value in as_dict(planner.config).items() if name != "mode"}
    roots = (record, ReplanningController, MPPI, WorldModel)
    key = key_of(roots, budget, [teacher_key(teacher), identity(cell.task), settings.decisions(cell.task)], seeds)

    def make(path: Path) -> None:
        controller, envs = ReplanningController(planner), partial(make_env, cell.task)
        played = record(controller, envs, seeds, settings.decisions(cell.task), f"{cell} card")
        write_json(path, [float(e.rewards.sum()) for e in played])

    file = cached(paths.CACHE / "rollouts" / f"{name_of(key)}.json", key, make, f"{len(seeds)} episodes of {teacher}")
    returns = json.loads(file.read_text(encoding="utf-8"))
    return {
        "task": cell.task,
        "size": size_of(wm.config),
        "seed": cell.seed,
        "return_mean": float(np.mean(returns)),
        "returns": returns,
        "episode_seeds": seeds,
        "planner": budget,
    }


def card_row(card: dict) -> dict:
    """A card as one row of results: the mean return with its 95 % bootstrap interval over the card's episodes.

    `official_return` is that of the official agent at `official_frames`, and `official_share` the part of it that the
    teacher reaches; `expert_return` is that of a public expert of the task, where the official agent has none.
    `offline_updates` counts those on another run's replay. What is not known, or is not, is None.
    """
    low, high = bootstrap_ci(card["returns"])
    config, frames = card.get("config", {}), card.get("frames")
    row = {name: card[name] for name in ("task", "size", "seed")}
    row |= {name: card.get(name) for name in ("decisions", "frames", "minutes", "stopped_early")}
    row |= {"offline_updates": (card.get("offline") or {}).get("updates")}
    row |= {
        "episodes": len(card["returns"]),
        "return_mean": card["return_mean"],
        "return_low": low,
        "return_high": high,
    }
    row |= {name: card["planner"][name] for name in ("samples", "iterations")}
    row |= {name: card.get(name) for name in ("collect_samples", "collect_iterations")}
    row |= {name: config.get(name) for name in ("eval_episodes", "eval_samples", "eval_iterations")}
    official_frames, official = official_return(card["task"], frames) if frames else (None, None)
    share = card["return_mean"] / official if official else None
    row |= {"official_frames": official_frames, "official_return": official, "official_share": share}
    return row | {"expert_return": expert_return(card["task"])}


def official_return(task: str, frames: int) -> tuple[int, float] | tuple[None, None]:
    """The official agent's return after as many frames or the next listed number of them: (frames, return).

    A teacher is thus never compared with an agent that saw less. (None, None) for a task or a number of frames beyond
    `data/official_returns.csv`, whose sidecar has the source.
    """
    table = read_table(paths.DATA / "official_returns.csv")
    later = table[(table["task"] == task) & (table["frames"] >= frames)].sort_values("frames")
    return (int(later["frames"].iloc[0]), float(later["return"].iloc[0])) if len(later) else (None, None)


def expert_return(task: str) -> float | None:
    """The return of the task's public expert in `data/expert_returns.csv`, whose sidecar has the source; else None."""
    table = read_table(paths.DATA / "expert_returns.csv").set_index("task")
    return float(table.loc[task, "return"]) if task in table.index else None
