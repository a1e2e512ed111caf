"""`statistics/claims.json` of a profile: every conclusion that the paper and the figures name.

    write_claims("quick")

The paper formats numbers and names facts; what they mean is said in `lib.study.stats.claims` and
`lib.study.stats.study_claims`. Under the paper profile `checked` says whether the claims of its prose hold, which
`paper/claims.toml` lists. Nothing is said of tables that are not there.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lib.files import files
from lib.records import paths
from lib.records.store import commit_of, known, read_table, write_artefact, write_json
from lib.study.distillation import RIGHT_SIZED
from lib.study.stats import claims, study_claims
from lib.study.stats.checked import check, read_claims

RIVAL = "budget-{}×{}".format(*RIGHT_SIZED)  # the smaller planner, asked at every step
ARCHITECTURES = ("two_tower", "temporal")
OFFLINE = ("cells", "gaps", "correlations", "differences")


def write_claims(profile: str) -> Path:
    """Write the facts of a profile and return the file's path. Raises `ResultError` without `summary.csv`."""
    path, facts = paths.results(profile) / "statistics" / "claims.json", gather(profile)
    return write_artefact(path, lambda temporary: write_json(temporary, facts))


def gather(profile: str) -> dict:
    """The facts of a profile's tables: those of the evaluation, and by study those of the others."""
    folder = paths.results(profile)
    summary = read_table(folder / "horizon" / "summary.csv")
    picks = folder / "statistics" / "headline.csv"
    facts = claims.evaluation(summary, read_table(folder / "statistics" / "comparisons.csv"), RIVAL)
    facts["headline"] = claims.headline(read_table(picks), summary, RIVAL) if picks.is_file() else None
    for cell, found in facts["cells"].items():
        errors = {arch: folder / "corrector" / f"{cell}-{arch}-depth.csv" for arch in ARCHITECTURES}
        found["removed"] = {a: claims.removed(read_table(file)) for a, file in errors.items() if file.is_file()}
    checked = read_claims(paths.PAPER / "claims.toml") if profile == "paper" else {}  # others have no prose
    return facts | {
        "checked": {name: check(name, claim, folder) for name, claim in checked.items()},
        "sequence": dict(_sequences(folder / "decision_transformer")),
        "model_error": {
            file.stem: study_claims.model_error(read_table(file), file.stem)
            for file in files(folder / "model_error", "*.csv")
        },
        "offline": _offline(folder / "offline"),
        "timed": {name: _timed(folder / name) for name in ("latency", "planner")},
        "fastest": {
            file.stem: study_claims.fastest(table)
            for file in files(folder / "planner", "*.csv")
            if {"learner", "solve_ms_p50"} & set(table := read_table(file))
        },
    }


def _timed(folder: Path) -> dict | None:
    """The first and last day that times of a folder were measured on, and the commits whose code was timed: a time
    cannot be carried over to other code."""
    tables = {file: known(file)["written"][:10] for file in files(folder, "*.csv") if "written" in known(file)}
    if not tables:
        return None
    days = sorted(tables.values())
    commits = {commit_of(file) for file in tables}
    return {"first": days[0], "last": days[-1], "commits": sorted(commit[:8] for commit in commits if commit)}


def _sequences(folder: Path):
    for file in files(folder, "*-summary.csv"):
        stem = file.name.removesuffix("-summary.csv")
        curves = [read_table(curve) for curve in files(folder, f"{stem}-*.csv") if _is_seed(curve, stem)]
        yield stem, study_claims.sequence(read_table(file), curves)


def _is_seed(file: Path, stem: str) -> bool:
    return file.stem.removeprefix(f"{stem}-").isdecimal()


def _offline(folder: Path) -> dict | None:
    files = {name: folder / f"{name}.csv" for name in OFFLINE}
    if not all(file.is_file() for file in files.values()):
        return None
    tables: dict[str, pd.DataFrame] = {name: read_table(file) for name, file in files.items()}
    tasks = list(tables["cells"]["task"].unique())
    return study_claims.offline(tables["correlations"], tables["differences"], tables["gaps"], tasks)
