"""The offline study's rows: measured, or taken from result files whose keys say that they would come out again.

    study = resolve_study("quick", "all", "1m", 0, "", "cpu")
    rows, gaps, skipped = measure_cells(study)

`lib.study.model_quality.bench` measures a cell, `lib.study.model_quality.tables` has the correlations.
"""

from __future__ import annotations

import pandas as pd

from lib.records import paths
from lib.records.keys import shown
from lib.records.ledger import name_of, renamed
from lib.records.store import intact, read_table
from lib.study.cells import CELL_NAME
from lib.study.model_quality.bench import Bench, row_key
from lib.study.model_quality.snapshots import Study, study_cells

Record = tuple[dict, list[dict]]  # a cell's row, and one per planner of the gap


def measure_cells(study: Study) -> tuple[list[dict], list[dict], list[str]]:
    """One row per cell, one row per cell and planner of the gap, and the files of cells with neither weights nor rows.

    Cells that the profile's result files have under the same key are taken from there, also those that were not asked
    for now. So are those whose weights are not here, see `_of_absent`: one run of each task is shipped, and the rows of
    others were measured where they had been trained.
    """
    known, taken, strange = recorded(study.profile), {}, set()
    others = [snapshot for snapshot in study_cells(study.sizes)[0] if snapshot not in study.cells]
    for number, snapshot in enumerate([*others, *study.cells], 1 - len(others)):
        bench = Bench(snapshot, study.profile, study.sizes, study.device)
        key = name_of(bench.key())
        if key not in known:
            strange.add(str(snapshot.cell))
        if key in taken or key not in known and snapshot in others:
            continue
        if key in known:  # perhaps as a file of any name, when it was measured
            row, of_it = known[key]
            taken[key] = row | bench.about, [gap | bench.about for gap in of_it]
        else:
            print(f"cell {number} of {len(study.cells)}: {snapshot.label}", flush=True)
            taken[key] = bench.rows()
    here = {_point(row) for row, _ in taken.values()}
    absent = {key: (row, gaps) for key, (row, gaps) in known.items() if _point(row) not in here}
    taken |= _of_absent(absent, study, strange)
    have = {_point(row) for row, _ in taken.values()}
    missing = [snapshot for snapshot in study.skipped if (str(snapshot.cell), snapshot.decisions) not in have]
    skipped = [shown(paths.TEACHERS / f"{snapshot.name}.safetensors") for snapshot in missing]
    return [row for row, _ in taken.values()], [gap for _, gaps in taken.values() for gap in gaps], skipped


def _of_absent(known: dict[str, Record], study: Study, strange: set[str]) -> dict[str, Record]:
    """The records of the study's runs whose weights are not here and would give the same keys today.

    Snapshots of two runs must not pass for those of one: where a run has weights here that were not measured
    (`strange`), its other records are dropped. Says which are.
    """
    kept, dropped = {}, []
    for key, (row, gaps) in known.items():
        match = CELL_NAME.fullmatch(_point(row)[0])
        if not match or match[1] not in study.sizes.tasks or int(match[3]) not in study.sizes.seeds:
            continue  # of a teacher from elsewhere
        weights = row.get("weights")
        if weights and name_of(row_key(weights, match[1], study.sizes)) == key and match[0] not in strange:
            kept[key] = row, gaps
        else:
            dropped.append(row["cell"])
    if dropped:
        print(
            f"dropped, as other code or settings measured them, or they are of another run than the weights that are "
            f"here: {', '.join(dropped)}",
            flush=True,
        )
    return kept


def _point(row: dict) -> tuple[str, int | None]:
    """(run, decisions of training) of a row: its cell is named after the run, and after both before the run's end."""
    decisions = None if row["decisions"] is None else int(row["decisions"])  # a table with an empty one has floats
    return row["cell"].removesuffix(f"-{decisions}"), decisions


def recorded(profile: str) -> dict[str, Record]:
    """Name of the key → row and gaps of the cells in a profile's result files."""
    tables = []
    for name in ("cells", "gaps"):
        file = paths.results(profile) / "offline" / f"{name}.csv"
        table = read_table(file) if intact(file) else pd.DataFrame(columns=["key"])  # not when edited by hand
        tables.append(table.astype(object).where(table.notna(), None).to_dict("records"))
    found = {row["key"]: (row, [gap for gap in tables[1] if gap["key"] == row["key"]]) for row in tables[0]}
    found = {renamed(key): rows for key, rows in found.items() if rows[1]}
    return {name_of(key): rows for key, rows in found.items() if "-" in key}
