"""What a training run ships to `data/teachers/`, and how a run whose folder is lost goes on from that.

Shipped are float16 weights, the learning curve, and a card with the returns of exactly those weights. Replay and
optimisers are not: a machine may be lost with them.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import torch

from lib.config import ConfigError, PlannerConfig, as_dict
from lib.environments import action_repeat, episode_decisions, make_env
from lib.files import numbered
from lib.planner import MPPI
from lib.records import paths
from lib.records.fingerprint import fingerprint
from lib.records.keys import file_hash, shown
from lib.records.seeds import episode_seeds
from lib.records.store import atomic_path, machine, read_table, versions, write_json, write_table, write_text
from lib.teachers.config import SNAPSHOTS, TeacherConfig
from lib.teachers.controllers import ReplanningController
from lib.teachers.replay import record, save_episodes
from lib.teachers.training import TrainingRun, met
from lib.teachers.training_state import CURVE_COLUMNS, changed_settings, run_folder
from lib.weights import names as registry
from lib.weights.native import load_world_model

# The runs whose snapshots are shipped, and at which decisions: 06_offline_vs_downstream compares them.
STUDIED = {(task, "1m", 1): decisions for task, decisions in SNAPSHOTS.items()}


def replaced(config: TeacherConfig, replace: bool = False) -> str:
    """Why this run must not be shipped in the place of another run's teacher; "" if it may be.

    `replace` allows it, except beside snapshots of the other run: a cell's weights are of one run.
    """
    shipped = paths.TEACHERS / f"{config.name}.safetensors"
    if not shipped.is_file() or file_hash(shipped) in has_shipped(run_folder(config)):
        return ""
    if replace and numbered(paths.TEACHERS / config.name):
        return f"{shown(shipped.with_suffix(''))} has snapshots of the run that is shipped; remove that folder first."
    return (
        ""
        if replace
        else (
            f"{shown(shipped)} is a teacher that this run did not train; give another --seed, or --replace to put this "
            "run's in its place (what was measured with the other one is then stale)."
        )
    )


def has_shipped(folder: Path) -> list[str]:
    """sha256 of all the weights that a run has shipped, kept in its folder."""
    record = folder / "shipped.txt"
    return record.read_text(encoding="utf-8").split() if record.is_file() else []


def ship(config: TeacherConfig, folder: Path | None = None) -> dict:
    """Ship a run's newest snapshot to `data/teachers/` and return its card.

    The card's returns are those of the float16 file itself, at the standard planner budget, on seeds of their own.
    """
    folder = folder or run_folder(config)
    snapshots = numbered(folder / "snapshots")
    if not snapshots:
        raise ConfigError(f"{folder} has no snapshot to ship; train first.")
    decisions = max(snapshots)
    newest = snapshots[decisions]
    wm = load_world_model(newest)
    planner, envs = MPPI(wm, PlannerConfig.standard(wm.action_dim)), functools.partial(make_env, config.task)
    seeds = episode_seeds("card", config.card_episodes, config.seed)
    controller, what = ReplanningController(planner), f"{config.name} card"
    decisions_each = min(config.episode_decisions or 10**9, episode_decisions(config.task))
    episodes = record(controller, envs, seeds, decisions_each, what)
    returns = [float(e.rewards.sum()) for e in episodes]
    state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    counters, curve = state["counters"], [row for row in state["curve"] if row["decision"] <= decisions]
    card = {
        "task": config.task,
        "size": config.size,
        "seed": config.seed,
        "decisions": decisions,
        "frames": decisions * action_repeat(config.task),
        "episodes": counters["episodes"],
        "updates": counters["updates"],
        "diverged": counters["diverged"],  # episodes of the training that the simulator ended
        "stopped_early": decisions < config.decisions and met(curve, config.stop_return),
        "offline": state["offline"],  # the replay that the run began with, None if it collected everything itself
        "continued": counters["continued"],  # from which of its weights alone, its replay being lost
        "scale": float(state["learner"]["scale"]),  # the running one of the policy's loss
        "return_mean": float(np.mean(returns)),
        "return_std": float(np.std(returns, ddof=1)) if len(returns) > 1 else None,
        "returns": returns,
        "lengths": [len(e) for e in episodes],  # shorter where the simulator diverged
        "episode_seeds": seeds,
        "planner": as_dict(planner.config),
        "collect_samples": config.collect_samples,
        "collect_iterations": config.collect_iterations,
        "weights": "float16; the returns above were measured with these very weights cast to float32",
        "minutes": counters["minutes"],
        "processes": 1 + len(state["ranks"]),
        "machine": machine(),
        "versions": versions(),
        "code": fingerprint(TrainingRun, ship),
        "config": as_dict(config),
    }
    target = paths.TEACHERS / f"{config.name}.safetensors"
    with atomic_path(folder / "test_buffer.safetensors") as path:
        save_episodes(path, episodes)
    write_text(folder / "shipped.txt", "\n".join([*has_shipped(folder), file_hash(newest)]))  # first: it may be killed
    with atomic_path(target) as path:
        path.write_bytes(newest.read_bytes())
    write_table(target.with_suffix(".csv"), curve or [dict.fromkeys(CURVE_COLUMNS)])
    write_json(target.with_suffix(".json"), card)
    registry.register(config.name)
    if (config.task, config.size, config.seed) in STUDIED:
        ship_snapshots(config, folder)
    return card


def ship_snapshots(config: TeacherConfig, folder: Path | None = None) -> list[str]:
    """Ship the snapshots in `STUDIED` from before a run's end as `data/teachers/<cell>/<decisions>.safetensors`.

    Returns their names, `<cell>/<decisions>`, by which they are loaded as any teacher is. The last of the run's
    snapshots is the teacher itself.
    """
    files = numbered((folder or run_folder(config)) / "snapshots")
    wanted = [n for n in STUDIED[config.task, config.size, config.seed] if n < max(files, default=0)]
    names = []
    for file in [files[n] for n in wanted if n in files]:
        names.append(f"{config.name}/{file.stem}")
        with atomic_path(paths.TEACHERS / f"{names[-1]}.safetensors") as path:
            path.write_bytes(file.read_bytes())
        registry.register(names[-1])
    if absent := [n for n in wanted if n not in files]:
        print(f"{config.name}: its rounds left no snapshot at decision {', '.join(map(str, absent))}", file=sys.stderr)
    return names


def go_on(run: TrainingRun, first: int) -> None:
    """Let a run whose folder is lost go on from what it shipped, after `first` decisions that only fill its replay.

    A run that began so and was killed is left as it is: the same command goes on with it. All ranks call this together.
    Raises `ConfigError` where the run's own state is there or it shipped nothing or with other settings,
    `CheckpointError` for weights or a card that cannot be used.
    """
    file = paths.TEACHERS / f"{run.config.name}.safetensors"
    sha256 = run.ranks.from_main(lambda: file_hash(file) if file.is_file() else "")
    if any(sha256 == begun["sha256"] for begun in run.continued):
        return
    if run.decisions:
        raise ConfigError(f"{shown(run.folder)} holds the run itself; without --from-shipped it goes on from there.")
    card, weights, curve = run.ranks.from_main(lambda: _shipped(file))
    if changed := changed_settings(run.config, card["config"]):
        raise ConfigError(f"{run.config.name} was trained with another {changed}; give the settings of its card.")
    run.begin_from(card, weights, curve, sha256, first)
    if run.ranks.main:
        write_text(run.folder / "shipped.txt", sha256)  # what is shipped is this run's own, to be replaced by it


def _shipped(file: Path) -> tuple[dict, dict, list[dict]]:
    """Card, weights and learning curve of a shipped teacher."""
    card = registry.card_of(file, *registry.GOES_ON)
    if card is None or not file.is_file():
        raise ConfigError(f"no {shown(file)} is shipped, with its card; train this teacher without --from-shipped.")
    rows = read_table(file.with_suffix(".csv")).dropna(subset="decision").to_dict("records")
    curve = [{name: value for name, value in row.items() if value == value} for row in rows]
    return card, load_world_model(file).state_dict(), curve
