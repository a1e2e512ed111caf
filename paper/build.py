"""Build the PDF from the result files that exist; never compute a result.

    python paper/build.py --profile paper      # writes build/paper/paper.pdf; a missing number is an error
    python paper/build.py --profile quick      # writes build/quick/paper.pdf, a short report of what there is

The prose of the paper is written for the paper profile alone. Typst reads the CSV and JSON files itself. The same files
give the same bytes on every machine: only fonts inside the `typst` package are used, and the PDF carries no date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import typst

from lib.config import PlannerConfig, as_dict, one_of
from lib.distil.train import CorrectorTraining
from lib.files import files
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import known, write_bytes
from lib.study.arms import SCHEMES
from lib.study.calibrate import CALLS_PER_PLAN, WANTED
from lib.study.claims import RIVAL
from lib.study.distillation import RIGHT_SIZED
from lib.study.profiles import PROFILES

# Typst 0.15 cannot write some documents whose floats and page breaks coincide (typst/typst#8776, "internal error"): the
# page is then made shorter by so many points, in this order, until it can.
SHORTER = (0, 1, 2, 4, 6, 9)


class PaperError(RuntimeError):
    """The paper cannot be built; the message says what is missing or wrong, and where."""


def result_files(profile: str) -> list[str]:
    """Files the paper may read, relative to the root: the profile's tables and figures."""
    tables = paths.results(profile)
    found = [*files(tables, "**/*.csv"), *files(tables, "statistics/claims.json")]
    found += files(paths.figures(profile), "*.svg")
    return sorted(f.relative_to(paths.ROOT).as_posix() for f in found)


def stale_lines(profile: str) -> list[str]:
    """What `make status` left in `build/<profile>/stale.txt`, one stale result a line; [] without the file."""
    path = paths.executed(profile) / "stale.txt"
    return [line.strip() for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


def method(profile: str) -> dict:
    """The constants of the method that the text names, from where the code has them."""
    settings, standard = PROFILES[profile], PlannerConfig()
    return {
        "profile": as_dict(settings) | {"last_depth": settings.collect_horizon - 1},
        "planner": as_dict(settings.planner or standard),
        "standard": as_dict(standard) | {"model_evaluations": standard.model_evaluations},
        "right_sized": as_dict(PlannerConfig.budget(*RIGHT_SIZED)),
        "rival": RIVAL,
        "refiner": as_dict(SCHEMES["ladder"]["refiner"]),
        "corrector": as_dict(CorrectorTraining()),
        "calibration": {"calls_per_plan": CALLS_PER_PLAN, "wanted": WANTED},
    }


def build(profile: str) -> Path:
    """Write `build/<profile>/paper.pdf` and return its path. Raises `PaperError` in one sentence."""
    one_of("profile", profile, PROFILES)
    inputs = {
        "profile": profile,
        "files": json.dumps(result_files(profile)),
        "told": json.dumps([file for file in result_files(profile) if known(paths.ROOT / file)]),
        "stale": json.dumps(stale_lines(profile)),
        "settings": json.dumps(method(profile)),
    }
    path = paths.executed(profile) / "paper.pdf"
    write_bytes(path, compiled(paths.PAPER / ("main.typ" if profile == "paper" else "report.typ"), inputs))
    return path


def compiled(source: Path, inputs: dict[str, str]) -> bytes:
    """The PDF, of the first of `SHORTER` with which Typst can write it."""
    for points in SHORTER:
        inputs = inputs | {"shorter": str(points)}
        try:
            return typst.compile(source, root=paths.ROOT, ignore_system_fonts=True, sys_inputs=inputs)
        except typst.TypstError as error:
            if "internal error" not in error.message or points == SHORTER[-1]:
                raise PaperError(explain(error)) from None


def explain(error: typst.TypstError) -> str:
    """The sentence of `missing` in style.typ as it is; anything else as Typst shows it, with the place."""
    ours = re.search(r"panicked with: (.*)", error.message)
    return ours[1] if ours else error.diagnostic.strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    profile = parser.parse_args(arguments).profile
    try:
        for line in stale_lines(profile):
            print(f"stale: {line}", file=sys.stderr)
        print(build(profile).relative_to(paths.ROOT))
    except (PaperError, ResultError, ValueError) as error:
        print(f"paper: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
