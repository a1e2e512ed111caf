"""The stages of studies that not every profile has; `lib.records.pipeline` puts them in order."""

from __future__ import annotations

from pathlib import Path

from lib.records.jobs import Scope, Stage
from lib.records.needs import (
    COLLECTED,
    certifiable,
    corrector_files,
    draft_files,
    drawn,
    making_correctors,
    network_files,
    weights,
)

CERTIFIED = (
    Stage(
        "certified",
        "paper/certify.py",
        ("certified",),
        lambda scope, cell: scope.result(f"certified/{cell}.csv", f"certified/{cell}-episodes.csv"),
        lambda scope, cell: (
            network_files(scope, cell, certifiable(scope))
            + [*scope.result(f"corrector/{cell}-calibration.json"), *weights(cell)]
        ),
        each=lambda scope: scope.certified_cells,
        settings=("certification", *COLLECTED, "calibrate_episodes"),
        rows="lib.study.rows:certified",
    ),
    Stage(
        "certified-summary",
        "paper/certified.py",
        (),
        lambda scope, _: scope.result("certified/summary.csv"),
        lambda scope, _: (
            scope.there(*(f"certified/{cell}{end}.csv" for cell in scope.certified_cells for end in ("", "-episodes")))
            + scope.timed(scope.certified_cells)
        ),
        keeps=lambda scope, _: scope.result(*["certified/validity.csv"] * (scope.profile.name == "paper")),
        wanted=lambda scope: bool(scope.certified_cells),
    ),
    drawn(
        "certified",
        lambda scope: scope.result("certified/summary.csv"),
        wanted=lambda scope: bool(scope.certified_cells),
    ),
)


def delayed(scope: Scope, cell: str) -> list[Path]:
    """The tables of a cell that was played with delays; in changed worlds, too, where the profile has some."""
    folders = ["deadlines"] + ["deadlines/perturbed"] * bool(scope.profile.delays.perturbations)
    return scope.result(*(f"{folder}/{cell}.csv" for folder in folders))


DEADLINES = (
    Stage(
        "deadlines",
        "notebooks/09_deadlines.ipynb",
        ("deadlines",),
        delayed,
        lambda scope, cell: [
            *corrector_files(scope, cell),
            *draft_files(scope, cell, ["distilled"] * (cell in scope.profile.draft_cells)),
            *weights(cell),
        ],
        alone=True,  # it times steps
        each=lambda scope: scope.deadlines_cells,
        settings=(*COLLECTED, "calibrate_episodes"),
        roots=making_correctors,
        keeps=lambda scope, cell: scope.result(
            *[f"deadlines/{cell}-gates.json"] * ("async+gated" in scope.profile.delays.arms),
            f"deadlines/{cell}-steps.csv",
        ),
        rows="lib.study.rows:deadlines",
    ),
    Stage(
        "deadlines-summary",
        "paper/deadlines.py",
        (),
        lambda scope, _: scope.result("deadlines/summary.csv", "deadlines/steps.csv"),
        lambda scope, _: scope.there(*(f"deadlines/{cell}.csv" for cell in scope.deadlines_cells))
        + scope.timed(scope.deadlines_cells, "deadlines/{}-steps.csv"),
        wanted=lambda scope: bool(scope.deadlines_cells),
    ),
    drawn(
        "deadlines",
        lambda scope: scope.result("deadlines/summary.csv"),
        "deadlines-delay",
        wanted=lambda scope: bool(scope.deadlines_cells),
    ),
)  # fmt: skip
