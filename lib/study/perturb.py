"""Arms in worlds that their teacher was not trained in: paired episodes, on the start states of the evaluation.

    stage = Stage.of(Cell.parse("walker-walk-1m-1"), "paper")
    write_perturbed(stage, ["teacher", "policy"], ["mass-1.5", "push-0.05"], episodes=20, planner=planner)

A world is a perturbation of `lib.simulators.perturbations`; the world "none" is the teacher's own, whose episodes are
those of the evaluation. Kinds that a task's model does not have, friction where nothing touches, are left out there.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.config import ConfigError, PlannerConfig, as_dict
from lib.environments import identity, make_env
from lib.files import files
from lib.records import paths
from lib.records.keys import ResultError, key_of, rest_of
from lib.records.ledger import same
from lib.records.store import cached, intact, known, read_table, write_table
from lib.rollout import rollout
from lib.simulators.perturbations import Perturbation, perturbed
from lib.study.arms import Arm
from lib.study.cells import Cell, Settings
from lib.study.evaluate import Stage, Tables, arm_roots, evaluate, records
from lib.study.model_quality.buffers import generate
from lib.study.profiles import PROFILES
from lib.study.stats.changed import NONE
from lib.weights.native import teacher_key

OBSERVED = 10  # of the teacher's episodes, whose observations say how large noise is
ABOUT = ["task", "size", "teacher_seed", "arm", "perturbation", "severity"]
PLAYED = ["episode_seed", "return", "planner_calls", "length"]


@dataclass
class World(Stage):
    """A stage whose world is perturbed; std (obs_dim,) are the deviations of observations, which noise asks for."""

    perturbation: Perturbation | None = None
    std: np.ndarray | None = None

    def key(self, arm: Arm) -> str:
        roots = (*arm_roots(arm), run_perturbed)
        return key_of(roots, rest_of(super().key(arm)), str(self.perturbation), self._noise)

    @property
    def _noise(self) -> np.ndarray | None:
        return self.std if self.perturbation.kind == "noise" else None

    def run(self, arm: Arm, controller, seeds: list[int], what: str) -> Tables:
        world, what = (self.cell.task, self.perturbation, self._noise), what.replace(arm.name, f"{self} {arm.name}")
        return run_perturbed(arm, controller, world, seeds, self.decisions, what)

    def committed(self, arm: Arm, key: str) -> Tables:
        file = perturbed_file(self.profile, self.cell)
        keys = known(file).get("keys", {}) if intact(file) else {}
        if not same(keys.get(str(self), {}).get(arm.name), key):
            return Tables()
        table = read_table(file)
        mine = (table["arm"] == arm.name) & (table["perturbation"] == self.perturbation.kind)
        mine &= table["severity"] == self.perturbation.severity
        return Tables(records(table.loc[mine, ["arm", *PLAYED]]))

    def __str__(self) -> str:
        return str(self.perturbation)


def run_perturbed(
    arm: Arm,
    controller,
    world: tuple[str, Perturbation, np.ndarray | None],
    seeds: list[int],
    decisions: int,
    what: str = "",
) -> Tables:
    """Play one episode per seed as a batch in a world (task, perturbation, deviations)."""
    task, perturbation, std = world
    empty = {"return": 0.0, "planner_calls": 0, "length": 0}
    found = [{"arm": arm.name, "episode_seed": seed} | empty for seed in seeds]

    def envs(seed: int):
        return perturbed(make_env(task, seed), perturbation, seed, std)

    for step in rollout(controller, envs, seeds, decisions, what):
        for row, i in enumerate(step.rows):
            found[i]["return"] += float(step.rewards[row])
            found[i]["planner_calls"] += int(step.info["planner_called"][row])
            found[i]["length"] += 1
    return Tables(found)


def worlds(stage: Stage, names: tuple[str, ...] | list[str], std: np.ndarray | None) -> dict[str, Stage]:
    """Name → the stage itself as "none", and perturbed ones. One without effect is "none"; kinds that the task has not
    are left out. Raises `ConfigError` for a name that is none."""
    found = {NONE: stage}
    for perturbation in map(Perturbation.parse, names):
        if not perturbation.without_effect and not refused(stage.cell.task, perturbation.kind):
            found[str(perturbation)] = World(**_fields(stage), perturbation=perturbation, std=std)
    return found


def _fields(stage: Stage) -> dict:
    return {field.name: getattr(stage, field.name) for field in dataclasses.fields(Stage)}


@functools.cache
def refused(task: str, kind: str) -> str:
    """Why a task has no perturbation of a kind; "" if it has."""
    if kind == "noise":
        return ""
    try:
        perturbed(make_env(task), Perturbation(kind, 0.5))
    except ConfigError as error:
        return str(error)
    return ""


def deviations(settings: Settings, cell: Cell) -> np.ndarray:
    """Standard deviations (obs_dim,) of the observations in the teacher's own episodes, kept beside the results."""
    file = std_file(settings.profile.name, cell)
    planner = settings.profile.planner and {k: v for k, v in as_dict(settings.profile.planner).items() if k != "mode"}
    about = {"planner": planner, "decisions": settings.decisions(cell.task), "episodes": OBSERVED}
    key = key_of((generate,), str(cell), teacher_key(settings.teacher_name(cell)), identity(cell.task), about)

    def make(path: Path) -> None:
        played = generate(settings, cell, "teacher", OBSERVED, noise=0.0).episodes
        std = np.concatenate([episode.obs for episode in played]).std(0, dtype=float)
        pd.DataFrame({"number": range(len(std)), "std": std}).to_csv(path, index=False)

    return read_deviations(cached(file, key, make, f"deviations of the observations of {cell}", **about))


def read_deviations(file: Path) -> np.ndarray:
    return read_table(file)["std"].to_numpy()


def perturbed_file(profile: str, cell: Cell | str) -> Path:
    return paths.results(profile) / "perturbed" / f"{cell}.csv"


def perturbed_cells(profile: str) -> list[str]:
    """Names of the cells that were played in changed worlds, those that the profile names in its order. Raises
    `ResultError` when there are none."""
    found = {file.stem for file in files(paths.results(profile) / "perturbed", "*.csv")}
    named = [name for name in PROFILES[profile].perturb_cells if name in found]
    others = sorted(name for name in found - {*named} if name != "summary" and not name.endswith("-std"))
    cells = named + others
    if not cells:
        raise ResultError(f"no cell of {profile} was played in perturbed worlds; add one to its perturb_cells.")
    return cells


def std_file(profile: str, cell: Cell | str) -> Path:
    return perturbed_file(profile, f"{cell}-std")


def write_perturbed(
    stage: Stage,
    arms: tuple[str, ...] | list[str],
    names: tuple[str, ...] | list[str],
    episodes: int,
    planner: PlannerConfig | None = None,
    calibration: dict[str, dict] | None = None,
    std: np.ndarray | None = None,
) -> Path:
    """Write `perturbed/<cell>.csv`: a row per arm, world and episode, in `ABOUT` and `PLAYED`; returns the file.

    `planner` and `calibration` as `evaluate` has them; `std` is needed where noise is among the names. In the world
    "none" there is no severity. The sidecar says how each world was changed. Episodes that were played are kept.
    """
    rows, keys, changes = [], {}, {}
    for kind in dict.fromkeys(Perturbation.parse(name).kind for name in names):
        if why := refused(stage.cell.task, kind):
            print(f"left out: {why}")
    for name, world in worlds(stage, names, std).items():
        change = getattr(world, "perturbation", None)
        changes[name] = str(perturbed(make_env(stage.cell.task), change, std=std)) if change else "nothing is changed"
        print(changes[name], flush=True)
        tables, configurations = evaluate(world, dict.fromkeys(arms, episodes), planner, calibration)
        about = {"perturbation": change.kind if change else NONE, "severity": change.severity if change else None}
        rows += [row | about for row in tables.episodes]
        keys[name] = {arm: settings["key"] for arm, settings in configurations.items()}
    table = pd.DataFrame(rows)[[*ABOUT, *PLAYED]]
    about = {"teacher": stage.teacher, "task": stage.cell.task, "keys": keys, "changes": changes}
    return write_table(perturbed_file(stage.profile, stage.cell), table, **about)
