"""The stages of studies that not every profile has; `lib.records.pipeline` puts them in order."""

from __future__ import annotations

from pathlib import Path

from lib.records.jobs import Scope, Stage
from lib.records.needs import (
    COLLECTED,
    certifying,
    corrector_files,
    draft_files,
    drawn,
    making_correctors,
    weights,
)

CERTIFIED = (
    Stage(
        "certified",
        "paper/certify.py",
        ("certified",),
        lambda scope, cell: scope.result(f"certified/{cell}.csv", f"certified/{cell}-episodes.csv"),
        lambda scope, cell: [*certifying(scope, cell, False), *weights(cell)],  # thresholds are in its rows' keys
        each=lambda scope: scope.certified_cells,
        settings=("certification", *COLLECTED, "calibrate_episodes"),
        keeps=lambda scope, cell: certifying(scope, cell, True),
        rows="lib.study.rows:certified",
    ),
    Stage(
        "certified-steps",
        "paper/certified_steps.py",
        (),
        lambda scope, cell: scope.result(f"certified/{cell}-steps.csv"),
        lambda scope, cell: [*scope.result(f"certified/{cell}.csv"), *weights(cell)],
        each=lambda scope: scope.certified_cells,
        settings=("certified_steps",),
        timing=True, alone=True,
    ),
    Stage(
        "certified-summary",
        "paper/certified.py",
        (),
        lambda scope, _: scope.result("certified/summary.csv"),
        lambda scope, _: (
            scope.there(*(f"certified/{cell}{end}.csv" for cell in scope.certified_cells for end in ("", "-episodes")))
            + scope.timed(scope.certified_cells, "certified/{}-steps.csv")
        ),
        keeps=lambda scope, _: scope.result(*["certified/validity.csv"] * (scope.profile.name == "paper")),
        wanted=lambda scope: bool(scope.certified_cells),
    ),
    drawn(
        "certified",
        lambda scope: scope.result("certified/summary.csv"),
        wanted=lambda scope: bool(scope.certified_cells),
    ),
)  # fmt: skip


def delayed_drafts(scope: Scope) -> list[str]:
    """The drafts that act in the study of delays: without a plan, and until one arrives."""
    return ["distilled", *scope.profile.delays.unplanned]


def beside_delays(scope: Scope, cell: str) -> list[Path]:
    """What the study of delays makes of a cell beside its tables: step times, and what its arms need."""
    study, names = scope.profile.delays, [f"deadlines/{cell}-steps.csv"]
    if "async+gated" in study.arms:
        names.append(f"deadlines/{cell}-gates.json")
    if "async+delay-aware" in (*study.arms, *study.perturbed_arms):
        names += [f"corrector/{cell}-delay_aware{end}" for end in (".safetensors", "-depth.csv")]
    return scope.result(*names)


def delayed(scope: Scope, *cells: str) -> list[str]:
    """The tables of cells that were played with delays; in changed worlds, too, where the profile has some."""
    folders = ["deadlines"] + ["deadlines/perturbed"] * bool(scope.profile.delays.perturbations)
    return [f"{folder}/{cell}.csv" for cell in cells for folder in folders]


DEADLINES = (
    Stage(
        "deadlines",
        "notebooks/09_deadlines.ipynb",
        ("deadlines",),
        lambda scope, cell: scope.result(*delayed(scope, cell)),
        lambda scope, cell: [
            *corrector_files(scope, cell),
            *(draft_files(scope, cell, delayed_drafts(scope)) if cell in scope.profile.draft_cells else ()),
            *weights(cell),
        ],
        alone=True,  # it times steps
        each=lambda scope: scope.deadlines_cells,
        settings=(*COLLECTED, "calibrate_episodes", "drafts"),
        roots=lambda scope: (*making_correctors(scope), "lib.study.delay_training:ensure_delay_aware"),
        keeps=beside_delays,
        rows="lib.study.rows:deadlines",
    ),
    Stage(
        "deadlines-summary",
        "paper/deadlines.py",
        (),
        lambda scope, _: scope.result(*(f"deadlines/{table}.csv" for table in ("summary", "steps", "worlds"))),
        lambda scope, _: scope.there(*delayed(scope, *scope.deadlines_cells))
        + scope.timed(scope.deadlines_cells, "deadlines/{}-steps.csv"),
        wanted=lambda scope: bool(scope.deadlines_cells),
    ),
    drawn(
        "deadlines",
        lambda scope: scope.result("deadlines/summary.csv"),
        "deadlines-delay",
        wanted=lambda scope: bool(scope.deadlines_cells),
    ),
    Stage(
        "realtime",
        "paper/realtime.py",
        ("realtime",),
        lambda scope, _: scope.result("realtime/summary.csv", "realtime/step.csv"),
        lambda scope, _: [
            file
            for cell in dict.fromkeys(run.cell for run in scope.profile.realtime)
            for file in (*weights(cell), *scope.result(f"corrector/{cell}-delay_aware.safetensors"))
        ],
        alone=True,
        settings=("realtime",),
        timing=True,
        wanted=lambda scope: bool(scope.profile.realtime),
    ),
)  # fmt: skip
