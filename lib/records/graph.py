"""Which jobs wait for which: the pipeline as a graph, before anything has run.

    for node in plan(Scope.of(profile("quick"))):      # each after those that it waits for
        print(node.name, node.after)

What a stage needs may depend on what is there. Here everything counts as there that an earlier job would make, so that
a summary waits for all tables that it could be made of. When a job's turn comes, it is made anew of what is there then.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

from lib.records.jobs import Job, Scope, Stage, chosen, job_name
from lib.records.pipeline import STAGES
from lib.records.store import sidecar


@dataclass(frozen=True)
class Node:
    """A job to be: its stage, its cell if it has one, and the names of the jobs that it waits for."""

    stage: Stage
    cell: str
    after: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return job_name(self.stage.name, self.cell)

    def job(self, scope: Scope) -> Job:
        return self.stage.job(scope, self.cell)


@dataclass(frozen=True)
class Foreseen(Scope):
    """A scope in which results count as there that are among `made`, a dict of file → job."""

    made: dict[Path, str] = field(default_factory=dict)

    @functools.cached_property
    def results(self) -> Path:
        folder, made = super().results, self.made

        class Promised(type(folder)):
            def is_file(self) -> bool:
                return self in made or super().is_file()

        return Promised(folder)


def plan(scope: Scope, only: tuple[str, ...] = ()) -> list[Node]:
    """All jobs of a scope, or those of some stages, in an order in which they can run."""
    foreseen, found = Foreseen(scope.profile, scope.cells), []
    for stage in chosen(STAGES, only):
        nodes = []
        for cell in stage.asked(foreseen):
            job = stage.job(foreseen, cell)
            after = frozenset(foreseen.made[need] for need in job.needs if need in foreseen.made)
            nodes.append((Node(stage, cell, after), [*job.outs, *job.keeps]))
        for node, made in nodes:  # the cells of one stage do not wait for each other
            foreseen.made.update((file, node.name) for out in made for file in (out, sidecar(out)))
        found += [node for node, _ in nodes]
    return found
