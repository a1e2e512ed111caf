"""Where each artefact lives, found from the repository root, and what names may become part of its path.

Notebooks and scripts run from any directory. A name from outside (a profile, a cell, a task) becomes part of a path as
it is once `named` or `cell_parts` has seen it; of any other text, a file's name say, `part` makes one.
"""

import re
from pathlib import Path

from lib.config import MODEL_SIZES, ConfigError, quoted

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
PAPER = ROOT / "paper"
DATA = ROOT / "data"
TEACHERS = DATA / "teachers"  # shipped weights, each with a card; never written by anything but training
CACHE = DATA / "cache"  # distillation sets, correctors, training runs: made on demand, not committed
BUILD = ROOT / "build"  # executed notebooks, figures in progress, PDFs: evidence, never an input

NAME = re.compile("[A-Za-z0-9_]+(-{1,4}[A-Za-z0-9_]+)*")  # no folder, no "..", no dot as before a suffix
LONGEST = 100  # characters of a name; a file's may be 255, with what is added to it
CELL = re.compile(rf"([A-Za-z0-9_]+(?:-{{1,4}}[A-Za-z0-9_]+)*)-({'|'.join(MODEL_SIZES)})-(0|[1-9][0-9]?)")


def named(what: str, name: str) -> str:
    """The name as it is. Raises `ConfigError` unless it has only letters, digits and underscores, with dashes between
    them, and at most `LONGEST` of them."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise ConfigError(
            f"{what}={quoted(name)} cannot be part of a file's name; use letters, digits and dashes, {LONGEST} at most."
        )
    return name


def part(text: str) -> str:
    """A name of what `named` allows in a text, its first part where it is long."""
    return "-".join(re.findall("[A-Za-z0-9_]+", text))[:LONGEST].strip("-") or "unnamed"


def file_name(task: str) -> str:
    """A task as part of a file's name: my.module:make as my-module--make, gym:space/Id-v5 as gym--space---Id-v5, and
    gym:module:Id-v5 as gym--module----Id-v5; `task_of` is the inverse. `ConfigError` for what has no such name."""
    kind, colon, name = task.partition(":")
    text = f"{kind.replace('.', '-')}--{name.replace('/', '---').replace(':', '----')}" if colon else task
    if "--" in task or not NAME.fullmatch(text) or len(text) > LONGEST or task_of(text) != task:
        raise ConfigError(
            f"task={quoted(task)} cannot be part of a file's name; use letters, digits and dashes, {LONGEST} at most."
        )
    return text


def task_of(name: str) -> str:
    """The task that `file_name` made a name of."""
    kind, colon, name_of_it = name.partition("--")
    if not colon or name_of_it.startswith("-"):
        return name
    return f"{kind.replace('-', '.')}:{name_of_it.replace('----', ':').replace('---', '/')}"


def cell_parts(cell: str) -> tuple[str, str, int]:
    """Task, model size and seed of a cell, `<task>-<size>-<seed>`; `ConfigError` for anything else."""
    match = CELL.fullmatch(cell)
    if not match or len(cell) > LONGEST:
        sizes = ", ".join(MODEL_SIZES)
        raise ConfigError(
            f"{quoted(cell)} is not a cell; write <task>-<size>-<seed>, as in walker-walk-1m-1, with a size of {sizes}."
        )
    return task_of(match[1]), match[2], int(match[3])


def results(profile: str) -> Path:
    """Folder of a profile's result files, `data/results/<profile>`."""
    return DATA / "results" / named("profile", profile)


def executed(profile: str) -> Path:
    """Folder of a profile's executed notebooks, `build/<profile>`."""
    return BUILD / named("profile", profile)


def figures(profile: str) -> Path:
    """Folder of a profile's rendered figures, `figures/<profile>` (the paper profile's SVG and PNG are committed)."""
    return FIGURES / named("profile", profile)
