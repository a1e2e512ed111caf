"""Ways to control whose plans take time: paired episodes at delays of so many decisions, also in changed worlds.

    names = arms_of(profile.delays, available(profile, cell), studied=True)
    write_delayed(places(stage), names, 20, planner, numbers)        # deadlines/<cell>.csv

A row says its arm by its kind, its planner and its delay. With a delay of 0 all that plan are the planner at every
step, which is played once for each planner, as `EVERY_STEP`; what acts without a plan has neither planner nor delay.
Episodes start where those of the evaluation do, and the same for all arms. They are played here once more: how old the
acting plan is and how much actions change is of no other study.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.config import ConfigError, PlannerConfig, as_dict
from lib.environments import ACTION_REPEAT, make_env
from lib.files import files
from lib.records import paths
from lib.records.keys import ResultError, key_of, rest_of, shown
from lib.records.ledger import same
from lib.records.store import how_to_make, intact, known, read_table, write_table
from lib.rollout import rollout
from lib.simulators.perturbations import Perturbation, perturbed
from lib.study.arms import DELAY_AWARE, DRAFTED, Arm, DelayArm, arm_name, correctors_of, make_arm
from lib.study.cells import Cell
from lib.study.evaluate import Stage, Tables, arm_roots, evaluate, records
from lib.study.perturb import NONE, refused
from lib.study.profiles import DelayStudy, Profile
from lib.study.stats.deadlines import EVERY_STEP

ABOUT = ["arm", "planner", "delay"]
PLAYED = ["episode_seed", "return", "plan_age", "action_change", "planner_calls"]
WORLD = ["perturbation", "severity"]  # further columns of changed worlds
TIMED_AT = 8  # decisions of delay at which steps are timed: most of them are in the foreground alone
NOT_CELLS = ("summary", "steps", "worlds")


# ------------------------------------------------------------------------------------------------------------ arms


def arms_of(study: DelayStudy, available: Collection[str], studied: bool = False) -> list[str]:
    """Names of the study's arms; those whose corrector or draft is not `available` are left out. The teacher's planner
    is for cells that are `studied`. Raises `ConfigError` without a delay of 0, which others are compared with."""
    found = list(study.unplanned)
    for prefix, delays in _planners(study, studied).items():
        if 0 not in delays:
            raise ConfigError(f"delays={delays} must have 0 among them: returns are compared with those of no delay.")
        found.append(f"{prefix}late-d0")
        found += [f"{prefix}{arm}-d{delay}" for arm in study.arms for delay in sorted(delays) if delay]
    return _with(found, available)


def changed_arms(study: DelayStudy, available: Collection[str], studied: bool = False) -> list[str]:
    """The same of those that changed worlds are played with, at fewer delays."""
    delays = study.perturbed_delays
    fewer = dataclasses.replace(study, arms=study.perturbed_arms, delays=delays, standard_delays=())
    return arms_of(fewer, available, studied)


def timed_arms(study: DelayStudy, available: Collection[str], studied: bool = False) -> list[str]:
    """One arm of each kind and planner, whose steps are timed. `late` acts as `late-hold` does where none begins."""
    kinds = dict.fromkeys("late-hold" if arm == "late" else arm for arm in study.arms)
    found = [f"{prefix}{kind}-d{TIMED_AT}" for prefix in _planners(study, studied) for kind in kinds]
    return _with([*study.unplanned, *found], available)


def _planners(study: DelayStudy, studied: bool) -> dict[str, tuple[int, ...]]:
    """What stands before an arm's name for each of its planners, and the delays there."""
    found = {f"{planner}+": study.delays for planner in study.planners}
    return found | ({"": study.standard_delays} if studied and study.standard_delays else {})


def _with(names: list[str], available: Collection[str]) -> list[str]:
    return [arm_name(name) for name in names if {*correctors_of([name])} <= {*available}]


def available(profile: Profile, cell: Cell | str) -> tuple[str, ...]:
    """The networks that the study's arms need and a profile has for a cell; what needs others is not played there."""
    study = profile.delays
    asked = correctors_of([*study.unplanned, *(f"{arm}-d1" for arm in (*study.arms, *study.perturbed_arms))])
    made = (*profile.correctors, DELAY_AWARE, *(DRAFTED if str(cell) in profile.draft_cells else ()))
    return tuple(name for name in asked if name in made)


def label(arm: Arm) -> dict:
    """What rows say of an arm: its kind, its planner as 64×2, and its delay; None for what it does not have."""
    planner = f"{arm.planner.samples}×{arm.planner.iterations}" if arm.planner else None
    delay = arm.delay if isinstance(arm, DelayArm) else None
    return {"arm": EVERY_STEP if delay == 0 else arm.scheme, "planner": planner, "delay": delay}


# -------------------------------------------------------------------------------------------------------- episodes


@dataclass
class Delayed(Stage):
    """A stage whose rows are those of this study, in a world that may be changed."""

    perturbation: Perturbation | None = None

    def key(self, arm: Arm) -> str:
        return key_of((*arm_roots(arm), run_delayed), rest_of(super().key(arm)), str(self))

    def run(self, arm: Arm, controller, seeds: list[int], what: str) -> Tables:
        what = what.replace(arm.name, f"{self} {arm.name}") if self.perturbation else what
        return run_delayed(arm, controller, (self.cell.task, self.perturbation), seeds, self.decisions, what)

    def committed(self, arm: Arm, key: str) -> Tables:
        file = deadlines_file(self.profile, self.cell, bool(self.perturbation))
        keys = known(file).get("keys", {}) if intact(file) else {}
        if not same(keys.get(str(self), {}).get(arm.name), key):
            return Tables()
        return Tables(records(self.rows_of(arm, read_table(file))[PLAYED].assign(arm=arm.name)))

    def rows_of(self, arm: Arm, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of an arm in this world."""
        wanted = label(arm) | self.columns
        mine = [table[name].isna() if value is None else table[name] == value for name, value in wanted.items()]
        return table[np.logical_and.reduce(mine)]

    @property
    def columns(self) -> dict:
        """What tables of changed worlds say of this one."""
        changed = self.perturbation
        return dict(zip(WORLD, (changed.kind, changed.severity), strict=True)) if changed else {}

    def __str__(self) -> str:
        return str(self.perturbation) if self.perturbation else NONE


def run_delayed(
    arm: Arm,
    controller,
    world: tuple[str, Perturbation | None],
    seeds: list[int],
    decisions: int,
    what: str = "",
) -> Tables:
    """Play one episode per seed as a batch in a world (task, perturbation or None).

    Of each: `plan_age`, the mean over decisions of how old the plan was that had arrived last, in decisions since the
    observation that it knew (None where nothing ever had); `action_change`, the mean |a_t − a_{t−1}| over components
    and decisions (None of a single one); `planner_calls`, the solves that were begun.
    """
    task, perturbation = world
    found = [{"arm": arm.name, "episode_seed": seed, "return": 0.0, "planner_calls": 0} for seed in seeds]
    ages, changes, last = [[] for _ in seeds], [[] for _ in seeds], [None for _ in seeds]

    def envs(seed: int):
        env = make_env(task, seed)
        return perturbed(env, perturbation, seed) if perturbation else env

    for step in rollout(controller, envs, seeds, decisions, what):
        for row, i in enumerate(step.rows):
            found[i]["return"] += float(step.rewards[row])
            found[i]["planner_calls"] += int(step.info["planner_called"][row])
            if "plan_age" in step.info and np.isfinite(step.info["plan_age"][row]):
                ages[i].append(float(step.info["plan_age"][row]))
            if last[i] is not None:
                changes[i].append(float(np.abs(step.actions[row].astype(float) - last[i]).mean()))
            last[i] = step.actions[row].astype(float)
    for row, mine, changed in zip(found, ages, changes, strict=True):
        row |= {"plan_age": float(np.mean(mine)) if mine else None}
        row |= {"action_change": float(np.mean(changed)) if changed else None}
    return Tables(found)


def places(stage: Stage, names: Collection[str] = ()) -> dict[str, Delayed]:
    """Where arms are played, by name: the teacher's own world as "none", or the changed worlds of these names that the
    task has and that have an effect. Raises `ConfigError` for a name that is none, and for noise, which is measured by
    deviations that only the study of changed worlds has."""
    own = {field.name: getattr(stage, field.name) for field in dataclasses.fields(Stage)}
    if not names:
        return {NONE: Delayed(**own)}
    changed = [p for p in map(Perturbation.parse, names) if not p.without_effect]
    if noisy := [str(p) for p in changed if p.kind == "noise"]:
        raise ConfigError(
            f"perturbations={noisy[0]} is not played with delays; take a change of the physics, or a push."
        )
    return {str(p): Delayed(**own, perturbation=p) for p in changed if not refused(stage.cell.task, p.kind)}


# ----------------------------------------------------------------------------------------------------------- tables


def deadlines_file(profile: str, cell: Cell | str, changed: bool = False) -> Path:
    return paths.results(profile) / "deadlines" / ("perturbed" if changed else "") / f"{cell}.csv"


def gates_file(profile: str, cell: Cell | str) -> Path:
    """The numbers of gates on plans that arrive late. Not those of the evaluation: other studies build on that file."""
    return paths.results(profile) / "deadlines" / f"{cell}-gates.json"


def steps_file(profile: str, cell: Cell | str) -> Path:
    return paths.results(profile) / "deadlines" / f"{cell}-steps.csv"


def write_delayed(
    worlds: dict[str, Delayed],
    names: list[str],
    episodes: int,
    planner: PlannerConfig,
    calibration: dict[str, dict] | None = None,
) -> Path:
    """Write `deadlines/<cell>.csv`, or of changed worlds `deadlines/perturbed/<cell>.csv`: a row per arm and episode,
    in `ABOUT` and `PLAYED` (and `WORLD`); returns the file.

    `worlds` as `places` gives them; `planner` and `calibration` as `evaluate` has them. Episodes that were played are
    kept. The sidecar says the arms' keys and the teacher's planner, by which their names are understood.
    """
    rows, keys = [], {}
    for name, world in worlds.items():
        tables, configurations = evaluate(world, dict.fromkeys(names, episodes), planner, calibration)
        labels = {arm: label(make_arm(arm, planner, (calibration or {}).get(arm))) for arm in configurations}
        rows += [row | labels[row["arm"]] | world.columns for row in tables.episodes]
        keys[name] = {arm: settings["key"] for arm, settings in configurations.items()}
    stage = next(iter(worlds.values()))
    changed = bool(stage.perturbation)
    table = pd.DataFrame(rows)[[*ABOUT, *(WORLD if changed else ()), *PLAYED]].astype({"delay": "Int64"})
    about = {"teacher": stage.teacher, "task": stage.cell.task, "keys": keys, "standard": as_dict(planner)}
    return write_table(deadlines_file(stage.profile, stage.cell, changed), table, **about)


def deadline_cells(profile: str) -> list[str]:
    """Names of the cells that were played with delays. Raises `ResultError` when there are none."""
    folder = paths.results(profile) / "deadlines"
    found = [file.stem for file in files(folder, "*.csv")]
    cells = [name for name in found if name not in NOT_CELLS and not name.endswith("-steps")]
    if not cells:
        raise ResultError(f"{shown(folder)} holds no cell; {how_to_make(folder / 'a.csv')}.")
    return cells


def step_table(profile: str, cell: str) -> pd.DataFrame:
    """The step times of a cell: rows of `arm`, `planner` and `part`, which is the step in the `foreground`, or the
    `solve` in the background; none where they were not measured."""
    file = steps_file(profile, cell)
    columns = ["arm", "planner", "part", "steps", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms", "mean_ms"]
    columns += ["device", "threads", "dtype"]
    if not file.is_file():
        return pd.DataFrame(columns=["cell", *columns])
    standard = PlannerConfig(**known(deadlines_file(profile, cell))["standard"])
    table = read_table(file)
    table = table[table["part"].isin(["between", "solve"]) & (table["batch"] == 1)]
    labels = [label(make_arm(name, standard, {"threshold": math.inf})) for name in table["arm"]]
    table = table.assign(
        part=table["part"].replace({"between": "foreground"}),
        arm=[one["arm"] for one in labels],
        planner=[one["planner"] for one in labels],
    )
    return table[columns].assign(cell=cell)[["cell", *columns]].reset_index(drop=True)


def period_ms(task: str) -> float:
    """Milliseconds of physics in a decision of a task; nan where its simulator does not say."""
    env = make_env(task)
    inside = env.unwrapped
    suite = getattr(inside, "_env", None)  # dm_control's, in the suite
    seconds = suite.control_timestep() if hasattr(suite, "control_timestep") else getattr(inside, "dt", math.nan)
    env.close()
    return 1e3 * seconds * (1 if ":" in task else ACTION_REPEAT)
