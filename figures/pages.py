"""Figures of the paper: their command line, and what of many cells has room on a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

import altair as alt
import pandas as pd

from figures import charts
from lib.records import paths
from lib.study.cells import Cell
from lib.study.profiles import PROFILES


def command_line(about: str, draw: Callable[[str], dict[str, alt.TopLevelMixin]], arguments: list[str] | None) -> None:
    """Save what `draw` makes of a profile, name of a figure → chart, and print the files; `about` is the script's
    docstring, `arguments` those of the command line unless given."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--profile", default="quick", choices=PROFILES)
    profile = parser.parse_args(arguments).profile
    for name, chart in draw(profile).items():
        for path in charts.save(chart, paths.figures(profile) / name):
            print(path)


def cell_title(cell: str, cells: Iterable[str]) -> str:
    """A cell as the paper calls it: task and size, its seed where that tells it from others of `cells`, and the name of
    a cell whose teacher is from elsewhere."""
    if not paths.CELL.fullmatch(cell):
        return cell
    mine, others = Cell.parse(cell), (Cell.parse(other) for other in cells if paths.CELL.fullmatch(other))
    seeds = {other.seed for other in others if (other.task, other.size) == (mine.task, mine.size)}
    return f"{mine.task} ({mine.size}, seed {mine.seed})" if len(seeds) > 1 else f"{mine.task} ({mine.size})"


def fitting(marks: pd.DataFrame, most: int, figure: str = "", panels: str = "") -> pd.DataFrame:
    """The marks of the cells that a page holds, those with the most episodes first; of a `figure` with a name says
    which are left out.

    marks: columns `cell` and `episodes`. A cell takes as much room as its column `panels` has values, one without it;
    the page has room for `most`, and for the first cell in any case.
    """
    cells = marks.groupby("cell", sort=False).agg(room=(panels or "cell", "nunique"), episodes=("episodes", "sum"))
    cells = cells.sort_values("episodes", ascending=False, kind="stable")
    fits = cells["room"].cumsum() <= max(most, cells["room"].iloc[0])
    if figure and not fits.all():
        print(f"{figure}: a page does not hold all cells; left out: {', '.join(cells.index[~fits])}", file=sys.stderr)
    return marks[marks["cell"].isin(cells.index[fits])]
