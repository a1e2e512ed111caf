"""What of many cells a figure has room for on a page of the paper."""

from __future__ import annotations

import sys

import pandas as pd


def fitting(marks: pd.DataFrame, most: int, figure: str, panels: str = "") -> pd.DataFrame:
    """The marks of the cells that a page holds, those with the most episodes first; says which are left out.

    marks: columns `cell` and `episodes`. A cell takes as much room as its column `panels` has values, one without it;
    the page has room for `most`, and for the first cell in any case.
    """
    cells = marks.groupby("cell", sort=False).agg(room=(panels or "cell", "nunique"), episodes=("episodes", "sum"))
    cells = cells.sort_values("episodes", ascending=False, kind="stable")
    fits = cells["room"].cumsum() <= max(most, cells["room"].iloc[0])
    if not fits.all():
        print(f"{figure}: a page does not hold all cells; left out: {', '.join(cells.index[~fits])}", file=sys.stderr)
    return marks[marks["cell"].isin(cells.index[fits])]
