"""The offline study's rows: measured, or taken from result files whose keys say that they would come out again.

    study = resolve_study("quick", "all", "1m", 0, "", "cpu")
    rows, gaps, skipped = measure_cells(study)

`lib.offline_study` measures a cell, `lib.offline_tables` has the correlations.
"""

from __future__ import annotations

import pandas as pd

from lib import paths
from lib.offline_cells import Study, study_cells
from lib.offline_study import Bench, row_key
from lib.results import intact, read_table, shown

Record = tuple[dict, list[dict]]  # a cell's row, and one per planner of the gap


def measure_cells(study: Study) -> tuple[list[dict], list[dict], list[str]]:
    """One row per cell, one row per cell and planner of the gap, and the files of cells without weights or rows.

    Cells that the profile's result files have under the same key are taken from there, also those that were not asked
    for now. So are those whose weights are not here, if their rows name weights for which the key is the same: one run
    of each task is shipped, and the rows of others were measured where they had been trained.
    """
    known, rows, gaps = recorded(study.profile), [], []
    everything, absent = study_cells(study.sizes)
    absent = [*study.skipped, *(snapshot for snapshot in absent if snapshot not in study.skipped)]
    others = [snapshot for snapshot in everything if snapshot not in study.cells]
    for number, snapshot in enumerate([*study.cells, *others], 1):
        bench = Bench(snapshot, study.profile, study.sizes, study.device)
        found = known.get(bench.key())
        if found is None:
            if snapshot in others:
                continue
            print(f"cell {number} of {len(study.cells)}: {snapshot.label}", flush=True)
            found = bench.rows()
        rows.append(found[0])
        gaps += found[1]
    elsewhere = {row["cell"]: (row, of_it) for key, (row, of_it) in known.items() if _holds(key, row, study)}
    skipped = []
    for snapshot in absent:
        if found := elsewhere.get(str(snapshot.label)):
            rows.append(found[0])
            gaps += found[1]
        elif snapshot in study.skipped:
            skipped.append(shown(paths.TEACHERS / f"{snapshot.name}.safetensors"))
    return rows, gaps, skipped


def _holds(key: str, row: dict, study: Study) -> bool:
    """Whether the weights that a row names would give its key today."""
    return bool(row.get("weights")) and row_key(row["weights"], study.sizes) == key


def recorded(profile: str) -> dict[str, Record]:
    """Key → row and gaps of the cells in a profile's result files."""
    tables = []
    for name in ("cells", "gaps"):
        file = paths.results(profile) / "offline" / f"{name}.csv"
        table = read_table(file) if intact(file) else pd.DataFrame(columns=["key"])  # not when edited by hand
        tables.append(table.astype(object).where(table.notna(), None).to_dict("records"))
    found = {row["key"]: (row, [gap for gap in tables[1] if gap["key"] == row["key"]]) for row in tables[0]}
    return {key: (row, gaps) for key, (row, gaps) in found.items() if gaps}
