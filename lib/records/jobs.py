"""Stages and jobs: a stage says what is made of what; for the cells of a scope it gives jobs, which can be run.

for job in STAGE.jobs(Scope.of(profile("quick"))): ...
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lib.config import one_of
from lib.files import files
from lib.records import paths

PROFILES = "lib.study.profiles:PROFILES"


def profile(name: str):
    """The profile of a name, as the study has it; `ConfigError` for an unknown one."""
    profiles = pkgutil.resolve_name(PROFILES)
    return profiles[one_of("profile", name, profiles)]


@dataclass(frozen=True)
class Scope:
    """A profile, the cells that are asked for, and what follows from them."""

    profile: object
    cells: tuple[str, ...]

    @classmethod
    def of(cls, profile, cells: tuple[str, ...] = ()) -> Scope:
        """With the profile's cells unless some are given; `ConfigError` for what is none."""
        for cell in cells:
            paths.cell_parts(cell)
        return cls(profile, tuple(cells) or profile.cells)

    @property
    def study_cells(self) -> tuple[str, ...]:
        """The cells where arms are told apart, unless none of them is asked for."""
        return tuple(cell for cell in self.cells if cell in self.profile.study_cells) or self.cells

    @property
    def certified_cells(self) -> tuple[str, ...]:
        """Those that the profile certifies, also beside its cells: all, or of some cells that are asked for these."""
        whole = self.cells == self.profile.cells
        return tuple(cell for cell in self.profile.certified_cells if whole or cell in self.cells)

    @property
    def deadlines_cells(self) -> tuple[str, ...]:
        """The same of those that it plays with plans that take time."""
        return tuple(cell for cell in self.cells if cell in self.profile.deadlines_cells)

    @property
    def teacher_cells(self) -> tuple[str, ...]:
        shipped = (
            {file.stem for file in files(paths.TEACHERS, "*.safetensors")} if self.profile.every_teacher else set()
        )
        return tuple(sorted({*self.cells} | shipped))

    @property
    def results(self) -> Path:
        return paths.results(self.profile.name)

    def result(self, *names: str) -> list[Path]:
        return [self.results / name for name in names]

    def there(self, *names: str) -> list[Path]:
        """Of these results the ones that are there, or all of them if none is."""
        wanted = self.result(*names)
        return [path for path in wanted if path.is_file()] or wanted

    def timed(self, cells: tuple[str, ...], table: str = "latency/{}.csv") -> list[Path]:
        """Of timings the sidecars: that a column of times has changed is otherwise no reason to do anything again."""
        return [p for p in self.result(*(f"{table.format(cell)}.meta.json" for cell in cells)) if p.is_file()]


@dataclass(frozen=True)
class Row:
    """A row of the result `file` that has a key of its own: the one that it was made with ("" if it was not), today's,
    and why it is stale ("" if it is fresh)."""

    name: str
    file: Path
    kept: str
    now: str
    why: str


@dataclass(frozen=True)
class Job:
    """A stage for one cell or for all: the source, its parameters, and the files that it makes and needs.

    `keeps` are results with keys of their own: made where they lack, and judged by nobody else. `rows` names a function
    of the study, (profile, cell) → rows of the first result that have keys of their own.
    """

    stage: str
    source: Path
    outs: list[Path]
    needs: list[Path]
    parameters: dict[str, str]
    settings: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    keeps: list[Path] = field(default_factory=list)
    rows: str = ""
    timing: bool = False
    alone: bool = False
    cell: str = ""
    profile: str = ""

    @property
    def name(self) -> str:
        return job_name(self.stage, self.cell)

    @property
    def evidence(self) -> Path:
        """Where what was run can be read: the executed notebook, or the script itself."""
        if self.source.suffix == ".py":
            return self.source
        return paths.executed(self.profile) / f"{self.source.stem}-{self.outs[0].stem}.ipynb"


@dataclass(frozen=True)
class Stage:
    """How the jobs of one kind are made of a scope. Functions take the scope, and the cell where there is one. What
    measures time is `alone`: nothing else runs meanwhile, and it has all cores."""

    name: str
    source: str
    folders: tuple[str, ...]  # under the profile's results, that it writes into
    outs: Callable
    needs: Callable = lambda scope, cell: []
    each: Callable[[Scope], tuple[str, ...]] | None = None  # the cells that it has a job for; None: one for all
    settings: tuple[str, ...] = ()
    roots: Callable = lambda scope: ()
    parameters: Callable = lambda scope, cell: {}
    keeps: Callable = lambda scope, cell: []
    rows: str = ""
    timing: bool = False
    alone: bool = False
    wanted: Callable[[Scope], bool] = lambda scope: True

    def asked(self, scope: Scope) -> tuple[str, ...]:
        """The cells that there is a job for; "" is that of a stage that has one for all."""
        return self.each(scope) if self.each else ("",) if self.wanted(scope) else ()

    def job(self, scope: Scope, cell: str) -> Job:
        """The job for one of the cells that are `asked`, as the files that are there now have it."""
        given = {"profile": scope.profile.name} | (cell_parameters(self.source, cell) if cell else {})
        return Job(
            stage=self.name,
            source=paths.ROOT / self.source,
            outs=self.outs(scope, cell),
            needs=self.needs(scope, cell),
            parameters=given | self.parameters(scope, cell),
            settings=self.settings,
            roots=self.roots(scope),
            keeps=self.keeps(scope, cell),
            rows=self.rows,
            timing=self.timing,
            alone=self.alone,
            cell=cell,
            profile=scope.profile.name,
        )

    def jobs(self, scope: Scope) -> list[Job]:
        return [self.job(scope, cell) for cell in self.asked(scope)]


def chosen(stages: Iterable[Stage], only: tuple[str, ...] = ()) -> list[Stage]:
    """The stages of these names, or all, in their order; `ConfigError` for a name that is none."""
    for name in only:
        one_of("stage", name, [stage.name for stage in stages])
    return [stage for stage in stages if not only or stage.name in only]


def job_name(stage: str, cell: str) -> str:
    return f"{stage}-{cell}" if cell else stage


def cell_parameters(source: str, cell: str) -> dict[str, str]:
    """`<task>-<size>-<seed>` as the parameters task, model_size and seed of a notebook, or cell of a script."""
    if source.endswith(".py"):
        return {"cell": cell}
    return dict(zip(("task", "model_size", "seed"), map(str, paths.cell_parts(cell)), strict=True))
