"""Cells, the seeds that each purpose may use, and the parameters that all notebooks share."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from lib.config import MODEL_SIZES, ConfigError, PlannerConfig, quoted
from lib.environments import episode_decisions
from lib.records import paths
from lib.records.keys import file_hash
from lib.study.profiles import PROFILES, Profile


@dataclass(frozen=True)
class Cell:
    """One (task, model size, teacher seed), written `<task>-<size>-<seed>`; its results are files of that name.

    `name` is set for a teacher from elsewhere, whose results must not pass for those of the cell's own teacher. Its
    `size` is "?" unless its name tells it, and `seed` only picks the episodes.
    """

    task: str
    size: str
    seed: int
    name: str = ""

    def __str__(self) -> str:
        return self.name or f"{paths.file_name(self.task)}-{self.size}-{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        return cls(*paths.cell_parts(text))

    @classmethod
    def of_teacher(cls, teacher: str, task: str, seed: int) -> Cell:
        """The cell of a teacher that is asked for by name or by file.

        `<task>-<size>-<seed>` is the teacher of that cell. Any other name becomes the cell's, with the task where it is
        not in the name already, as in official-walker-walk-1 and official-mt30-5m-reacher-easy. A file has its stem and
        the first eight digits of its sha256, as in weights-1a2b3c4d-reacher-easy: many files have the same stem.
        """
        match = paths.CELL.fullmatch(teacher)
        if match and match[1] == paths.file_name(task):
            return cls.parse(teacher)
        is_file = os.path.isfile(teacher)  # which is also False of what no file can be called
        if not is_file and len(teacher) > paths.LONGEST:
            raise ConfigError(f"teacher={quoted(teacher)} is no file, and too long for the name of a teacher.")
        name = paths.part(Path(teacher).stem) + f"-{file_hash(teacher)[:8]}" if is_file else paths.part(teacher)
        if f"-{paths.file_name(task)}-" not in f"-{name}-":
            name = f"{name}-{paths.file_name(task)}"
        if paths.CELL.fullmatch(name):
            name += "-elsewhere"  # a/walker-walk-1m-1, say, which must not be read as a cell
        sizes = [word for word in name.split("-") if word in MODEL_SIZES]
        return cls(task, sizes[0] if len(sizes) == 1 else "?", seed, name)


@dataclass(frozen=True)
class Settings:
    """The parameters that all notebooks share, checked and resolved."""

    profile: Profile
    cells: tuple[Cell, ...]
    teacher: str  # "" = the shipped teacher of each cell
    device: str

    @property
    def cell(self) -> Cell:
        """The one cell of a notebook that works on one; `ConfigError` when several were asked for."""
        if len(self.cells) > 1:
            raise ConfigError(f"model_size=all is one size too many here; use one of: {', '.join(MODEL_SIZES)}.")
        return self.cells[0]

    def decisions(self, task: str) -> int:
        """Decisions of an episode under this profile: whole ones, but where it cuts them short."""
        return episode_decisions(task, self.profile.decisions)

    def teacher_name(self, cell: Cell) -> str:
        """What `load_world_model` is asked for: the `teacher` parameter, else the shipped teacher of the cell."""
        return self.teacher or str(cell)

    def planner(self, action_dim: int, **changes) -> PlannerConfig:
        """The teacher's planner under this profile: the standard budget, except at smoke size."""
        if self.profile.planner is None:
            return PlannerConfig.standard(action_dim, **changes)
        return dataclasses.replace(self.profile.planner, **changes)


def resolve(profile: str, task: str, model_size: str, seed: int, teacher: str, device: str) -> Settings:
    """Check the notebook parameters that all notebooks share.

    `model_size="all"` gives a cell for every size. With a `teacher` there is one cell, whose results bear its name.
    Raises `ConfigError` with one sentence for a value that is not allowed.
    """
    from lib.study.parameters import check  # which needs torch, and most figures do not

    check(profile=profile, model_size=model_size, seed=seed, teacher=teacher, device=device)
    paths.file_name(task)  # whether a simulator has it, that simulator says
    if teacher and model_size == "all":
        raise ConfigError(f"teacher={quoted(teacher)} has one size, without model_size=all; leave one out.")
    sizes = list(MODEL_SIZES) if model_size == "all" else [model_size]
    own = tuple(Cell(task, size, seed) for size in sizes)
    cells = (Cell.of_teacher(teacher, task, seed),) if teacher else own
    return Settings(PROFILES[profile], cells, teacher, device)
