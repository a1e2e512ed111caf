"""What the stages of the pipeline read and write, as far as that depends on a profile and its cells."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from lib.files import files
from lib.records import paths
from lib.records.jobs import Scope, Stage

ACTING = "lib.correctors:TwoTowerCorrector"  # what acts while the later rounds of a set are collected
CORRECTORS = {"two_tower": ACTING, "temporal": "lib.correctors:TemporalCorrector"}
DRAFTS = ("distilled", "cloned", "prior+")
PUBLIC = (paths.DATA / "official_returns.csv", paths.DATA / "expert_returns.csv")
# That the first figure has room for, by the second one's name.
MOST_CELLS = {"pareto-cells": 2, "horizon-cells": 3, "offline-cells": 0, "deadlines-delay": 0, "perturbed-cells": 2}
ENDS = (".csv", "-depth.csv", ".safetensors")  # of the files of a corrector
LOOKS = paths.ROOT / "figures/charts.py"  # as a whole file: a figure is drawn again in seconds
COLLECTED = ("collect_episodes", "rounds", "collect_horizon", "epochs", "decisions", "planner")


def weights(*names: str) -> list[Path]:
    """The weights of shipped teachers."""
    return [paths.TEACHERS / f"{name}.safetensors" for name in names]


def corrector_files(scope: Scope, cell: str) -> list[Path]:
    return scope.result(*(f"corrector/{cell}-{arch}.safetensors" for arch in scope.profile.correctors))


def draft_files(scope: Scope, cell: str, arms: Iterable[str] | None = None) -> list[Path]:
    """The drafts of a cell, or those of them that arms of these names act with."""
    checked = {"draft+": "distilled", "clone+": "cloned"}
    acting = (
        DRAFTS if arms is None else {*arms, *(name for arm in arms for mark, name in checked.items() if mark in arm)}
    )
    return scope.result(*(f"drafts/{cell}-{draft}.safetensors" for draft in DRAFTS if draft in acting))


def network_files(scope: Scope, cell: str, arms: Iterable[str]) -> list[Path]:
    """The correctors of a cell, and the drafts that arms of these names act with."""
    return [*corrector_files(scope, cell), *draft_files(scope, cell, arms)]


def played(scope: Scope, cell: str) -> tuple[str, ...]:
    """The arms that the evaluation plays on a cell."""
    return (*scope.profile.counts(cell), *scope.profile.candidates)


def certifying(scope: Scope, cell: str, here: bool) -> list[Path]:
    """What the candidates of all chains act with, as far as it is made where they are played, or (not `here`) before:
    cells of the profile have correctors, and some of them drafts."""
    candidates = [arm for chain in scope.profile.certification.chains.values() for arm in chain]
    drafts = draft_files(scope, cell, candidates)
    if here:
        corrector = [] if cell in scope.profile.cells else scope.result(f"corrector/{cell}-two_tower.safetensors")
        return [*corrector, *([] if cell in scope.profile.draft_cells else drafts)]
    before = corrector_files(scope, cell) if cell in scope.profile.cells else []
    return [*before, *(drafts if cell in scope.profile.draft_cells else [])]


def offline_weights(scope: Scope) -> list[Path]:
    patterns = scope.profile.offline_weights
    return [file for pattern in patterns for file in files(paths.TEACHERS, f"{pattern}.safetensors")]


def correctors(scope: Scope) -> tuple[str, ...]:
    return tuple({ACTING: None} | dict.fromkeys(CORRECTORS[arch] for arch in scope.profile.correctors))


def making_correctors(scope: Scope) -> tuple[str, ...]:
    """What makes correctors that are lacking, and what acts in that."""
    return (*correctors(scope), "lib.study.distillation:ensure_corrector")


def learnt(scope: Scope, cell: str, *parts: str) -> list[Path]:
    """The results of the sequence models of a cell."""
    return scope.result(*(f"decision_transformer/{cell}-expert-{part}.csv" for part in parts))


def concluded_from(scope: Scope) -> list[Path]:
    """Every table that conclusions are drawn from, there or not."""
    names = ["horizon/summary.csv", "statistics/comparisons.csv", "statistics/headline.csv"]
    names += [f"corrector/{cell}-{arch}-depth.csv" for cell in scope.cells for arch in CORRECTORS]
    names += [f"model_error/{cell}.csv" for cell in scope.teacher_cells]
    names += [f"offline/{table}.csv" for table in ("cells", "gaps", "correlations", "differences")]
    names += [f"planner/{table}.csv" for table in scope.profile.planner_tables]
    prose = [paths.PAPER / "claims.toml"] if scope.profile.name == "paper" else []
    claims = [claim for file in prose for claim in tomllib.loads(file.read_text(encoding="utf-8")).values()]
    names += dict.fromkeys(claim["table"] for claim in claims if claim["table"] not in names)
    learnt_files = [p for c in scope.study_cells for p in learnt(scope, c, *seeds(scope), "summary")]
    return [*scope.result(*names), *prose, *learnt_files]


def changed(scope: Scope) -> list[Path]:
    """The tables of the cells that were played in changed worlds."""
    return [file for file in scope.result(*tables(scope, "perturbed")) if file.is_file()]


def drawn(name: str, needs: Callable, more: str = "", cells: Callable = lambda scope: scope.cells, **options) -> Stage:
    """The stage of a figure; `more` is a second one, drawn where the first has no room for as many `cells`."""

    def outs(scope: Scope, _) -> list[Path]:
        names = [name, more] if more and len(cells(scope)) > MOST_CELLS[more] else [name]
        return [paths.figures(scope.profile.name) / f"{name}.svg" for name in names]

    return Stage(
        f"{name}-figure",
        f"figures/{name}.py",
        (),
        outs,
        lambda scope, _: [*needs(scope), LOOKS],
        **options,
    )


def seeds(scope: Scope) -> list[str]:
    return [str(seed) for seed in range(1, scope.profile.sequence.seeds + 1)]


def sizes(scope: Scope) -> set[str]:
    return {cell.rsplit("-", 2)[1] for cell in scope.cells if cell.count("-") > 1}


def tables(scope: Scope, folder: str, end: str = "") -> list[str]:
    return [f"{folder}/{cell}{end}.csv" for cell in scope.cells]


def noisy(scope: Scope) -> bool:
    return any(name.startswith("noise-") for name in scope.profile.perturbations)
