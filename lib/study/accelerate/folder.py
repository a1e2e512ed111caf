"""What the command leaves: a controller's folder with its report and its episodes, written whole or not at all."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from lib.bundle import BundleError, read_about, save_controller
from lib.bundle.export import is_export
from lib.config import ConfigError
from lib.files import held, remove, temporary, unwritable
from lib.records.ending import child
from lib.records.keys import ResultError
from lib.records.notebook import python_path

NAMES = {"controller.json", "weights.safetensors", "report.html", "episodes.csv"}
DRAWN = 90.0  # seconds for a report with its clip
MADE_BY = "accelerated"  # what is found stands under this name in the controller's `about`


def check_place(folder: Path, teacher: str, task: str) -> None:
    """`ConfigError` unless the folder is missing, empty, or an earlier result for this teacher (its key) and task, and
    can be written."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        parent = there if there != folder else folder.resolve().parent  # in which it is put in its place
        if there != folder and not there.is_dir() or not os.access(parent, os.W_OK) or os.path.ismount(folder):
            raise ConfigError(
                f"out={str(folder)!r} cannot be made, as {parent} cannot be written to; give another folder."
            )
        return _check_held(folder, teacher, task)
    except OSError as error:
        raise ConfigError(
            f"out={str(folder)!r} cannot be made: {error.strerror or error}; give another folder."
        ) from None


def _check_held(folder: Path, teacher: str, task: str) -> None:
    """The same of what a folder holds."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"out={str(folder)!r} is a file; give a folder that is new or empty.")
    names = held(folder)  # hidden ones are somebody's, too
    if not names:
        return
    ours = NAMES | ({"exported"} if is_export(folder / "exported") else set())  # of a controller that is replaced
    if foreign := sorted({*names} - ours):
        raise ConfigError(f"out={str(folder)!r} holds {foreign[0]!r}, so nothing is written there; give a new folder.")
    try:
        about = read_about(folder)["about"][MADE_BY]
        same = (about["teacher_key"], about["task"]) == (teacher, task)
    except (BundleError, KeyError, TypeError):
        same = False
    if not same:
        raise ConfigError(
            f"out={str(folder)!r} holds a controller that is not this command's for this teacher and environment, so "
            "nothing is written there; give a new folder."
        )


def write_folder(folder: Path, controller, found: dict, episodes: pd.DataFrame) -> Path:
    """Write all four files in the place of an earlier result. Raises `ResultError` where that is not possible."""
    folder = folder.resolve()
    try:
        with temporary(folder) as place:
            save_controller(controller, place, {MADE_BY: found})
            episodes.to_csv(place / "episodes.csv", index=False, lineterminator="\n")
            draw(place)
            check_place(folder, found["teacher_key"], found["task"])
            with temporary(folder) as earlier:
                if folder.exists():
                    os.rename(folder, earlier)
                try:
                    os.rename(place, folder)
                except OSError:
                    if earlier.exists():
                        os.rename(earlier, folder)
                    raise
                remove(earlier)
    except OSError as error:
        raise ResultError(f"{folder} cannot be written: {unwritable(error, folder / 'x') or error}.") from error
    return folder


def draw(folder: Path) -> None:
    """The report is a figure, and figures are drawn of results by processes of their own."""
    run = functools.partial(
        subprocess.run, env=os.environ | {"PYTHONPATH": python_path()}, capture_output=True, text=True
    )
    try:
        done = run(child("figures.report", str(folder)), timeout=DRAWN)
    except subprocess.TimeoutExpired:
        print(f"the report has no clip, which was not drawn within {DRAWN:g} s", file=sys.stderr, flush=True)
        done = run(child("figures.report", str(folder), "--no-clip"))
    if done.stderr and not done.returncode:
        print(done.stderr.strip(), file=sys.stderr, flush=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ResultError(
            f"the report of {folder} could not be drawn: {said[0]}; `python -m figures.report` tells more."
        )
