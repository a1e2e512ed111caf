"""What the command leaves: a controller's folder with its report and its episodes, written whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pandas as pd

from lib.bundle import BundleError, read_about, save_controller
from lib.config import ConfigError
from lib.files import held, remove, temporary, unwritable
from lib.records.ending import child
from lib.records.keys import ResultError
from lib.records.notebook import python_path

NAMES = {"controller.json", "weights.safetensors", "report.html", "episodes.csv"}
MADE_BY = "accelerated"  # what is found stands under this name in the controller's `about`


def check_place(folder: Path, teacher: str, task: str) -> None:
    """`ConfigError` unless the folder is missing, empty, or an earlier result for this teacher (its key) and task, and
    can be written."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if there != folder and not (there.is_dir() and os.access(there, os.W_OK)):
        raise ConfigError(f"out={str(folder)!r} cannot be made, as {there} cannot be written to; give another folder.")
    if there != folder:
        return
    if not folder.is_dir():
        raise ConfigError(f"out={str(folder)!r} is a file; give a folder that is new or empty.")
    names = held(folder)  # hidden ones are somebody's, too
    if not names:
        return
    if foreign := sorted({*names} - NAMES):
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
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(child("figures.report", str(folder)), env=environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ResultError(
            f"the report of {folder} could not be drawn: {said[0]}; `python -m figures.report` tells more."
        )
