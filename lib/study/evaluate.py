"""Evaluating the arms: paired episodes of every way to control, recorded per episode, depth and phase.

    stage = Stage.of(Cell.parse("walker-walk-1m-1"), "paper")
    tables, configurations = evaluate(stage, {"teacher": 50, "open-loop-3": 50, "hold-last-3": 20})
    write_results(stage, tables, configurations)

An arm is one way to control; its whole configuration is in the results' sidecars. All arms start from the same states.
Finished episodes are kept: asking for 50 where 20 exist runs 30, and a killed run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from lib.config import ConfigError, PlannerConfig
from lib.correctors import Trusted
from lib.drafts import DraftController, DraftGate
from lib.environments import identity, make_env
from lib.files import files
from lib.planner import MPPI
from lib.policy import PolicyController
from lib.records import paths
from lib.records.keys import ResultError, file_hash, key_of, rest_of, shown
from lib.records.ledger import name_of, same
from lib.records.seeds import episode_seeds
from lib.records.store import how_to_make, intact, read_sidecar, read_table, write_json, write_table
from lib.rollout import rollout
from lib.speculation import SpeculativeController
from lib.study.arms import (
    ARM_COLUMNS,
    CONTROLLERS,
    DRAFTED,
    LABELS,
    Arm,
    BesideArm,
    DelayArm,
    DraftArm,
    TrustedArm,
    arm_name,
    make_arm,
    make_controller,
    network_class,
    networks_of,
)
from lib.study.cells import Cell
from lib.weights.distilled import load_network
from lib.weights.native import load_world_model, size_of, teacher_key
from lib.world_model import WorldModel

BLOCK = 10  # episodes that run as one batch, and are saved together
PHASE = 25  # decisions: how finely it is recorded where in an episode the planner is asked
FLAGS = ("planner_called", "fallback", "refined")
CELL_COLUMNS = ("task", "size", "teacher_seed", "corrector_seed")
NOT_EPISODES = ("-depth", "-phase", "-action-error")  # ends of names of a cell's other tables


# ------------------------------------------------------------------------------------------------------- episodes


@dataclass
class Tables:
    """Rows per episode; per episode and depth; and, of arms with a gate, per episode and phase of `PHASE` decisions."""

    episodes: list[dict] = field(default_factory=list)
    depths: list[dict] = field(default_factory=list)
    phases: list[dict] = field(default_factory=list)

    def __add__(self, other: Tables) -> Tables:
        return Tables(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def of(self, seeds: list[int]) -> Tables:
        """The rows of the episodes with these seeds, ordered by seed."""
        wanted = set(seeds)
        kept = ([row for row in rows if row["episode_seed"] in wanted] for rows in vars(self).values())
        return Tables(*(sorted(rows, key=lambda row: row["episode_seed"]) for rows in kept))


def run_episodes(arm: Arm, controller, task: str, seeds: list[int], decisions: int, what: str = "") -> Tables:
    """Run one episode per seed as a batch."""
    records = [[] for _ in seeds]  # of each episode, one per decision
    for step in rollout(controller, partial(make_env, task), seeds, decisions, what):
        for row, i in enumerate(step.rows):
            records[i].append({"reward": step.rewards[row]} | {k: v[row] for k, v in step.info.items()})
    tables = Tables()
    for seed, mine in zip(seeds, records, strict=True):
        about = {"arm": arm.name, "episode_seed": seed}
        tables.episodes.append(about | _episode(arm, mine))
        tables.depths += [about | row for row in _by_depth(mine)]
        tables.phases += [about | row for row in _by_phase(mine)] if arm.gate else []
    return tables


def _episode(arm: Arm, records: list[dict]) -> dict:
    counts = {flag: sum(int(r[flag]) for r in records) for flag in FLAGS}
    # A fallback of an arm with a refiner has tried that first, in vain.
    tried = counts["refined"] + counts["fallback"] if arm.refiner else 0
    evaluations = counts["planner_called"] * arm.planner.model_evaluations if arm.planner else 0
    corrected = [r for r in records if arm.corrector and not (r["planner_called"] or r["refined"])]
    if isinstance(arm, DraftArm):  # what the draft did by itself: it does not act along a plan
        corrected = [r for r in corrected if not r["depth"]]
    deltas = [r["delta_abs"] for r in corrected]
    if isinstance(arm, DelayArm):  # a plan acts later than it is begun, and a draft changes none: it acts without one
        drafted = arm.corrector in DRAFTED
        corrected = [r for r in records if arm.corrector and r["fallback" if drafted else "depth"]]
        deltas = [] if drafted else [r["delta_abs"] for r in corrected]
    return {
        "return": float(sum(r["reward"] for r in records)),
        "length": len(records),
        "planner_calls": counts["planner_called"],
        "model_evaluations": evaluations + (tried * arm.refiner.model_evaluations if tried else 0),
        "fallbacks": counts["fallback"],
        "refinements": counts["refined"],
        "corrector_calls": len(corrected),
        "delta_abs": float(np.mean(deltas)) if deltas else None,
    }


def _by_depth(records: list[dict]) -> Iterator[dict]:
    for depth in sorted({int(r["depth"]) for r in records}):
        at = [r for r in records if r["depth"] == depth]
        drift = [float(r["mismatch"]) for r in at if np.isfinite(r["mismatch"])]
        yield {
            "depth": depth,
            "mismatch": float(np.mean(drift)) if drift else None,
            "delta_abs": float(np.mean([r["delta_abs"] for r in at])),
            "reward": float(np.mean([r["reward"] for r in at])),
            "count": len(at),
        }


def _by_phase(records: list[dict]) -> Iterator[dict]:
    for start in range(0, len(records), PHASE):
        part = records[start : start + PHASE]
        yield {
            "decision": start,
            "count": len(part),
            "planner_calls": sum(int(r["planner_called"]) for r in part),
            "fallbacks": sum(int(r["fallback"]) for r in part),
            "refinements": sum(int(r["refined"]) for r in part),
            "reward": float(np.mean([r["reward"] for r in part])),
        }


# ---------------------------------------------------------------------------------------- recorded and resumable


def arm_key(arm: Arm, cell: Cell, teacher: str, corrector_file: Path | None, decisions: int) -> str:
    """Everything that one episode of an arm depends on, beside its seed."""
    settings = {name: value for name, value in arm.settings.items() if name not in LABELS}
    for planner in filter(None, (settings["planner"], settings["refiner"])):
        planner.pop("mode")  # how a plan is computed, not which plan
    weights = [teacher_key(teacher), file_hash(corrector_file) if arm.corrector else None]
    others = [identity(cell.task)] if ":" in cell.task else []
    return key_of(arm_roots(arm), settings, str(cell), weights, decisions, *others)


def arm_roots(arm: Arm) -> tuple:
    """What plays an arm's episodes: the pieces that it is made of, and nothing that other arms are made of."""
    if isinstance(arm, DraftArm):
        pieces = (MPPI, DraftGate) if arm.gate else ()
        return (run_episodes, WorldModel, DraftController, network_class(arm.corrector), *pieces)
    pieces = (SpeculativeController, MPPI) if arm.planner else (PolicyController,)
    if isinstance(arm, DelayArm):
        pieces = CONTROLLERS[arm.controller], MPPI
    pieces += (arm.gate,) if arm.gate else ()
    pieces += (Trusted,) if isinstance(arm, TrustedArm) else ()
    return (run_episodes, WorldModel, *pieces, *((network_class(arm.corrector),) if arm.corrector else ()))


@dataclass
class Stage:
    """Where arms are played: a teacher's cell, its world model, and the files of its correctors, by architecture, and
    of its drafts, by name."""

    cell: Cell
    profile: str
    teacher: str
    wm: WorldModel
    corrector_files: dict[str, Path]
    decisions: int = 500

    @classmethod
    def of(cls, cell: Cell, profile: str, teacher="", corrector_files=None, decisions=500, device="cpu") -> Stage:
        """With the teacher's weights loaded; empty means the shipped teacher of the cell."""
        teacher = teacher or str(cell)
        wm = load_world_model(teacher, task=cell.task, device=device)
        return cls(cell, profile, teacher, wm, corrector_files or {}, decisions)

    @cached_property
    def correctors(self) -> dict[str, nn.Module]:
        key, found = teacher_key(self.teacher), self.corrector_files.items()
        return {name: load_network(file, key).to(self.wm.device) for name, file in found}

    def key(self, arm: Arm) -> str:
        """What an arm's episodes here depend on."""
        key = arm_key(arm, self.cell, self.teacher, self.corrector_files.get(arm.corrector), self.decisions)
        if not isinstance(arm, BesideArm):
            return key
        draft = self.corrector_files[arm.beside]
        return key_of((*arm_roots(arm), network_class(arm.beside)), rest_of(key), file_hash(draft))

    def play(self, arm: Arm, seeds: list[int]) -> tuple[Tables, str]:
        """What came of an arm's episodes with these seeds, in order, and the arm's key.

        Episodes recorded under the same key, in the cache or in the profile's committed results, are not run again.
        """
        for name in networks_of(arm):
            if name not in self.corrector_files:
                raise ConfigError(
                    f"arm {arm.name} lacks its {name} network; lib.study.networks.ensure_network makes it."
                )
        key = self.key(arm)
        done = self._recorded(arm, key)
        missing = [s for s in seeds if s not in {r["episode_seed"] for r in done.episodes}]
        controller = make_controller(arm, self.wm, self.correctors) if missing else None
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            what = f"{self.cell} {arm.name} {len(seeds) - len(missing) + start + len(block)}/{len(seeds)}"
            new = self.run(arm, controller, block, what)
            # Read again: another process may have recorded other episodes meanwhile.
            recorded = self._recorded(arm, key)
            known = {r["episode_seed"] for r in recorded.episodes}
            done = recorded + new.of([s for s in block if s not in known])
            write_json(_store(key), {"key": key} | vars(done))
        return done.of(seeds), key

    def run(self, arm: Arm, controller, seeds: list[int], what: str) -> Tables:
        """Play one episode per seed as a batch."""
        return run_episodes(arm, controller, self.cell.task, seeds, self.decisions, what)

    def _recorded(self, arm: Arm, key: str) -> Tables:
        """What is recorded under this key, in the cache, else in the profile's result files."""
        if not _store(key).is_file():
            return self.committed(arm, key)
        stored = json.loads(_store(key).read_text(encoding="utf-8"))
        return Tables(stored["episodes"], stored["depths"], stored["phases"])

    def committed(self, arm: Arm, key: str) -> Tables:
        """What the profile's result files have of an arm under this key."""
        found = []
        for file in _files(self.cell, self.profile):
            arms = read_sidecar(file).get("arms", {}) if intact(file) else {}  # not when edited by hand
            if not same(arms.get(arm.name, {}).get("key"), key):
                return Tables()
            table = read_table(file)
            table = table[table["arm"] == arm.name].drop(columns=[*CELL_COLUMNS, *ARM_COLUMNS], errors="ignore")
            found.append(records(table))
        return Tables(*found)


def evaluate(
    stage: Stage,
    episodes: dict[str, int],
    planner: PlannerConfig | None = None,
    calibration: dict[str, dict] | None = None,
) -> tuple[Tables, dict[str, dict]]:
    """What came of every arm, and arm → its configuration; `episodes` has how many each of the arms plays.

    `planner` is the teacher's, the standard one unless given; `calibration` has the gates' numbers by arm. Start states
    that the paper reports are played under the paper profile alone: whoever tunes on quick sees others.
    """
    standard = planner or PlannerConfig.standard(stage.wm.action_dim)
    calibration, tables, configurations = calibration or {}, Tables(), {}
    for name, count in {arm_name(name): count for name, count in episodes.items()}.items():
        arm = make_arm(name, standard, calibration.get(name))
        played, key = stage.play(arm, episode_seeds("report" if stage.profile == "paper" else "trial", count))
        size = size_of(stage.wm.config) if stage.cell.name else stage.cell.size
        values = (stage.cell.task, size, stage.cell.seed, 0 if arm.corrector else None)
        about = dict(zip(CELL_COLUMNS, values, strict=True))
        about |= {"arm": name} | arm.columns
        tables += Tables([about | row for row in played.episodes], played.depths, played.phases)
        configurations[name] = arm.settings | {"key": key, "decisions": stage.decisions}
    return tables, configurations


def _store(key: str) -> Path:
    return paths.CACHE / "rollouts" / f"{name_of(key)}.json"


def records(table: pd.DataFrame) -> list[dict]:
    """The rows of a table that was read; what is missing is None."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _files(cell: Cell, profile: str) -> list[Path]:
    """The result files of a cell, in the order of the fields of `Tables`."""
    return [paths.results(profile) / "horizon" / f"{cell}{part}.csv" for part in ("", "-depth", "-phase")]


def write_results(stage: Stage, tables: Tables, configurations: dict, **provenance) -> None:
    """Write a cell's tables under `data/results/<profile>/horizon/`.

    Their sidecars keep the teacher, the task, and the arms' configurations.
    """
    about = {"teacher": stage.teacher, "task": stage.cell.task, "arms": configurations} | provenance
    files = zip(_files(stage.cell, stage.profile), vars(tables).values(), strict=True)
    for file, rows in reversed(list(files)):  # the episodes last: they say that the cell has been evaluated
        write_table(file, rows or pd.DataFrame(columns=["arm", "episode_seed"]), **about)


def evaluated_cells(profile: str) -> list[str]:
    """Names of the cells that have been evaluated under a profile. Raises `ResultError` when there are none."""
    folder = paths.results(profile) / "horizon"
    names = sorted(p.stem for p in files(folder, "*.csv"))
    cells = [name for name in names if name != "summary" and not name.endswith(NOT_EPISODES)]
    if not cells:
        raise ResultError(f"{shown(folder)} holds no evaluated cell; {how_to_make(folder / 'a.csv')}.")
    return cells


def read_cell(profile: str, cell: str, part: str = "") -> pd.DataFrame:
    """The rows per episode of an evaluated cell, or those of another `part` of `NOT_EPISODES` (none where that was not
    written) with the arms' columns beside them. Arms of a part without episodes are left out."""
    file = paths.results(profile) / "horizon" / f"{cell}.csv"
    episodes = read_table(file)
    if not part:
        return episodes
    file = file.with_name(f"{cell}{part}.csv")
    columns = episodes[["arm", *ARM_COLUMNS]].drop_duplicates()
    return read_table(file).merge(columns, on="arm") if file.is_file() else columns.iloc[:0]
