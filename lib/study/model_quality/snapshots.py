"""The offline study's cells: snapshots of training runs. `lib.study.profiles` says how much work is done on them.

    study = resolve_study("quick", "all", "1m", 0, "", "cpu")
    study.cells, study.skipped      # what can be measured, and the cells whose weights are missing

A cell is a snapshot: (task, size, seed, decisions of training).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lib.config import MODEL_SIZES, ConfigError
from lib.files import numbered
from lib.records import paths
from lib.records.keys import file_hash
from lib.records.seeds import episode_seeds
from lib.study.cells import Cell, resolve
from lib.study.profiles import OfflineStudy
from lib.teachers.config import SNAPSHOTS
from lib.weights.names import card_of

# Tasks whose simulator can be asked anew for each cell: one decision of random shooting takes 16 ms of cartpole's and
# 5 ms of reacher's, 170 ms of walker's.
CHEAP = ("cartpole-swingup", "reacher-easy")

# Blocks of the seeds for buffers: no training seed is as large.
SEEDS = {"bank, random": 90, "bank, on-policy": 91, "decoder, random": 92, "decoder, on-policy": 93, "starts": 94}


def study_seeds(purpose: str, count: int) -> list[int]:
    """Environment seeds of this study, the same for every cell of a task."""
    return episode_seeds("buffer", count, SEEDS[purpose])


# ----------------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Snapshot:
    """A cell of the study: the weights of a run after so many decisions (None: not known).

    `name` is that of a teacher or snapshot, shipped or not, or a file's path; `file` is set where a run's weights are
    loaded from the folder in which it was trained.
    """

    cell: Cell
    decisions: int | None
    name: str
    file: Path | None = None

    @property
    def source(self) -> str:
        """What to load."""
        return str(self.file or self.name)

    @cached_property
    def label(self) -> Cell:
        """The cell under whose name its episodes are kept."""
        return Cell.of_teacher(self.name, self.cell.task, self.cell.seed)


@dataclass(frozen=True)
class Study:
    """What a run of the study is asked for: cells that can be measured, and those that cannot."""

    profile: str
    sizes: OfflineStudy
    cells: list[Snapshot]
    skipped: list[Snapshot]
    device: str


def resolve_study(
    profile: str,
    task: str,
    model_size: str,
    seed: int,
    teacher: str,
    device: str,
    states: int = 0,
    actions_per_state: int = 0,
    k: int = 0,
) -> Study:
    """What the notebook's parameters ask for. `task` "all" and zeros mean as the profile says.

    With a `teacher`, a name or a weights file, there is that one cell, whose training is not known. Raises
    `ConfigError` for a teacher without its task.
    """
    settings = resolve(profile, task, model_size, seed, teacher, device)
    asked = {"states": states, "actions_per_state": actions_per_state, "k": k}
    sizes = dataclasses.replace(settings.profile.offline, **{name: number for name, number in asked.items() if number})
    sizes = dataclasses.replace(sizes, candidates=min(sizes.candidates, sizes.states))
    if not teacher:
        return Study(profile, sizes, *study_cells(sizes, task, model_size, seed), device)
    if task == "all":
        raise ConfigError(f"teacher={teacher!r} plays one task; give it as task, one of: {', '.join(SNAPSHOTS)}.")
    return Study(profile, sizes, [Snapshot(Cell.of_teacher(teacher, task, seed), None, teacher)], [], device)


def study_cells(
    sizes: OfflineStudy, task: str = "all", size: str = "1m", seed: int = 0
) -> tuple[list[Snapshot], list[Snapshot]]:
    """The cells whose weights are there, and the others; size "all" takes the sizes that are shipped."""
    found, skipped = [], []
    for name in sizes.tasks if task == "all" else (task,):
        for run in sizes.seeds if seed == 0 else (seed,):
            for width in MODEL_SIZES if size == "all" else (size,):
                cell = Cell(name, width, run)
                if size == "all" and not (paths.TEACHERS / f"{cell}.safetensors").is_file():
                    continue
                points = _points(cell)
                if sizes.snapshots and len(points) > sizes.snapshots:
                    spread = np.linspace(0, len(points) - 1, sizes.snapshots).round().astype(int)
                    points = [points[i] for i in spread]
                for point in points:
                    (found if _is_here(point) else skipped).append(point)
    return found, skipped


def _is_here(point: Snapshot) -> bool:
    return (point.file or paths.TEACHERS / f"{point.name}.safetensors").is_file()


def _points(cell: Cell) -> list[Snapshot]:
    """A run's snapshots and its end, in order: as they are shipped, or else from the folder where it was trained."""
    teacher = paths.TEACHERS / f"{cell}.safetensors"
    card = card_of(teacher, "decisions") if teacher.is_file() else None
    shipped = card and card["decisions"]
    trained = numbered(paths.CACHE / "training" / str(cell) / "snapshots")
    last = trained.get(shipped)
    if teacher.is_file() and (last is None or file_hash(last) != file_hash(teacher)):
        trained = {}  # another run
    end = shipped or max(trained, default=None)
    points = []
    for decisions in sorted({*SNAPSHOTS[cell.task], *filter(None, [end])}):
        point = Snapshot(cell, decisions, str(cell) if decisions == shipped else f"{cell}/{decisions}")
        points.append(point if _is_here(point) else dataclasses.replace(point, file=trained.get(decisions)))
    return points
