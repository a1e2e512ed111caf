"""Claims of the paper's prose that result tables must bear out: a false one stops the build.

[smaller-planners]                                  # of paper/claims.toml
table = "horizon/summary.csv"
rows = "arm == 'budget-256×2' and size == '1m'"     # a pandas query; all rows where it is left out
holds = "kept_low > 0.98"                           # of a row
count = ">= 5 of 7"                                 # of so many rows
pivot = ["cell", "draft", "return"]                 # to compare rows: a row for each cell, a column for each draft
each = "arm"                                        # the count has to be right for each arm by itself

check("smaller-planners", claim, folder)            # {"holds": True, "found": "holds of 6 of 6 rows"}
"""

from __future__ import annotations

import operator
import re
import tomllib
from pathlib import Path

import pandas as pd

from lib.records.keys import ResultError
from lib.records.store import read_table

FIELDS = {"table", "holds", "count"}, {"rows", "pivot", "each"}  # needed, optional
COUNTS = {"==": operator.eq, ">=": operator.ge, "<=": operator.le}


def read_claims(file: Path) -> dict[str, dict[str, str]]:
    """Name → claim. Raises `ResultError` for a file that is not as above."""
    try:
        claims = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ResultError(f"{file} cannot be read as claims: {error}.") from None
    needed, optional = FIELDS
    for name, claim in claims.items():
        if not isinstance(claim, dict) or not needed <= claim.keys() <= needed | optional:
            words = " and ".join(sorted(needed)), ", ".join(sorted(optional))
            raise ResultError(f"claim {name} in {file} needs {words[0]}, and may have {words[1]}.")
    return claims


def check(name: str, claim: dict[str, str], folder: Path) -> dict:
    """Whether a claim `holds` of the tables in a folder, and what was `found`, as words that say why it does not.

    A claim about no row at all does not hold. Raises `ResultError` where it cannot be asked: for a table that is not
    there, and a query that this table does not answer.
    """
    table = read_table(folder / claim["table"])
    count = re.fullmatch(r"(==|>=|<=) ?(\d+) of (\d+)", claim["count"])
    if not count:
        wanted = f"one of {', '.join(COUNTS)} and two numbers, as in >= 5 of 7"
        raise ResultError(f"claim {name}: count = {claim['count']!r} must be {wanted}.")
    try:
        rows = table.query(claim["rows"], engine="python") if "rows" in claim else table
        if "pivot" in claim:
            rows = rows.pivot(**dict(zip(("index", "columns", "values"), claim["pivot"], strict=True))).reset_index()
        good = rows.eval(claim["holds"], engine="python")
        groups = rows[claim["each"]] if "each" in claim else pd.Series("", rows.index)
    except Exception as error:  # whatever pandas raises for what it cannot parse, find or compare
        raise ResultError(
            f"claim {name} cannot be asked of {claim['table']}: {' '.join(str(error).split())}."
        ) from None
    if not isinstance(good, pd.Series) or good.dtype != bool:
        raise ResultError(f"claim {name}: {claim['holds']!r} is no yes or no for each row.")
    counts = {group: (int(mine.sum()), len(mine)) for group, mine in good.groupby(groups)}
    enough = all(COUNTS[count[1]](n, int(count[2])) and of == int(count[3]) for n, of in counts.values())
    told = [f"{n} of {of} rows{f' of {group}' * bool(group)}" for group, (n, of) in counts.items()] or ["0 of 0 rows"]
    found = f"{claim['holds']} holds of {', '.join(told)} of {claim['table']}"
    found += f" where {claim['rows']}" if "rows" in claim else ""
    return {"holds": bool(enough and len(rows)), "found": found + f"; wanted: {claim['count']}"}
